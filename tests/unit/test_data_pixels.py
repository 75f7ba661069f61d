"""The pixels of a file, by PIL, against what each format's definition says; both decoders: tests/integration/test_data_decoders.py."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from fsl_dist.data.formats.orientation import find_orientation, make_exif
from fsl_dist.data.images import explain, prepare_encoded
from fsl_dist.data.pixels import open_upright, read_plain, upright_in_memory
from fsl_dist.data.resize import StoredSize
from tests.helpers.pictures import files, table
from tests.helpers.pictures.files import chunk, exif, exif_segment, insert, segment, xmp, xmp_segment
from tests.helpers.pictures.table import turned
from tests.helpers.pictures.values import COLOURS, in_orientation, is_inside, luma

TABLE = table.all_pictures()
SHOWN = {name: one for name, one in TABLE.items() if one.shown is not None}
REFUSED = {name: one for name, one in TABLE.items() if one.shown is None}


def off_by(found, picture, channels):
    """The largest difference to what a picture shows, of `found`, float [48, 48] or [48, 48, 3]."""
    shown = picture.shown
    expected = luma(shown) if channels == 1 else shown if shown.ndim == 3 else shown[..., None].repeat(3, 2)
    assert found.shape == expected.shape
    return np.abs(found - expected)[is_inside(picture.margin)].max()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", SHOWN)
def test_a_file_shows_its_pixels(name, channels):
    found = np.asarray(open_upright(memoryview(SHOWN[name].data), channels), dtype=np.float64)
    assert off_by(found, SHOWN[name], channels) <= 2


@pytest.mark.parametrize("name", SHOWN)
def test_pack_takes_what_is_shown(name):
    prepared = prepare_encoded(SHOWN[name].data, "a.xyz", StoredSize())
    assert prepared.data is SHOWN[name].data
    assert prepared.upright == (48, 48)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_by_name(name):
    said = prepare_encoded(REFUSED[name].data, "a.xyz", StoredSize())
    assert said.startswith("is not an image that decodes: ")
    assert REFUSED[name].refusal.lower() in said.lower()
    assert "\n" not in said


ORIENTATIONS = [*range(1, 9), 0, 9, 65535]


def upright(orientation):
    return orientation if orientation in range(1, 9) else 1


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_turns_in_every_form(container, orientation):
    for order in "<>":
        for kind in (3, 4) if orientation else (3, 4, 8, 9):
            data = turned(container, exif(orientation, order, kind), b"", upright(orientation))
            assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_xmp_turns_where_exif_says_nothing(container, orientation):
    other = 1 + orientation % 8
    silent = exif(300, tag=0x011A)
    for block, text, expected in (
        (b"", xmp(orientation), orientation),
        (b"", xmp(orientation, is_attribute=False), orientation),
        (silent, xmp(orientation), orientation),
        (b"rubbish", xmp(orientation), orientation),
        (exif(other), xmp(orientation), other),
        (exif(0), xmp(orientation), 1),
    ):
        data = turned(container, block, text, expected)
        assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2


XMP_FORMS = (
    b"tiff:Orientation='%d'/>",
    b'tiff:Orientation = "%d" />',
    b"tiff:Orientation\n=\n'%d'/>",
    b'tiff:Orientation=" %d "/>',
    b"><tiff:Orientation> %d </tiff:Orientation></rdf:Description>",
    b"><tiff:Orientation\n>\n%d\n</tiff:Orientation\n></rdf:Description>",
    b"><tiff:Orientation rdf:parseType='Literal'>%d</tiff:Orientation></rdf:Description>",
)


@pytest.mark.parametrize("form", XMP_FORMS)
@pytest.mark.parametrize("name", [b"tiff", b"t.1"])
def test_xmp_turns_in_every_form_of_xml(form, name):
    """The forms in which XML may write one attribute or one element, under either name of the namespace."""
    head = b"<rdf:Description rdf:about='' xmlns:tiff = \"http://ns.adobe.com/tiff/1.0/\" "
    for orientation in range(1, 9):
        text = (
            (head + form % orientation).replace(b"tiff:", name + b":").replace(b":tiff ", b":" + name + b" ")
        )
        assert find_orientation(b"", text) == orientation
        for container in ("JPEG", "PNG", "WEBP"):
            data = turned(container, b"", text, orientation)
            assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2
        page = files.save(files.as_image(in_orientation(COLOURS, orientation)), "TIFF", tiffinfo={700: text})
        big = files.save(
            files.as_image(in_orientation(COLOURS, orientation)), "TIFF", tiffinfo={700: text}, big_tiff=True
        )
        for data in (page, big):
            assert np.array_equal(np.asarray(open_upright(data)), COLOURS)
    for value in (0, 9, 30, 66):
        assert find_orientation(b"", head + form % value) == 1
    assert find_orientation(b"", head + b"notiff:Orientation='6'") == 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_is_turned_by_its_properties_alone(orientation):
    """PIL writes the orientation of `exif` as `irot` and `imir`; the XMP says another one."""
    stored = files.as_image(in_orientation(COLOURS, orientation))
    for other in range(1, 9):
        options = {"exif": exif(orientation)} if orientation > 1 else {}
        data = files.save(stored, "AVIF", quality=100, subsampling="4:4:4", xmp=xmp(other), **options)
        for found in (open_upright(data), upright_in_memory(Image.open(io.BytesIO(data)))):
            assert np.abs(np.asarray(found).astype(int) - COLOURS).max() <= 2


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("is_big", [False, True])
def test_a_cut_tiff_is_called_cut(order, is_big):
    if is_big and order == ">":
        data = b"MM\0+\0\x08\0\0" + bytes(60)
        assert "big-endian BigTIFF, which is not read" in prepare_encoded(data, "a", StoredSize())
        return
    whole = (
        files.save(files.as_image(COLOURS), "TIFF", big_tiff=True)
        if is_big
        else files.tiff(COLOURS, 8, 2, order=order)
    )
    for stop in (8, 12, 17, 40, 1000, 4000, len(whole) - 60):
        said = prepare_encoded(whole[:stop], "a", StoredSize())
        assert "()" not in said
        assert "cut" in said or "truncated" in said, said


@pytest.mark.parametrize("orientation", range(1, 9))
def test_tiff_avif_and_raw_profiles_turn(orientation):
    stored = in_orientation(COLOURS, orientation)
    tag = [(274, 3, [orientation])]
    raw = f"\nexif\n{26 + 6:8}\n{(b'Exif' + bytes(2) + exif(orientation)).hex()}\n".encode()
    plain = files.save(files.as_image(stored), "PNG")
    name = b"Raw profile type exif\0"
    for data in (
        files.tiff(stored, 8, 2, tags=tag),
        files.tiff(stored, 8, 2, order=">", tags=tag),
        files.save(files.as_image(stored), "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}),
        files.save(files.as_image(stored), "AVIF", quality=100, subsampling="4:4:4", exif=exif(orientation)),
        files.before_pixels(plain, chunk(b"tEXt", name + raw)),
        files.before_pixels(plain, chunk(b"zTXt", name + b"\0" + zlib.compress(raw))),
        plain[:-12] + chunk(b"eXIf", exif(orientation)) + plain[-12:],
        plain[:-12]
        + chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp(orientation)))
        + plain[-12:],
    ):
        assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2


BROKEN_EXIF = {
    "rubbish": b"\xff" * 30,
    "head only": b"MM\0*\0\0",
    "two bytes": b"MM",
    "empty": b"",
    "directory behind the end": b"MM\0*\0\0\xff\xff",
    "directory at its own head": b"MM\0*\0\0\0\0",
    "entries without end": b"II*\0\x08\0\0\0\xff\xff" + bytes(24),
    "two values": exif(6, count=2),
    "text": struct.pack(">4sIHHHI4sI", b"MM\0*", 8, 1, 0x0112, 2, 2, b"6\0", 0),
    "a byte": exif(6, kind=1),
    "unknown type": struct.pack(">4sIHHHIII", b"MM\0*", 8, 1, 0x0112, 99, 1, 6, 0),
    "another byte order mark": b"XX" + exif(6)[2:],
}


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", BROKEN_EXIF)
def test_metadata_that_cannot_be_read_turns_nothing(container, name):
    data = turned(container, BROKEN_EXIF[name], b"<x tiff:Orientation=", 1)
    if not BROKEN_EXIF[name]:
        data = turned("JPEG", b"", b"", 1) if container == "WEBP" else data
    assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2
    assert not isinstance(prepare_encoded(data, "a", StoredSize()), str)


def test_repeated_blocks_are_read_as_pil_reads_them():
    plain = files.save(files.as_image(COLOURS), "JPEG")
    for parts in (
        [exif_segment(exif(6)), exif_segment(exif(3))],
        [exif_segment(exif(300, tag=0x011A)), exif_segment(exif(3))],
        [xmp_segment(xmp(6)), xmp_segment(xmp(3))],
        [xmp_segment(xmp(6)), exif_segment(exif(8))],
    ):
        data = insert(plain, *parts)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
        assert np.array_equal(np.asarray(open_upright(data)), np.asarray(expected))


@given(st.binary(max_size=80), st.binary(max_size=60))
def test_orientation_is_never_an_error(block, text):
    for exif_block in (block, b"MM\0*\0\0\0\x08" + block, b"II*\0\x08\0\0\0" + block, b"Exif\0\0" + block):
        assert find_orientation(exif_block, b"tiff:Orientation=" + text) in range(1, 9)


@given(
    orientation=st.integers(0, 12),
    place=st.integers(0, 25),
    bits=st.integers(1, 255),
    order=st.sampled_from("<>"),
)
def test_changed_exif_is_what_pil_makes_of_it_or_turns_nothing(orientation, place, bits, order):
    block = bytearray(exif(orientation, order))
    block[place] ^= bits
    read = Image.Exif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read.load(bytes(block))
            expected = read.get(0x0112, 1)
    except Exception:  # PIL gives up
        expected = 1
    expected = int(expected) if expected in range(1, 9) else 1
    assert find_orientation(bytes(block), b"") in (expected, 1)
    if block[16:18] in (b"\0\3", b"\3\0", b"\0\4", b"\4\0"):
        assert find_orientation(bytes(block), b"") == expected


def test_the_exif_that_decoders_are_given_says_its_orientation():
    for orientation in range(1, 9):
        assert find_orientation(make_exif(orientation), b"") == orientation
        read = Image.Exif()
        read.load(make_exif(orientation))
        assert dict(read) == {0x0112: orientation}


@settings(max_examples=150)
@given(data=st.data())
def test_changed_metadata_never_loses_a_picture(data):
    """Any bytes in place of a metadata segment's content: the same pixels, in one of eight orientations."""
    container = data.draw(st.sampled_from(["JPEG", "PNG"]))
    marker = data.draw(st.integers(0xE0, 0xEF).filter(lambda marker: marker not in (0xE0, 0xEE)))
    head = data.draw(
        st.sampled_from([b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0", b"MPF\0", b""])
    )
    body = head + data.draw(st.binary(max_size=50))
    kind = data.draw(
        st.sampled_from([b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"tRNS", b"acTL", b"abCd"])
    )
    plain = files.save(files.as_image(COLOURS), container)
    changed = (
        insert(plain, segment(marker, body))
        if container == "JPEG"
        else files.before_pixels(plain, chunk(kind, body))
    )
    pixels = np.asarray(open_upright(plain))
    found = np.asarray(open_upright(changed))
    assert any(np.array_equal(in_orientation(found, turn), pixels) for turn in range(1, 9))


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 3)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_thin_pictures_decode(shape, kind):
    pixels = np.full((*shape, 3), 130, dtype=np.uint8)
    found = np.asarray(open_upright(files.save(Image.fromarray(pixels), kind)))
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - 130).max() <= 2


