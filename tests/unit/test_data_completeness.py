"""Pictures that lose their last pixels are bad samples, whatever closes the file; those that only lose the end are not."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from fsl_dist.data.images import prepare_encoded
from fsl_dist.data.masks import prepare_mask
from fsl_dist.data.pixels import decode_turned
from fsl_dist.data.resize import StoredSize
from tests.helpers.pictures.files import as_image, chunk, interlaced_png, png, png_of, save, with_frame
from tests.helpers.pictures.values import COLOURS, NUMBERS, PALETTE

END = b"\xff\xd9"
PHOTO = Image.fromarray(
    np.random.default_rng(0).integers(20, 236, (6, 8, 3), dtype=np.uint8)
).resize((256, 192), Image.Resampling.BICUBIC)  # fmt: skip
WAYS = {
    "baseline": {},
    "4:4:4": {"subsampling": 0, "quality": 97},
    "own tables": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 3},
    "restarts of rows": {"restart_marker_rows": 1, "quality": 30},
}
JPEGS = {name: save(PHOTO, "JPEG", **options) for name, options in WAYS.items()}
JPEGS["grey"] = save(PHOTO.convert("L"), "JPEG")
JPEGS["CMYK"] = save(PHOTO.convert("CMYK"), "JPEG")


def reason(data):
    prepared = prepare_encoded(data, "a", StoredSize())
    return prepared if isinstance(prepared, str) else None


def taller(frame):
    frame[5:7] = struct.pack(">H", struct.unpack(">H", frame[5:7])[0] + 64)


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("part", [0.6, 0.8, 0.95])
def test_a_jpeg_without_its_last_pixels_says_so(name, part):
    whole = JPEGS[name]
    kept = whole[: int(len(whole) * part)]
    zeros = bytes(len(whole) - len(kept))
    for data in (kept, kept.rstrip(b"\xff") + END, kept + zeros, kept + zeros[2:] + END):
        said = reason(data)
        assert said is not None
        assert "ends before its last pixel" in said or "zero bytes in place of its last pixels" in said


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_of_fewer_rows_than_it_states_says_so(name):
    assert reason(with_frame(JPEGS[name], taller)) == "ends before its last pixel"


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_shows_all_pixels(name):
    whole = JPEGS[name]
    expected = np.asarray(decode_turned(whole).image)
    zeros, rubbish = bytes(300), b"rubbish" * 9
    for data in (whole[:-2], whole[:-1], whole[:-2] + zeros + END, whole[:-2] + zeros, whole + rubbish):
        assert reason(data) is None
        assert np.array_equal(np.asarray(decode_turned(data).image), expected)


@pytest.mark.parametrize("value", [0, 128, 255])
@pytest.mark.parametrize("way", ["baseline", "own tables", "progressive", "restarts"])
def test_flat_pictures_whose_codes_are_zeros_are_whole(value, way):
    whole = save(Image.new("RGB", (1600, 1200), (value,) * 3), "JPEG", **WAYS[way])
    assert reason(whole) is None
    assert reason(whole[:-2]) is None


def rows_of(samples):
    return b"".join(b"\0" + row.tobytes() for row in samples)


def png_with(*pixels):
    """The picture's header with these chunks in place of its own pixels."""
    whole = png_of(COLOURS, 8, 2)
    return whole[:33] + b"".join(pixels) + chunk(b"IEND")


def test_a_png_without_its_last_rows_says_so():
    rows = rows_of(COLOURS)
    for part in (0, 1, len(rows) // 2, len(rows) - 1):
        data = png_with(chunk(b"IDAT", zlib.compress(rows[:part])))
        assert reason(data) is not None
        assert "ends before its last pixel" in reason(data) or "truncated" in reason(data)
    assert "truncated" in reason(png_with(chunk(b"IDAT", zlib.compress(rows)[:-40])))


def test_a_png_whose_checksums_are_wrong_says_so():
    whole = png_of(COLOURS, 8, 2)
    place = whole.index(b"IEND") - 8
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    assert reason(changed) == "is damaged: its chunk IDAT has another checksum than it states"


def test_a_png_of_a_palette_needs_it():
    numbers = NUMBERS[..., None]
    assert reason(png_of(numbers, 8, 3)) == "has no palette (chunk PLTE), from which its colours follow"
    assert reason(png_of(numbers, 8, 3, chunk(b"PLTE", PALETTE.tobytes()))) is None


def test_a_png_in_many_chunks_is_whole():
    stream = zlib.compress(rows_of(COLOURS) + b"more")
    parts = [chunk(b"IDAT", stream[start : start + 7]) for start in range(0, len(stream), 7)]
    assert reason(png_with(chunk(b"IDAT"), *parts, chunk(b"IDAT"))) is None


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (9, 17)])
def test_interlaced_and_thin_pngs_are_whole(depth, shape):
    samples = np.arange(shape[0] * shape[1]).reshape(*shape, 1) % 2**depth
    assert reason(png_of(samples, depth, 0)) is None
    if min(shape) >= 5:
        assert reason(interlaced_png(samples, depth, 0)) is None
    short = png(b"\0", shape[1], shape[0], depth, 0, interlaced=True)
    assert reason(short) is not None


def test_a_damaged_mask_says_so():
    whole = png_of(NUMBERS[..., None], 8, 0)
    place = whole.index(b"IEND") - 8
    changed = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    assert (
        prepare_mask(changed, (48, 48), None)
        == "is damaged: its chunk IDAT has another checksum than it states"
    )


def test_a_mask_of_16_bits_may_number_few_objects():
    numbers = png_of(COLOURS, 16, 2)
    assert prepare_mask(numbers, (48, 48), None) is numbers
    assert "all below 256" in prepare_mask(numbers, (48, 48), (24, 24))


def test_other_formats_are_not_asked():
    for kind in ("GIF", "BMP", "WEBP", "TIFF", "PPM"):
        assert reason(save(as_image(COLOURS), kind)) is None
