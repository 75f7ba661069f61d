"""The stage after both decoders: each part against torchvision on single images, and the same for every batch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from dataset_files import encode
from torchvision.transforms.v2 import InterpolationMode, functional

from fsl_dist.data.augment import draw_augment, plain_augment
from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder
from fsl_dist.data.pixel_stage import rotate, transform_pixels

SETTINGS = {
    "vertical flip": {"vertical_flip": True},
    "rotation": {"rotation": 30.0},
    "resized crop": {"crop_scale": (0.3, 1.0)},
}


def make_crops(num, size=24, channels=3, seed=0):
    """Smooth random images: uint8 [num, size, size, channels]."""
    draw = np.random.default_rng(seed)
    coarse = torch.from_numpy(draw.integers(0, 256, (num, channels, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 25])
def test_rotation_is_that_of_torchvision_where_it_knows_the_pixels(channels, size):
    crops, angles = make_crops(6, size, channels), np.float32([-170, -31, 0, 8.5, 45, 90])
    found = rotate(crops, angles)
    assert (found.dtype, found.shape) == (torch.uint8, crops.shape)
    assert found.is_contiguous()
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    is_known = torch.from_numpy(np.hypot(y, x) < size / 2 - 1)
    for crop, angle, result in zip(crops, angles, found, strict=True):
        image = crop.permute(2, 0, 1)
        expected = functional.rotate(image, float(angle), InterpolationMode.BILINEAR).permute(1, 2, 0)
        assert (result.int() - expected.int())[is_known].abs().max() <= 1
    assert torch.equal(found[2], crops[2])
    assert (found[5].int() - crops[5].rot90().int()).abs().max() <= 1


def test_rotation_repeats_the_edge():
    crops = torch.full((2, 9, 9, 3), 200, dtype=torch.uint8)
    assert torch.equal(rotate(crops, np.float32([45, 10])), crops)


def test_a_vertical_flip_turns_half_of_the_images_over():
    config = DataConfig(vertical_flip=True)
    crops, augment = make_crops(400, 4), draw_augment(config, 0, 0, np.arange(400))
    assert augment.vertical_flip.mean() == pytest.approx(0.5, abs=0.08)
    found = transform_pixels(crops, augment, config)
    for crop, result, is_flipped in zip(crops, found, augment.vertical_flip, strict=True):
        assert torch.equal(result, crop.flip(0) if is_flipped else crop)


def test_angles_are_uniform_within_the_setting():
    angle = draw_augment(DataConfig(rotation=20.0), 0, 0, np.arange(4000)).angle
    for quantile, expected in ((0, -20), (0.25, -10), (0.5, 0), (0.75, 10), (1, 20)):
        assert np.quantile(angle, quantile) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_does_not_depend_on_its_batch(name, channels):
    config = DataConfig(
        decoder="torchvision", image_size=16, resize_size=18, channels=channels, **SETTINGS[name]
    )
    images = [encode(crop.numpy()) for crop in make_crops(8, 30)]
    ids = np.array([5, 900, 2, 7, 13, 11, 4, 8])
    decoder = make_decoder(config)
    together = decoder.decode(images, draw_augment(config, 1, 3, ids))
    assert (together.dtype, together.shape) == (torch.float32, (8, channels, 16, 16))
    assert together.is_contiguous(memory_format=torch.channels_last)
    order = np.array([6, 1, 3])
    some = decoder.decode([images[i] for i in order], draw_augment(config, 1, 3, ids[order]))
    assert torch.equal(some, together[torch.from_numpy(order)])
    assert not torch.equal(together, decoder.decode(images, draw_augment(config, 1, 4, ids)))
    decoder.close()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_part_that_is_switched_on_leaves_the_others_draws(name):
    plain, more = (draw_augment(DataConfig(**part), 0, 0, np.arange(50)) for part in ({}, SETTINGS[name]))
    for field in ("crop_y", "crop_x", "flip", "brightness", "contrast", "saturation"):
        assert np.array_equal(getattr(plain, field), getattr(more, field))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_test_transform_is_the_same_with_and_without_augmentation(name):
    images = [encode(crop.numpy()) for crop in make_crops(4, 30)]
    found = []
    for part in ({}, SETTINGS[name]):
        config = DataConfig(decoder="torchvision", image_size=16, resize_size=18, **part)
        found.append(make_decoder(config).decode(images, None))
    assert torch.equal(*found)
    crops = make_crops(4)
    assert transform_pixels(crops, plain_augment(4), replace(config, rotation=10.0)) is crops
