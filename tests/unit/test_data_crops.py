"""Regions of crops, sizes by headers, and the normaliser's formula."""

import io

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fsl_dist.data.augment import AugmentParameters, plain_augment
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_regions
from fsl_dist.data.images import open_upright, upright_size
from fsl_dist.data.normalise import Normaliser


def augment_at(y, x, flip):
    ones = np.ones(1, np.float32)
    return AugmentParameters(np.float32([y]), np.float32([x]), np.array([flip]), ones, ones, ones)


@given(
    height=st.integers(4, 700),
    width=st.integers(4, 700),
    crop=st.integers(4, 60),
    more=st.integers(0, 30),
    y=st.floats(0, 1),
    x=st.floats(0, 1),
    flip=st.booleans(),
    resize=st.sampled_from(["shorter", "exact"]),
)
@example(
    height=12, width=22, crop=29, more=25, y=1.0, x=1.0, flip=False, resize="shorter"
)  # bytes differ by 2
def test_a_region_holds_all_that_the_filter_looks_at(height, width, crop, more, y, x, flip, resize):
    """Against PIL: resizing inside the region from edge to edge gives the pixels of resizing everything, then cropping."""
    config = DataConfig(image_size=crop, resize_size=crop + more, resize=resize)
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
        found = np.asarray(inside.resize((crop, crop), Image.Resampling.BILINEAR, box=box))
        results.append(found)
    assert np.abs(results[0] - results[1]).max() <= 0.1


def test_a_region_is_smaller_than_its_image():
    config = DataConfig(image_size=224, resize_size=256)
    region = crop_regions(np.array([[450, 600]]), plain_augment(1), config, is_cut=True)
    assert region.shape[0].tolist() == [398, 399]  # 224 · 450/256 = 394, and 2 pixels around it


@pytest.mark.parametrize("orientation", range(9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_says_the_upright_size(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.new("RGB", (70, 50)).save(buffer, kind, **({"exif": exif} if orientation else {}))
    image = open_upright(buffer.getvalue())
    assert upright_size(memoryview(buffer.getvalue())) == (image.height, image.width)


def test_a_header_without_a_size_says_none():
    buffer = io.BytesIO()
    Image.new("RGB", (70, 50)).save(buffer, "GIF")
    for data in (buffer.getvalue(), b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n\x00"):
        assert upright_size(data) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_normalising_is_its_formula_in_channels_last_order(channels):
    config = DataConfig(image_size=7, resize_size=7, channels=channels)
    pixels = torch.randint(0, 256, (5, 7, 7, channels), dtype=torch.uint8)
    found = Normaliser(config, "cpu")(pixels)
    assert (found.dtype, found.shape) == (torch.float32, (5, channels, 7, 7))
    assert found.is_contiguous(memory_format=torch.channels_last)
    mean, std = (torch.tensor(values[:channels], dtype=torch.float64) for values in (config.mean, config.std))
    assert (found.permute(0, 2, 3, 1) - (pixels.double() / 255 - mean) / std).abs().max() < 1e-6
