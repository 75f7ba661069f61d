"""Regions of crops, sizes by headers, and the normaliser's formula."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fsl_dist.data.augmentation.parameters import draw_augment, plain_augment
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_regions, resized_crop_boxes
from fsl_dist.data.normalise import Normaliser
from fsl_dist.data.pixels import open_upright, read_plain


def augment_at(y, x, flip):
    return replace(plain_augment(1), crop_y=np.float32([y]), crop_x=np.float32([x]), flip=np.array([flip]))


@given(
    height=st.integers(4, 700),
    width=st.integers(4, 700),
    crop=st.integers(4, 60),
    more=st.integers(0, 30),
    y=st.floats(0, 1),
    x=st.floats(0, 1),
    flip=st.booleans(),
    resize=st.sampled_from(["shorter", "exact"]),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
)
@example(
    height=12,
    width=22,
    crop=29,
    more=25,
    y=1.0,
    x=1.0,
    flip=False,
    resize="shorter",
    interpolation="bilinear",
)  # bytes differ by 2
def test_a_region_holds_all_that_the_filter_looks_at(
    height, width, crop, more, y, x, flip, resize, interpolation
):
    """Against PIL: resizing inside the region from edge to edge gives the pixels of resizing everything, then cropping."""
    config = DataConfig(image_size=crop, resize_size=crop + more, resize=resize, interpolation=interpolation)
    sizes, augment = np.array([[height, width]]), augment_at(y, x, flip)
    whole, part = (crop_regions(sizes, augment, config, is_cut=is_cut) for is_cut in (False, True))
    assert (whole.start[0].tolist(), whole.shape[0].tolist()) == ([0, 0], [height, width])
    assert (part.start >= 0).all()
    assert (part.start + part.shape <= sizes).all()
    # As floats: in bytes PIL rounds twice, down the columns and along the rows.
    pixels = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.float32)
    results = []
    for region in (whole, part):
        (top, left), (rows, columns) = region.start[0], region.shape[0]
        near, far = region.near[0].tolist(), region.far[0].tolist()
        if flip:
            near[1], far[1] = far[1], near[1]
        inside = Image.fromarray(pixels[top : top + rows, left : left + columns])
        box = (max(0, near[1]), max(0, near[0]), min(columns, far[1]), min(rows, far[0]))
        found = np.asarray(inside.resize((crop, crop), Image.Resampling[interpolation.upper()], box=box))
        results.append(found)
    assert np.abs(results[0] - results[1]).max() <= 0.1


def test_a_region_is_smaller_than_its_image():
    config = DataConfig(image_size=224, resize_size=256)
    region = crop_regions(np.array([[450, 600]]), plain_augment(1), config, is_cut=True)
    assert region.shape[0].tolist() == [398, 399]  # 224 · 450/256 = 394, and 2 pixels around it


@given(
    height=st.integers(4, 500),
    width=st.integers(4, 500),
    scale=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)).map(sorted),
    ratio=st.tuples(st.floats(0.3, 3), st.floats(0.3, 3)).map(sorted),
    epoch=st.integers(0, 100),
)
def test_a_resized_crop_is_inside_its_image_and_as_allowed(height, width, scale, ratio, epoch):
    config = DataConfig(crop_scale=tuple(scale), crop_ratio=tuple(ratio))
    sizes = np.array([[height, width]] * 5)
    augment = draw_augment(config, 0, epoch, np.arange(5))
    near, far = resized_crop_boxes(sizes, augment, config)
    assert (near >= 0).all()
    assert (far <= sizes).all()
    (tall, wide), area = (far - near).T, height * width
    assert (wide / tall >= ratio[0] * (1 - 1e-6)).all()
    assert (wide / tall <= ratio[1] * (1 + 1e-6)).all()
    # As large as drawn, or as the image lets a crop of that aspect be.
    is_limited = np.isclose(tall, height) | np.isclose(wide, width)
    assert np.isclose(tall * wide, augment.crop_share * area)[~is_limited].all()
    assert (tall * wide <= augment.crop_share * area * (1 + 1e-6)).all()


def test_areas_are_uniform_and_aspects_log_uniform():
    config = DataConfig(crop_scale=(0.2, 0.6))
    augment = draw_augment(config, 0, 0, np.arange(5000))
    near, far = resized_crop_boxes(np.array([[300, 300]] * 5000), augment, config)
    tall, wide = (far - near).T
    share, aspect = tall * wide / 300**2, np.log(wide / tall)
    for values, low, high in ((share, 0.2, 0.6), (aspect, np.log(3 / 4), np.log(4 / 3))):
        for quantile in (0, 0.25, 0.5, 0.75, 1):  # of 5,000: 2 % is three standard errors
            expected = low + quantile * (high - low)
            assert np.quantile(values, quantile) == pytest.approx(expected, abs=0.02 * (high - low))
    for position, room in ((near[:, 0], 300 - tall), (near[:, 1], 300 - wide)):
        assert np.mean(position / room) == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(share, aspect)[0, 1]) < 0.05


def test_a_long_image_gets_the_largest_crop_that_fits():
    config = DataConfig(crop_scale=(1.0, 1.0), crop_ratio=(0.75, 1.25))
    augment = draw_augment(config, 0, 0, np.arange(3))
    near, far = resized_crop_boxes(np.array([[100, 400], [400, 100], [100, 110]]), augment, config)
    assert (far - near) == pytest.approx(np.array([[100, 125], [100 / 0.75, 100], [100, 110]]))


@given(height=st.integers(4, 400), width=st.integers(4, 400), seed=st.integers(0, 99), flip=st.booleans())
def test_the_region_of_a_resized_crop_holds_all_that_the_filter_looks_at(height, width, seed, flip):
    """Against PIL, resizing from the box in the whole image."""
    config = DataConfig(image_size=32, resize_size=32, crop_scale=(0.1, 1.0))
    sizes = np.array([[height, width]])
    augment = replace(draw_augment(config, seed, 0, np.arange(1)), flip=np.array([flip]))
    part = crop_regions(sizes, augment, config, is_cut=True)
    assert (part.start >= 0).all()
    assert (part.start + part.shape <= sizes).all()
    (top, left), (rows, columns) = part.start[0], part.shape[0]
    near, far = part.near[0].tolist(), part.far[0].tolist()
    if flip:
        near[1], far[1] = far[1], near[1]
    (y, x), (y_far, x_far) = (edges[0].tolist() for edges in resized_crop_boxes(sizes, augment, config))
    pixels = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.float32)
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR, box=(x, y, x_far, y_far))
    inside = Image.fromarray(pixels[top : top + rows, left : left + columns])
    box = (max(0, near[1]), max(0, near[0]), min(columns, far[1]), min(rows, far[0]))
    found = inside.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() <= 0.1


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_says_the_upright_size(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (70, 50)).save(buffer, kind, **({"exif": exif} if orientation else {}))
    image = open_upright(buffer.getvalue())
    assert read_plain(memoryview(buffer.getvalue())).size == (image.height, image.width)


def test_a_header_without_a_size_says_none():
    buffer = io.BytesIO()
    Image.new("RGB", (70, 50)).save(buffer, "GIF")
    for data in (buffer.getvalue(), b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\x00"):
        assert read_plain(data) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_is_its_formula_in_channels_last_order(channels):
    config = DataConfig(image_size=7, resize_size=7, channels=channels)
    pixels = torch.randint(0, 256, (5, 7, 7, channels), dtype=torch.uint8)
    found = Normaliser(config, "cpu")(pixels)
    assert (found.dtype, found.shape) == (torch.float32, (5, channels, 7, 7))
    assert found.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values[:channels], dtype=torch.float64) for values in (config.mean, config.std))
    assert (found.permute(0, 2, 3, 1) - (pixels.double() / 255 - mean) / std).abs().max() < 1e-6
