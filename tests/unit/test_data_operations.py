"""Operations of RandAugment and TrivialAugment: each against PIL or torchvision on single images; their draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from crop_batches import make_crops
from PIL import ImageEnhance, ImageOps
from torchvision.transforms.v2 import InterpolationMode, functional

from fsl_dist.data.augmentation.operations import apply_operations, rotate
from fsl_dist.data.augmentation.parameters import draw_augment
from fsl_dist.data.augmentation.policies import OPERATIONS
from fsl_dist.data.config import DataConfig

NUMBER = {operation.name: number for number, operation in enumerate(OPERATIONS)}


def known_pixels(size):
    """Pixels whose source is inside the image for every rotation: bool [size, size]."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return torch.from_numpy(np.hypot(y, x) < size / 2 - 1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [24, 25])
def test_rotation_is_that_of_torchvision_where_it_knows_the_pixels(channels, size):
    crops, angles = make_crops(6, size, channels), np.float32([-170, -31, 0, 8.5, 45, 90])
    found = rotate(crops, angles)
    assert (found.dtype, found.shape) == (torch.uint8, crops.shape)
    is_known = known_pixels(size)
    for crop, angle, result in zip(crops, angles, found, strict=True):
        image = crop.permute(2, 0, 1)
        expected = functional.rotate(image, float(angle), InterpolationMode.BILINEAR).permute(1, 2, 0)
        assert (result.int() - expected.int())[is_known].abs().max() <= 1
    assert torch.equal(found[2], crops[2])
    assert (found[5].int() - crops[5].rot90().int()).abs().max() <= 1


def test_rotation_repeats_the_edge():
    crops = torch.full((2, 9, 9, 3), 200, dtype=torch.uint8)
    assert torch.equal(rotate(crops, np.float32([45, 10])), crops)


PIL = {
    "identity": lambda image, amount: image,
    "brightness": lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount),
    "colour": lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount),
    "contrast": lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount),
    "sharpness": lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount),
    "posterize": lambda image, amount: ImageOps.posterize(image, 8 - round(amount)),
    "solarize": lambda image, amount: ImageOps.solarize(image, 256 - amount),
    "autocontrast": lambda image, amount: ImageOps.autocontrast(image),
    "equalize": lambda image, amount: ImageOps.equalize(image),
}
AMOUNTS = {"posterize": (0, 1, 4, 6), "solarize": (0, 100, 255)}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PIL)
def test_pixels_change_as_in_pil(name, channels):
    """PIL cuts fractions off, twice in some operations; here everything is rounded once."""
    tolerance = 0 if name in ("identity", "posterize", "solarize", "equalize") else 2
    amounts = AMOUNTS.get(name, (-0.9, -0.3, 0, 0.5, 0.9))
    crops = make_crops(len(amounts), 24, channels) // 2 + 60  # a range to stretch
    found = apply_operations(crops, np.full(len(amounts), NUMBER[name]), np.float32(amounts))
    assert (found.dtype, found.shape) == (torch.uint8, crops.shape)
    for crop, amount, result in zip(crops, amounts, found, strict=True):
        image = functional.to_pil_image(crop.permute(2, 0, 1))
        expected = functional.pil_to_tensor(PIL[name](image, amount)).permute(1, 2, 0)
        assert (result.int() - expected.int()).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["autocontrast", "equalize", "sharpness"])
def test_flat_and_tiny_crops_stay(name):
    for crops in (torch.full((2, 8, 8, 3), 77, dtype=torch.uint8), make_crops(2, 1)):
        found = apply_operations(crops, np.full(2, NUMBER[name]), np.float32([0.5, -0.5]))
        assert torch.equal(found, crops)


def by_torchvision(name, image, amount):
    size, bilinear = image.shape[-1], {"interpolation": InterpolationMode.BILINEAR}
    degrees = float(np.rad2deg(np.arctan(amount)))
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], **bilinear}
    return {
        "shear_x": lambda: functional.affine(image, **still | {"shear": [degrees, 0.0], "center": [0, 0]}),
        "shear_y": lambda: functional.affine(image, **still | {"shear": [0.0, degrees], "center": [0, 0]}),
        "translate_x": lambda: functional.affine(image, **still | {"translate": [amount * size, 0]}),
        "translate_y": lambda: functional.affine(image, **still | {"translate": [0, amount * size]}),
        "rotate": lambda: functional.rotate(image, float(amount), **bilinear),
    }[name]()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["shear_x", "shear_y", "translate_x", "translate_y", "rotate"])
def test_geometry_is_that_of_torchvision_where_it_knows_the_pixels(name, channels):
    amounts = (-25, 0, 30) if name == "rotate" else (-0.25, 0, 0.125, 0.75)
    crops = make_crops(len(amounts), 24, channels)
    found = apply_operations(crops, np.full(len(amounts), NUMBER[name]), np.float32(amounts))
    for crop, amount, result in zip(crops, amounts, found, strict=True):
        image = crop.permute(2, 0, 1)
        expected = by_torchvision(name, image, amount).permute(1, 2, 0)
        is_known = by_torchvision(name, torch.full_like(image[:1], 255), amount)[0] == 255
        assert is_known.float().mean() > 0.1
        assert (result.int() - expected.int())[is_known].abs().max() <= 1


def test_each_crop_gets_its_own_operation_whatever_the_others_get():
    crops, draw = make_crops(42), np.random.default_rng(0)
    which = draw.permutation(np.arange(42) % 14)
    amounts = draw.uniform(0, 0.5, 42).astype(np.float32)
    found = apply_operations(crops, which, amounts)
    for n in range(42):
        assert torch.equal(
            found[n], apply_operations(crops[n : n + 1], which[n : n + 1], amounts[n : n + 1])[0]
        )
    assert torch.equal(crops, make_crops(42)), "the input stays"


def test_randaugment_draws_every_operation_at_one_strength():
    config = DataConfig(randaugment=2, randaugment_magnitude=5)
    augment = draw_augment(config, 0, 0, np.arange(7000))
    for column in range(2):
        counts = np.bincount(augment.operations[:, column], minlength=14)
        assert np.abs(counts - 500).max() < 5 * np.sqrt(500)
    is_rotated = augment.operations == NUMBER["rotate"]
    assert set(np.unique(augment.amounts[is_rotated])) == {-15, 15}
    assert np.mean(augment.amounts[is_rotated] > 0) == pytest.approx(0.5, abs=0.06)
    assert set(augment.amounts[augment.operations == NUMBER["posterize"]]) == {2}
    both = augment.operations[:, 0] == augment.operations[:, 1]
    assert both.mean() == pytest.approx(1 / 14, abs=0.02), "drawn with replacement"
    one = draw_augment(replace(config, randaugment=1), 0, 0, np.arange(7000))
    assert np.array_equal(one.operations, augment.operations[:, :1])


def test_trivialaugment_draws_31_strengths():
    augment = draw_augment(DataConfig(trivialaugment=True), 0, 0, np.arange(20000))
    assert augment.operations.shape == (20000, 1)
    amounts = augment.amounts[augment.operations == NUMBER["solarize"]]
    assert np.unique(amounts) == pytest.approx(255 * np.arange(31) / 30)
    amounts = augment.amounts[augment.operations == NUMBER["shear_x"]]
    assert (amounts.min(), amounts.max()) == pytest.approx((-0.99, 0.99))
    assert amounts.mean() == pytest.approx(0, abs=0.05)
