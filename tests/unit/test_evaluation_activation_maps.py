"""Activation maps, Otsu's threshold and Jaccard's index: against plain loops and the definitions."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fsl_dist.data.config import DataConfig
from fsl_dist.evaluation import activation_maps as am
from fsl_dist.evaluation.mask_agreement import crop_mask
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.plots.map_overlay import tint


def reference_map(maps, own, other):
    """CHAI Eq. 2 for one pair."""
    channels, height, width = maps.shape
    found = [[0.0] * width for _ in range(height)]
    for i in range(height):
        for j in range(width):
            for z in range(channels):
                found[i][j] += float(maps[z, i, j]) * (float(own[z]) - float(other[z])) ** 2
    return found


def test_maps_equal_the_loops_and_are_zero_for_equal_embeddings():
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(3, 5, 4, 2)).astype(np.float32)
    own, other = rng.normal(size=(2, 3, 5)).astype(np.float32)
    other[2] = own[2]
    found = am.activation_maps(maps, own, other)
    expected = [reference_map(*pair) for pair in zip(maps, own, other, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-15)
    assert found.dtype == np.float64
    assert not found[2].any()


@pytest.mark.parametrize("name", ["conv4", "mobilenet_v2", "resnet18"])
def test_on_a_network_the_mean_of_the_maps_is_the_weighted_distance(name):
    """mean of QAM = Σ f_z(q)·Δ_z² and mean of RAM = Σ f_z(r)·Δ_z², so their difference is Σ Δ_z³."""
    torch.manual_seed(0)
    network = build_network(BackboneConfig(name=name), sample_shape=(3, 64, 64)).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        f, g = network.embed(images).numpy(), network.feature_maps(images).numpy()
    qam, ram = am.activation_maps(g, f, f[::-1])
    difference = f[0] - f[1]
    assert difference.any()
    assert qam.mean() == pytest.approx(float((f[0] * difference**2).sum()), rel=1e-9)
    assert ram.mean() == pytest.approx(float((f[1] * difference**2).sum()), rel=1e-9)
    assert qam.mean() - ram.mean() == pytest.approx(float((difference**3).sum()), rel=1e-6, abs=1e-12)


def test_upsampling_is_bilinear_between_pixel_centres():
    plane = np.random.default_rng(1).normal(size=(3, 2))
    side = 8
    expected = np.empty((side, side))
    for i in range(side):
        for j in range(side):
            y = min(max((i + 0.5) * 3 / side - 0.5, 0), 2)
            x = min(max((j + 0.5) * 2 / side - 0.5, 0), 1)
            top, left = min(math.floor(y), 1), min(math.floor(x), 0)
            dy, dx = y - top, x - left
            upper = plane[top, left] * (1 - dx) + plane[top, left + 1] * dx
            lower = plane[top + 1, left] * (1 - dx) + plane[top + 1, left + 1] * dx
            expected[i, j] = upper * (1 - dy) + lower * dy
    np.testing.assert_allclose(am.upsample(plane[None], side)[0], expected, atol=1e-12)


def between_variance(values, threshold):
    below = [value for value in values if value <= threshold]
    above = [value for value in values if value > threshold]
    mean = sum(values) / len(values)
    parts = [(len(part), sum(part) / len(part)) for part in (below, above)]
    return sum(count * (of_part - mean) ** 2 for count, of_part in parts) / len(values)


@settings(max_examples=80)
@given(st.lists(st.integers(-20, 20), min_size=2, max_size=30).filter(lambda values: len(set(values)) > 1))
def test_otsu_equals_a_search_over_all_thresholds(values):
    variances = {value: between_variance(values, value) for value in sorted(set(values))[:-1]}
    best = max(variances.values())
    threshold = am.otsu_threshold(np.array(values, dtype=np.float64))
    assert threshold in variances
    assert variances[threshold] == pytest.approx(best, rel=1e-9)
    near_best = [value for value in variances if variances[value] > best * (1 - 1e-9)]
    if len(near_best) == 1:
        assert threshold == near_best[0]


@settings(max_examples=40)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.floats(0.5, 9), st.floats(-50, 50))
def test_the_foreground_depends_on_neither_scale_nor_offset_and_a_constant_map_has_none(values, scale, shift):
    plane = np.round(np.array(values), 3)
    found = am.foreground(plane)
    if np.ptp(plane) == 0:
        assert not found.any()
        return
    assert found.any()
    assert not found.all()
    assert plane[found].min() > plane[~found].max()
    moved = plane * scale + shift
    at_least_as_good = between_variance(moved.tolist(), moved[~am.foreground(moved)].max())
    assert at_least_as_good == pytest.approx(
        between_variance(moved.tolist(), moved[~found].max()), rel=1e-6, abs=1e-9
    )
    scaled = am.scale_to_unit(plane)
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)


def constant_maps(sides):
    """Maps of one value, by what they are: of both signs and any scale, bare and with the noise of float32 sums."""
    rng = np.random.default_rng(4)
    for height, width in sides:
        for value in (0.0, 1.0, -1.0, 0.1, -0.3, 1e-30, -1e30, 12345.678):
            plane = np.full((height, width), value)
            noise = rng.uniform(-4, 4, size=plane.shape) * np.finfo(np.float32).eps
            yield f"{height}×{width} of {value}", plane
            yield f"{height}×{width} of float32 {value}", plane.astype(np.float32)
            yield f"{height}×{width} of {value} with noise", plane * (1 + noise)


@pytest.mark.parametrize("side", [1, 7, 32, 50])
def test_a_constant_map_is_empty_at_any_size(side):
    for name, plane in constant_maps([(1, 1), (1, 3), (2, 2), (3, 5), (7, 7), (14, 14)]):
        assert am.is_constant(plane), name
        for scaled in (am.scale_to_unit(plane), am.scale_to_unit(plane, side)):
            assert not scaled.any(), name
        assert am.scale_to_unit(plane, side).shape == (side, side)
        assert not am.foreground(plane).any(), name
        assert not am.foreground(plane, side).any(), name
        assert not np.asarray(tint(plane, side))[:, :, 3].any(), name


@pytest.mark.parametrize("side", [8, 32, 50])
@pytest.mark.parametrize("ground", [0.0, 5.0, -5.0, 1e-30])
@pytest.mark.parametrize("contrast", [1.0, 1e-5])
@pytest.mark.parametrize("size", [(2, 2), (3, 5), (7, 7)])
def test_one_high_pixel_is_the_foreground(side, ground, contrast, size):
    """However small the contrast: 1e-5 of the ground is five times the rounding that counts as none."""
    plane = np.full(size, ground)
    plane[0, -1] += contrast * (abs(ground) or 1.0)
    assert not am.is_constant(plane)
    scaled = am.scale_to_unit(plane, side)
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(am.foreground(plane), plane == plane[0, -1])
    high = am.foreground(plane, side)
    rows, columns = np.nonzero(high)
    assert high[0, -1]
    assert rows.max() < side / size[0] * 1.5
    assert columns.min() >= side - side / size[1] * 1.5
    np.testing.assert_array_equal(high, am.foreground(am.upsample(plane[None], side)[0]))


def test_jaccard_by_hand():
    first, second = np.array([[1, 1, 0, 0]], dtype=bool), np.array([[0, 1, 1, 0]], dtype=bool)
    none = np.zeros((1, 4), dtype=bool)
    assert am.jaccard(first, second) == pytest.approx(1 / 3)
    assert am.jaccard(first, first) == 1.0
    assert am.jaccard(first, none) == 0.0
    assert am.jaccard(none, none) == 1.0


@pytest.mark.parametrize("resize", ["shorter", "exact"])
def test_a_mask_gets_the_crop_of_its_image(resize):
    """A mask that is its image's own brightness, coarse enough to survive resizing, covers the same pixels."""
    from fsl_dist.data.decode_torchvision import TorchvisionDecoder

    blocks = np.random.default_rng(2).integers(0, 2, size=(6, 8)).astype(np.uint8) * 254
    image = Image.fromarray(blocks.repeat(16, axis=0).repeat(16, axis=1))
    config = DataConfig(
        resize=resize, resize_size=48, image_size=40, channels=1, mean=(0.0,), std=(1.0,), threads=1
    )
    decoder = TorchvisionDecoder(config, device="cpu")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    seen = decoder.decode([buffer.getvalue()], None)[0, 0].numpy()
    decoder.close()
    mask = crop_mask(image, config, 0)
    assert mask.shape == (40, 40)
    is_clear = (seen < 0.02) | (seen > 0.97)  # antialiasing blurs the edges of the blocks
    assert is_clear.mean() > 0.4
    assert (mask == (seen > 0.5))[is_clear].all()


def test_what_is_foreground_of_a_mask():
    values = np.array([[0, 127], [254, 0]], dtype=np.uint8)
    config = DataConfig(resize="exact", resize_size=2, image_size=2)
    grey = Image.fromarray(values)
    assert crop_mask(grey, config, 0).tolist() == [[False, True], [True, False]]
    assert crop_mask(grey, config, 127).tolist() == [[False, False], [True, False]]
    alpha = Image.merge("LA", (grey, Image.new("L", (2, 2), 255)))
    assert crop_mask(alpha, config, 0).tolist() == [[False, True], [True, False]]
    colour = Image.merge("RGB", (Image.new("L", (2, 2)), grey, Image.new("L", (2, 2))))
    assert crop_mask(colour, config, 0).tolist() == [[False, True], [True, False]]
    deep = Image.fromarray(values.astype(np.uint16) * 200)
    assert crop_mask(deep, config, 127 * 200).tolist() == [[False, False], [True, False]]
    assert crop_mask(Image.fromarray(values > 0), config, 0).tolist() == [[False, True], [True, False]]
