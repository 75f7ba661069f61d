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
from fsl_dist.data.images import prepare_encoded
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.pixels import open_upright
from fsl_dist.data.resize import StoredSize
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from fsl_dist.image_files import ImageFiles, name_images
from tests.helpers.pictures.files import before_pixels, chunk, exif, interlaced_png, png_of, save, tiff

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


@pytest.mark.parametrize("is_interlaced", [False, True])
@pytest.mark.parametrize("pixel_range", [None, (12850.0, 50000.0), (0.0, 300.0)])
@pytest.mark.parametrize("top", [255, 256, 65535])
def test_grey_with_alpha_of_16_bits_is_as_grey_of_16_bits(top, pixel_range, is_interlaced):
    """PNG, as packed and as decoded: alpha is dropped, whatever it is."""
    grey = np.linspace(0, top, 24 * 16).reshape(24, 16, 1).astype(np.uint16)
    alpha = np.linspace(65535, 0, grey.size).reshape(grey.shape).astype(np.uint16)
    write = interlaced_png if is_interlaced else png_of
    files = [write(grey, 16, 0), write(np.concatenate([grey, alpha], 2), 16, 4)]
    files.append(before_pixels(files[1], chunk(b"eXIf", exif(6))))
    shown = [np.asarray(open_upright(data, 1, pixel_range)) for data in files]
    expected = grey[..., 0] if top == 255 else grey[..., 0] >> 8
    if pixel_range is not None:
        low, high = pixel_range
        expected = np.floor((grey[..., 0].clip(low, high) - low) * 255 / (high - low) + 0.5)
    assert np.array_equal(shown[0], expected)
    assert np.array_equal(shown[1], shown[0])
    assert np.array_equal(shown[2], np.rot90(shown[0], -1))
    if pixel_range is not None:
        prepared = prepare_encoded(files[1], "a.png", StoredSize(), pixel_range=pixel_range)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(prepared.data))), expected)


@pytest.mark.parametrize("colour", [2, 6])
def test_colours_of_16_bits_that_hold_8_are_refused_not_black(colour):
    """PIL reads their upper bytes, which are zero."""
    low = np.arange(8 * 8 * 3, dtype=np.uint16).reshape(8, 8, 3)
    if colour == 6:
        low = np.concatenate([low, np.full((8, 8, 1), 65535, dtype=np.uint16)], 2)
    extra = (2,) if colour == 6 else ()
    for write in (
        lambda samples: png_of(samples, 16, colour),
        lambda samples: tiff(samples, 16, 2, extra=extra),
    ):
        said = prepare_encoded(write(low), "a", StoredSize())
        assert "its colours of 16 bits are all below 256" in said
        low[3, 4, 1] += 256
        assert not isinstance(prepare_encoded(write(low), "a", StoredSize()), str)
        low[3, 4, 1] -= 256


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
        assert "pack with" not in failed.reason  # that data set is packed
        assert failed.reason.endswith("convert it to 8 or 16 bits as the images of the data set are")


def test_images_from_outside_that_lack_pixels_are_named(tmp_path, capfd):
    """Not decoded by DALI, whose libpng and libjpeg write lines that name no file."""
    whole = png_of(np.arange(900).reshape(30, 30, 1) % 256, 8, 0)
    place = whole.index(b"IEND") - 8
    photo = save(Image.fromarray(EXPECTED.astype(np.uint8)), "JPEG")
    for name, data in {
        "checksum.png": whole[:place] + b"!" + whole[place + 1 :],
        "palette.png": png_of(np.arange(900).reshape(30, 30, 1) % 2, 8, 3),
        "cut.jpg": photo[:-30].rstrip(b"\xff") + b"\xff\xd9",
        "whole.png": whole,
    }.items():
        (tmp_path / name).write_bytes(data)
    given_images = sorted(tmp_path.iterdir())
    data = type(RunConfig().data)(image_size=30, resize_size=30, resize="exact")
    embedder = SimpleNamespace(device="cpu", batch_size=4, dim=1)
    with ImageFiles(embedder, RunConfig(data=data), SimpleNamespace(options={})) as files:
        ((rows, _),) = files.batches(name_images(given_images))
    assert rows == [3]
    assert [failed.image for failed in files.failed] == [str(path) for path in given_images[:3]]
    assert capfd.readouterr() == ("", "")
