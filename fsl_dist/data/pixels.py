"""The pixels of an image file: one definition for both decoders, `pack` and prediction.

docs/reference/data_format.md has it as a table of formats. In short: the first frame, turned upright by EXIF or
otherwise XMP; colours as stored, without colour management, gamma and alpha; grey by the luma of ITU-R BT.601; 8 bits
per sample. Unreadable metadata is ignored. PIL decodes by this definition (`open_upright`). Files for which DALI is
known to read the same pixels go to DALI without their metadata (`read_plain`). No torch here.
"""

import io
import re
import struct
import warnings
from contextlib import suppress
from dataclasses import dataclass

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from fsl_dist.data.formats.completeness import find_gap_of_jpeg
from fsl_dist.data.formats.depth import PixelRange, join_bytes, to_eight_bits
from fsl_dist.data.formats.jpeg import JPEG_MAGIC, JpegFile, declared_size_of_jpeg, read_jpeg
from fsl_dist.data.formats.orientation import BYTE_ORDERS, SWAPPING, TURNS, find_orientation
from fsl_dist.data.formats.png import PNG_MAGIC, PngFile, read_png
from fsl_dist.data.formats.tiff import strip_tiff

Encoded = bytes | memoryview
"""An image file's content."""

MAX_PIXELS = 178_956_970
"""most pixels an image may declare by default: half a GiB as RGB, and what PIL itself decodes at most"""

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
"""PIL's names of the supported formats, those first that it always loads; its other formats run other programs (EPS)
or are not tested here"""

# First bytes, or bytes at an offset, of formats that people have and that are not read.
_FOREIGN = (
    (0, b"\xff\x0a", "JPEG XL"),
    (4, b"JXL \r\n\x87\n", "JPEG XL"),
    (4, b"ftyphei", "HEIF"),
    (4, b"ftyphev", "HEIF"),
    (4, b"ftypmif1", "HEIF"),
    (0, b"II\xbc", "JPEG XR"),
    (128, b"DICM", "DICOM"),
    (0, b"%!PS", "EPS"),
    (0, b"8BPS", "Photoshop"),
)
# Of TIFF.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _SUBSAMPLING = 256, 257, 258, 259, 262, 284, 530
_RGB, _YCBCR, _JPEG_IN_TIFF, _XMP = 2, 6, (6, 7), 700
_LAYOUT = {
    "BitsPerSample": _BITS, "SampleFormat": 339, "PhotometricInterpretation": _PHOTOMETRIC,
    "PlanarConfiguration": _PLANAR, "YCbCrSubSampling": _SUBSAMPLING,
}  # fmt: skip
# PIL's names of 16-bit PNG pixels, of which it returns the upper 8 bits.
_DEEP_PNG = ("LA;16B", "RGB;16B", "RGBA;16B")
# An entry of the table of items (ISO/IEC 14496-12, infe of version 2 or 3) for EXIF.
_EXIF_ITEM = re.compile(rb"(infe(?:\x02...|\x03.....)....)Exif", re.DOTALL)
_SUB_DIRECTORIES = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo, ExifTags.IFD.Interop)

# PIL warns from half of MAX_PIXELS on, where the limit here is the rule, and of metadata, which decides nothing but a
# turn.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image file's pixels, upright, before they are made RGB or grey."""

    image: Image.Image
    """in PIL's mode for the file"""
    format: str
    """one of FORMATS"""
    is_turned: bool
    """whether the file stores them another way round"""


def decode_turned(encoded: Encoded, *, is_grey: bool = False, may_be_dark: bool = False) -> DecodedImage:
    """Decode the first frame with PIL and turn it upright; colours and depth are those of the file.

    `is_grey` skips the chroma of a JPEG: its grey is the stored luma. `may_be_dark` allows 16-bit colours that are
    all below 256, of which nothing remains here.

    Raises ValueError with the reason for an unsupported file, and PIL's errors for damaged pixels.
    """
    found = _read_header(encoded)
    if isinstance(found, JpegFile) and found.refusal:
        raise ValueError(found.refusal)
    if isinstance(found, JpegFile) and found.has_huffman_codes and not found.read_scans().is_ended:
        if gap := find_gap_of_jpeg(found):
            raise ValueError(f"it is truncated: it {gap}")
        found = found.closed()
    bare, orientation = _strip(encoded) if found is None else (found.without_metadata(), found.orientation)
    samples = found.as_bytes_of_samples() if isinstance(found, PngFile) else None
    try:
        opened = Image.open(io.BytesIO(samples or bare), formats=FORMATS)
    except Exception as error:  # of a cut TIFF, PIL raises several types
        is_tiff = bytes(encoded[:4]) in TiffImagePlugin.PREFIXES
        if is_tiff or isinstance(error, UnidentifiedImageError):
            raise ValueError(_name_unknown(encoded)) from error
        raise
    image_format = opened.format or ""
    if isinstance(opened, TiffImagePlugin.TiffImageFile):
        is_turned = _load_tiff(opened, orientation, may_be_dark)
        return DecodedImage(opened, image_format, is_turned)
    if is_grey and isinstance(found, JpegFile) and not found.is_lossless:
        opened.draft("L", None)
    opened.load()
    if isinstance(found, PngFile) and found.depth == 16 and found.colour in (2, 6) and not may_be_dark:
        _check_is_not_dark(opened)
    orientation = orientation or _orientation_of(opened)
    image = opened if samples is None else join_bytes(opened)
    return DecodedImage(turn(image, orientation), image_format, orientation != 1)