@pytest.mark.parametrize(
    "name",
    [name for name in SHOWN if not name.startswith(("PNG broken", "PNG text", "JPEG without its end"))],
)
def test_an_opened_image_shows_what_its_file_shows(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL, of odd files
        try:
            opened = Image.open(io.BytesIO(SHOWN[name].data))
        except Exception:
            pytest.skip("PIL does not open it")
        found = upright_in_memory(opened)
    assert off_by(np.asarray(found, dtype=np.float64), SHOWN[name], 3) <= 2


def test_an_opened_image_of_other_depths_states_its_range():
    for pixels in (
        np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8),
        np.arange(-9, 55, dtype=np.int32).reshape(8, 8),
    ):
        with pytest.raises(ValueError, match=r"pixels from .* do not fit 8 or 16 bits"):
            upright_in_memory(Image.fromarray(pixels))


def test_pil_decodes_what_is_not_known_to_agree():
    found = {name for name, one in TABLE.items() if read_plain(one.data) is not None}
    assert all(name.startswith(("JPEG", "PNG")) for name in found)
    words = (
        "CMYK",
        "YCCK",
        "16",
        "12 bits",
        "arithmetic",
        "lossless",
        "hierarchical",
        "LS",
        "R G B",
        "JPEG Adobe transform 0",
    )
    assert [name for name in found for word in words if word in name] == []
    assert not {"JPEG cut", "JPEG without its end", "PNG cut"} & found
    assert {"JPEG progressive", "JPEG CMYK", "PNG gAMA 45455, grey", "PNG palette 4"} & found == {
        "JPEG progressive", "PNG gAMA 45455, grey", "PNG palette 4"
    }  # fmt: skip
    for name in ("JPEG progressive", "JPEG grey", "PNG RGB 8"):
        plain = read_plain(TABLE[name].data)
        assert plain.content == TABLE[name].data  # nothing is in the way
        assert plain.size == (48, 48)


