"""The stage after both decoders: each part against torchvision on single images, and the same for every batch."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from crop_batches import make_crops
from dataset_files import encode

from fsl_dist.config import parse_config, render_config
from fsl_dist.data.augmentation.parameters import draw_augment, plain_augment
from fsl_dist.data.augmentation.pixel_stage import transform_pixels
from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder

POOL = ThreadPoolExecutor(2)
SETTINGS = {
    "vertical flip": {"vertical_flip": True},
    "rotation": {"rotation": 30.0},
    "resized crop": {"crop_scale": (0.3, 1.0)},
    "erasing": {"erasing": 0.5},
    "randaugment": {"randaugment": 2},
    "trivialaugment": {"trivialaugment": True},
}


def test_a_vertical_flip_turns_half_of_the_images_over():
    config = DataConfig(vertical_flip=True)
    crops, augment = make_crops(400, 4), draw_augment(config, 0, 0, np.arange(400))
    assert augment.vertical_flip.mean() == pytest.approx(0.5, abs=0.08)
    found = transform_pixels(crops, augment, config, POOL)
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
    config = replace(config, rotation=10.0)
    assert torch.equal(transform_pixels(crops := make_crops(4), plain_augment(4), config, POOL), crops)


def test_a_file_says_how_images_are_augmented():
    text = """
data:
  crop_scale: [0.5, 1]
  crop_ratio: [0.8, 1.25]
  rotation: 15
  randaugment: 2
  brightness: 0.2
method: {kind: cross_entropy, mixup: 0.2}
"""
    config = parse_config(text, ["data.erasing=0.25", "data.crop_scale=[0.3,1.0]"], "a test")
    assert (config.data.crop_scale, config.data.crop_ratio) == ((0.3, 1.0), (0.8, 1.25))
    assert (config.data.rotation, config.data.randaugment, config.data.erasing) == (15.0, 2, 0.25)
    assert parse_config(render_config(config), [], "again") == config
    assert parse_config(text, ["data.crop_scale=[]"], "a test").data.crop_scale == ()


def test_slices_of_a_batch_are_put_together_in_order():
    """96 images of 64 pixels are two slices."""
    config = DataConfig(image_size=64, resize_size=64, rotation=20.0, randaugment=1)
    crops, augment = make_crops(96, 64), draw_augment(config, 0, 0, np.arange(96))
    found = transform_pixels(crops, augment, config, POOL)
    for n in (0, 47, 48, 49, 95):
        alone = transform_pixels(crops[n : n + 1], augment.slice(n, n + 1), config, POOL)
        assert torch.equal(found[n : n + 1], alone)


def test_erasing_fills_a_rectangle_with_the_mean():
    config = DataConfig(image_size=40, resize_size=40, erasing=0.7, mean=(0.0, 0.5, 1.0))
    crops, augment = make_crops(1000, 40), draw_augment(config, 0, 0, np.arange(1000))
    found = transform_pixels(crops, augment, config, POOL)
    shares = []
    for crop, result, (top, left, bottom, right) in zip(crops, found, augment.erased.tolist(), strict=True):
        expected = crop.clone()
        expected[top:bottom, left:right] = torch.tensor([0, 128, 255], dtype=torch.uint8)
        assert torch.equal(result, expected)
        assert 0 <= top <= bottom <= 40
        assert 0 <= left <= right <= 40
        shares.append((bottom - top) * (right - left) / 1600)
    erased = np.array(shares)[np.array(shares) > 0]
    assert len(erased) / 1000 == pytest.approx(0.7, abs=0.05)
    assert erased.min() < 0.03
    assert erased.max() > 0.3
    assert erased.mean() == pytest.approx((0.02 + 0.33) / 2, abs=0.01)