def _check_is_not_dark(image: Image.Image) -> None:
    """Raise ValueError if nothing remains of 16-bit colours, of which PIL returns the upper 8 bits."""
    if all(high == 0 for _, high in [band.getextrema() for band in image.split()[:3]]):
        raise ValueError(
            "its colours of 16 bits are all below 256, so that their upper 8 bits are black; convert it to 8 bits"
        )


def _read_header(encoded: Encoded) -> JpegFile | PngFile | None:
    """Parse the header of a JPEG or PNG file; None for other files, and if it is truncated."""
    head = bytes(encoded[:8])
    if head.startswith(JPEG_MAGIC):
        return read_jpeg(encoded)
    return read_png(encoded) if head == PNG_MAGIC else None


def _strip(encoded: Encoded) -> tuple[Encoded, int | None]:
    """A file without metadata that could prevent PIL from decoding it, and its orientation; None:
    PIL has to find it."""
    head = bytes(encoded[:8])
    if head[:4] in BYTE_ORDERS:
        return strip_tiff(bytes(encoded)) or (encoded, None)
    if head[4:] == b"ftyp":  # AVIF, where EXIF does not turn: that is a property of the picture
        return _EXIF_ITEM.sub(rb"\1none", bytes(encoded)), None
    return encoded, None


def open_upright(encoded: Encoded, channels: int = 3, pixel_range: PixelRange | None = None) -> Image.Image:
    """Read the pixels of an image file, mode RGB (channels 3) or L (1).

    Args:
        encoded: the file's content.
        channels: 3 or 1.
        pixel_range: scaling of grey pixels of more than 8 bits (`to_eight_bits`).

    Raises:
        ValueError: the file's format, depth or colours are not supported; the message says which.
        Exception: PIL's errors for damaged pixels.
    """
    return to_colours(
        to_eight_bits(decode_turned(encoded, is_grey=channels == 1).image, pixel_range), channels
    )


def to_colours(image: Image.Image, channels: int) -> Image.Image:
    """An image of 8-bit samples as mode RGB (channels 3) or L (1): alpha dropped, colours under it as stored."""
    if image.mode in ("La", "RGBa"):  # multiplied by alpha
        image = image.convert(image.mode.replace("a", "A"))
    if image.mode == "LAB":  # PIL's only conversion from this mode
        image = image.convert("RGB")
    if "transparency" in image.info:  # PIL warns, or applies it, if it is converted in one step
        image = image.copy()
        del image.info["transparency"]
    return image.convert("RGB" if channels == 3 else "L")


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """A loaded image, turned upright by this orientation."""
    method = TURNS.get(orientation)
    return image if method is None else image.transpose(method)


def upright_in_memory(
    image: Image.Image, channels: int = 3, pixel_range: PixelRange | None = None
) -> Image.Image:
    """The pixels of an image that PIL opened or created, as `open_upright` returns them for a file. Same errors.

    If PIL has loaded grey with alpha or 16-bit colours, only the upper 8 bits are available.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _load_tiff(image)
    elif (
        isinstance(image, PngImagePlugin.PngImageFile)
        and image.fp is not None
        and image.tile
        and image.tile[0].args in _DEEP_PNG
    ):
        position = image.fp.tell()
        image.fp.seek(0)
        content = image.fp.read()
        image.fp.seek(position)
        image = decode_turned(content).image
    else:
        image.load()
        image = turn(image, _orientation_of(image))
    return to_colours(to_eight_bits(image, pixel_range), channels)


def _orientation_of(opened: Image.Image) -> int:
    """The orientation by the blocks that PIL found in the file.
    An image made in memory may have EXIF that it was not opened with."""
    exif, xmp = opened.info.get("exif"), opened.info.get("XML:com.adobe.xmp") or opened.info.get("xmp")
    if opened.format == "AVIF":  # `irot` and `imir` turn it, which PIL states as EXIF
        return find_orientation(exif if isinstance(exif, bytes) else b"", b"")
    xmp = xmp.encode() if isinstance(xmp, str) else xmp
    if not isinstance(exif, bytes):
        exif = b""
        with suppress(Exception):  # PIL raises a dozen types for metadata that it cannot read
            exif = opened.getexif().tobytes()
    return find_orientation(exif, xmp if isinstance(xmp, bytes) else b"")


def _load_tiff(
    opened: TiffImagePlugin.TiffImageFile, orientation: int | None = None, may_be_dark: bool = False
) -> bool:
    """Decode a TIFF and turn it in place, as PIL does while loading; return whether it was turned.

    `orientation` None: the one that PIL finds in the file. Unreadable directories are skipped.
    """
    if _is_misread(opened):
        raise ValueError(_describe_tiff(opened.tag_v2))
    found: object = None
    with suppress(Exception):  # as above; what PIL has once tried to read it does not read again
        found = opened.getexif().get(ExifTags.Base.Orientation)
    if found is None and isinstance(xmp := opened.tag_v2.get(_XMP), bytes):
        orientation = orientation or find_orientation(b"", xmp)
    exif = opened.getexif()
    for directory in _SUB_DIRECTORIES:
        try:
            exif.get_ifd(directory)
        except Exception:  # the same
            exif.pop(directory, None)
    if orientation is not None:
        exif[ExifTags.Base.Orientation] = found = orientation
    opened.load()
    tags = opened.tag_v2
    if tags.get(_PHOTOMETRIC) == _RGB and max(tags.get(_BITS, (1,))) == 16 and not may_be_dark:
        _check_is_not_dark(opened)
    return found in TURNS


def _is_misread(opened: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether PIL decodes a TIFF to wrong pixels: planes of 16 bits, and raw YCbCr with fewer chroma samples."""
    tags = opened.tag_v2
    if tags.get(_PLANAR) == 2 and max(tags.get(_BITS, (1,))) > 8:
        return True
    is_jpeg = tags.get(_COMPRESSION) in _JPEG_IN_TIFF
    return tags.get(_PHOTOMETRIC) == _YCBCR and not is_jpeg and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1)