def test_errors_without_a_text_are_named():
    assert explain(MemoryError()) == "MemoryError"


def test_the_documented_table_of_formats_is_the_tested_one():
    page = (Path(__file__).parents[2] / "docs" / "reference" / "data_format.md").read_text(encoding="utf-8")
    rows = page.split("| format | read | refused by name |")[1].split("\n\n")[0].splitlines()[2:]
    documented = {name for row in rows for name in row.split("|")[1].strip().split(", ")}
    others = {"PFM", "JPEG XL", "HEIF", "DICOM", "EPS", "no image"}
    for name in TABLE:
        is_other = any(name.startswith(other) for other in others)
        assert is_other or max(documented, key=lambda known: len(known) * name.startswith(known)) in name, (
            name
        )
    for known in documented:
        assert any(name.startswith(known) for name in SHOWN), known


def test_avif_of_broken_exif_keeps_its_picture():
    plain = files.as_image(COLOURS)
    whole = files.save(plain, "AVIF", quality=100, subsampling="4:4:4", exif=exif(300, tag=0x011A))
    start = whole.index(exif(300, tag=0x011A)[:8])
    for block in BROKEN_EXIF.values():
        data = whole[:start] + block[:26].ljust(26, b"\0") + whole[start + 26 :]
        assert np.abs(np.asarray(open_upright(data)).astype(int) - COLOURS).max() <= 2


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("tag", [274, 282, 305, 700, 0x8769, 0x8825, 34675, 37724])
def test_tiff_of_broken_tags_keeps_its_picture(tag, order):
    """Any bytes in the entry of a tag that pixels do not follow from: the same pixels, in one of eight orientations."""
    tags = [
        (274, 3, [1]),
        (282, 4, [72]),
        (305, 1, [65, 66]),
        (700, 1, [60, 62]),
        (0x8769, 4, [8]),
        (0x8825, 4, [8]),
    ]
    tags += [(34675, 1, [1] * 9), (37724, 1, [1] * 9)]
    whole = files.tiff(COLOURS, 8, 2, order=order, tags=tags)
    entry = whole.index(struct.pack(order + "H", tag), 8 + COLOURS.size)
    draw = np.random.default_rng(tag)
    for _ in range(30):
        changed = bytearray(whole)
        for place in draw.integers(2, 12, 3):
            changed[entry + place] = draw.integers(256)
        found = np.asarray(open_upright(bytes(changed)))
        assert any(np.array_equal(in_orientation(found, turn), COLOURS) for turn in range(1, 9))
