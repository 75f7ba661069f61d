"""`pack(pixel_range=…)`: measured values become 8 bits by a range that the user gives, in the data set and for prediction."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import fsl_dist
from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.formats.depth import DepthError, to_eight_bits
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.pixels import open_upright
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from fsl_dist.image_files import ImageFiles, name_images
from tests.helpers.pictures.files import save

LOW, HIGH = -1024.0, 3071.0
SCAN = np.linspace(-2000, 4000, 40 * 30).reshape(40, 30)
"""Hounsfield units, some outside the range"""
EXPECTED = np.rint((SCAN.clip(LOW, HIGH) - LOW) * 255 / (HIGH - LOW))


def scans():
    """The scan in each form that holds its values, at most one away."""
    yield "float.tif", save(Image.fromarray(SCAN.astype(np.float32)), "TIFF")
    yield "whole.tif", save(Image.fromarray(SCAN.astype(np.int32)), "TIFF")


@pytest.fixture
def source(tmp_path):
    for label in "ab":
        for name, data in scans():
            (tmp_path / "src" / label).mkdir(parents=True, exist_ok=True)
            (tmp_path / "src" / label / name).write_bytes(data)
        Image.fromarray(EXPECTED.astype(np.uint8)).save(tmp_path / "src" / label / "plain.png")
    return tmp_path / "src"


def read_all(dataset):
    catalogue = Catalogue.open(dataset)
    ids = np.arange(catalogue.num_samples)
    store = ShardStore(catalogue)
    try:
        return dict(zip(catalogue.keys(ids), map(bytes, store.read(ids)), strict=True))
    finally:
        store.close()


def test_without_a_range_they_are_bad_samples_that_state_theirs(source, tmp_path):
    report = pack(source, tmp_path / "out", PackOptions(fractions=(1.0, 0.0, 0.0)))
    assert {bad.path: bad.reason.split(";")[0] for bad in report.bad_samples} == {
        f"{label}/{name}.tif": f"is not an image that decodes: its {kind} pixels from -2000 to 4000 do not fit 8 or 16 bits"
        for label in "ab"
        for name, kind in (("float", "float32"), ("whole", "int32"))
    }
    assert all("pack with pixel_range" in bad.reason for bad in report.bad_samples)


@pytest.mark.parametrize("size", [None, 20])
def test_with_a_range_they_are_stored_as_grey_png(source, tmp_path, size):
    options = PackOptions(fractions=(1.0, 0.0, 0.0), pixel_range=(LOW, HIGH), resize_shorter=size)
    assert pack(source, tmp_path / "out", options).bad_samples == ()
    found = read_all(tmp_path / "out")
    assert len(found) == 6
    for key, data in found.items():
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.mode) == ("PNG", "L"), key
        expected = Image.fromarray(EXPECTED.astype(np.uint8))
        if size is not None:
            expected = expected.resize((20, 27), Image.Resampling.BILINEAR)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(expected)).max() <= 1, key
    if size is None:
        assert found["a/plain"] == (source / "a" / "plain.png").read_bytes()
    assert Catalogue.open(tmp_path / "out").options["pixel_range"] == [LOW, HIGH]


def test_an_append_scales_by_the_same_range(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions(pixel_range=(LOW, HIGH)))
    (tmp_path / "more" / "a").mkdir(parents=True)
    (tmp_path / "more" / "a" / "new.tif").write_bytes(dict(scans())["float.tif"])
    append(tmp_path / "more", tmp_path / "out", PackOptions())
    assert np.abs(np.asarray(open_upright(read_all(tmp_path / "out")["a/new"], 1)) - EXPECTED).max() <= 1
    with pytest.raises(RequestError, match=r"leave pixel_range=0\.0:1\.0 out"):
        append(tmp_path / "more", tmp_path / "out", PackOptions(pixel_range=(0, 1)))


@pytest.mark.parametrize("given_range", [(1, 1), (2, 1), (float("nan"), 1), (0, float("inf"))])
def test_a_range_that_is_none_is_refused(given_range):
    with pytest.raises(
        RequestError, match=r"pixel_range\S* must be (two numbers, the smaller first|a finite number)"
    ):
        PackOptions(pixel_range=given_range)
    with pytest.raises(RequestError, match=r"pixel_range\S* must be"):
        fsl_dist.pack("nowhere", "out", pixel_range=given_range)


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), seed=st.integers(0, 9))
def test_scaling_is_its_formula(low, width, seed):
    values = np.float32(low) + np.float32(width) * np.random.default_rng(seed).uniform(
        -0.5, 1.5, (5, 6)
    ).astype(np.float32)
    found = np.asarray(to_eight_bits(Image.fromarray(values), (low, low + width)), dtype=np.float64)
    exact = [
        [min(255.0, max(0.0, (float(v) - low) / ((low + width) - low) * 255)) for v in row] for row in values
    ]
    assert np.abs(found - np.array(exact)).max() <= 0.5 + 1e-6


def test_values_that_are_not_finite_are_refused():
    values = np.array([[0.5, np.nan], [np.inf, 1.0]], dtype=np.float32)
    with pytest.raises(DepthError, match="2 of its 4 float32 pixels are NaN or infinite"):
        to_eight_bits(Image.fromarray(values), (0, 1))


def test_images_from_outside_are_scaled_as_the_data_set_was(tmp_path):
    config = RunConfig()
    config = RunConfig(
        data=type(config.data)(decoder="torchvision", image_size=30, resize_size=30, resize="exact")
    )
    embedder = SimpleNamespace(device="cpu", batch_size=4, dim=1)
    (tmp_path / "scan.tif").write_bytes(dict(scans())["float.tif"])
    Image.fromarray(EXPECTED.astype(np.uint8)).save(tmp_path / "plain.png")
    given_images = [tmp_path / "scan.tif", Image.open(tmp_path / "scan.tif"), tmp_path / "plain.png"]
    with ImageFiles(embedder, config, SimpleNamespace(options={"pixel_range": [LOW, HIGH]})) as files:
        ((rows, batch),) = files.batches(name_images(given_images))
    assert (rows, files.failed) == ([0, 1, 2], [])
    assert (batch[:2] - batch[2]).abs().max() < 0.02
    with ImageFiles(embedder, config, SimpleNamespace(options={"pixel_range": None})) as files:
        ((rows, _),) = files.batches(name_images(given_images))
    assert rows == [2]
    assert {failed.image for failed in files.failed} == {str(tmp_path / "scan.tif"), "images[1]"}
    for failed in files.failed:
        assert failed.reason.startswith(
            "is not an image that decodes: its float32 pixels from -2000 to 4000 do not fit"
        )