def _describe_tiff(tags: TiffImagePlugin.ImageFileDirectory_v2) -> str:
    found = ", ".join(f"{name} {tags[tag]}" for name, tag in _LAYOUT.items() if tag in tags)
    if tags.prefix == b"MM":
        found += ", big-endian"
    return f"it is a TIFF with an unsupported pixel layout ({found}); convert it to grey or RGB of 8 or 16 bits, stored pixel by pixel"


def _name_unknown(encoded: Encoded) -> str:
    """Why PIL does not know a file."""
    head = bytes(encoded[:160])
    for start, magic, name in _FOREIGN:
        if head[start : start + len(magic)] == magic:
            return f"its format is {name}, which is not read; convert it to PNG, JPEG or TIFF"
    if head[:4] in TiffImagePlugin.PREFIXES:
        if head[:4] == b"MM\0+":
            return "it is a big-endian BigTIFF, which is not read; convert it to TIFF, or to little-endian BigTIFF"
        tags = None
        with suppress(Exception):
            tags = TiffImagePlugin.ImageFileDirectory_v2(head[: 16 if head[2] == 43 else 8])
            file = io.BytesIO(encoded)
            file.seek(tags.next)
            tags.load(file)
        if tags is None or not {_WIDTH, _HEIGHT, _PHOTOMETRIC} <= set(tags):
            return "it is a TIFF that is cut or damaged: its directory of pixels is not there, or not whole"
        return _describe_tiff(tags)
    return "its format is unknown"


@dataclass(frozen=True, slots=True)
class PlainFile:
    """A file for which DALI reads the same pixels as `open_upright`."""

    content: Encoded
    """the file, without metadata that could change the pixels"""
    size: tuple[int, int]
    """(height, width) in pixels, upright"""


def read_plain(encoded: Encoded) -> PlainFile | None:
    """Return the content that DALI may decode; None if PIL has to decode the file.

    This is a list of formats that are known to agree (8-bit Huffman JPEG, grey or YCbCr; PNG of up to 8 bits), not of
    those that are known to differ. Takes about 6 µs, and a copy of the file if it has metadata.
    """
    found = _read_header(encoded)
    if found is None or not found.is_plain:
        return None
    is_swapped = found.orientation in SWAPPING
    size = (found.width, found.height) if is_swapped else (found.height, found.width)
    return PlainFile(found.as_plain(), size)


def declared_size(encoded: Encoded) -> tuple[int, int] | None:
    """(width, height) in pixels that an image file declares, before decoding and turning; None if it declares none.

    PNG and JPEG are read by their headers (about 1 and 3 µs), other formats by PIL.
    """
    head = bytes(encoded[:24])
    if head.startswith(PNG_MAGIC):
        return struct.unpack(">II", head[16:24]) if len(head) == 24 else None
    if head.startswith(JPEG_MAGIC):
        return declared_size_of_jpeg(encoded)
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as opened:
            return opened.size
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except Exception:  # PIL raises a dozen types for other files; decoding gives the reason
        return None


def find_excess_pixels(encoded: Encoded, max_pixels: int) -> str | None:
    """Why an image is too large to be decoded: it declares more than `max_pixels`; None if it is not too large."""
    size = declared_size(encoded)
    if size is None or size[0] * size[1] <= max_pixels:
        return None
    if size == (2**31, 2**31):
        return f"declares more pixels than PIL decodes ({MAX_PIXELS}); not decoded"
    return f"declares {size[0]} × {size[1]} pixels, more than the {max_pixels} allowed; not decoded"
