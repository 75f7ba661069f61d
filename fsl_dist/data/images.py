"""Image files as PIL sees them: decoding upright, and finding those that do not decode. No torch here."""

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import Optional

import numpy as np
from PIL import ExifTags, Image, ImageOps

from fsl_dist.data.fingerprints import fingerprint
from fsl_dist.data.resize import StoredSize

Encoded = bytes | memoryview
"""An image file's content."""


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image file that decodes, or what is stored in its place."""

    width: int
    """pixels, upright"""
    height: int
    size_bytes: int
    crc32: int
    extension: str
    """without the dot, fitting the content"""
    kept_at: tuple[int, int] | None = None
    """(chunk, first byte in its file of re-encoded images); None: stored as the source has it"""
    mask: Optional["CheckedImage"] = None
    fingerprint: bytes = b""
    """what near-duplicates are found by; empty where none are looked for"""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """What is stored of an image."""

    image: CheckedImage
    data: bytes
    """the very object that was given where the image stays as it is"""
    upright: tuple[int, int]
    """(height, width) in pixels, as the source's image decodes"""
    resized: tuple[int, int] | None
    """(height, width) it was brought to; None: not resized"""


JPEG_QUALITY = 92
"""of JPEGs that are encoded again; PIL's scale to 95"""


def open_upright(encoded: Encoded, channels: int = 3) -> Image.Image:
    """Decode with PIL: first frame, turned as its EXIF orientation says, mode RGB (channels 3) or L (1).

    Raises whatever PIL raises for an image that is cut or no image.
    """
    return _turn_upright(Image.open(io.BytesIO(encoded)), channels)


def _turn_upright(opened: Image.Image, channels: int) -> Image.Image:
    """Alpha is dropped, as DALI does; 16-bit grey keeps its upper 8 bits, where PIL itself would clip to white."""
    opened.load()
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        depths = np.asarray(image)
        image = Image.fromarray((depths >> 8 if depths.max(initial=0) > 255 else depths).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL warns where a palette's transparency is dropped in one step
    return image.convert("RGB" if channels == 3 else "L")


JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

MAX_PIXELS = 178_956_970
"""most pixels an image may declare by default: half a GiB as RGB, and what PIL itself decodes at most"""

# PIL warns from half of that on; the limit here is the rule instead.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def declared_size(encoded: Encoded) -> tuple[int, int] | None:
    """(width, height) in pixels that an image file declares, before decoding and turning; None where it declares none.

    PNG and JPEG by their headers (about 1 and 3 µs), others by PIL's.
    """
    head = bytes(encoded[:24])
    if head.startswith(PNG_MAGIC):
        return struct.unpack(">II", head[16:24]) if len(head) == 24 else None
    if head.startswith(JPEG_MAGIC):
        return _walk_jpeg(encoded)[0]
    try:
        with Image.open(io.BytesIO(encoded)) as opened:
            return opened.size
    except Image.DecompressionBombError:
        return 2**31, 2**31
    except Exception:  # PIL raises a dozen types for what is no image; decoding it says which
        return None


def upright_size(encoded: Encoded) -> tuple[int, int] | None:
    """(height, width) in pixels of a PNG or JPEG file as it decodes, turned as its EXIF orientation says.

    From its headers (about 2 and 4 µs, 40 with EXIF); None for other files and where nothing is declared.
    """
    head = bytes(encoded[:24])
    if head.startswith(JPEG_MAGIC):
        size, exif = _walk_jpeg(encoded)
    elif head.startswith(PNG_MAGIC):
        size, exif = declared_size(head), _exif_of_png(encoded)
    else:
        return None
    if size is None:
        return None
    if exif:
        found = Image.Exif()
        found.load(exif)
        if found.get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
            return size
    return size[1], size[0]


def _walk_jpeg(encoded: Encoded) -> tuple[tuple[int, int] | None, bytes]:
    """((width, height) or None, EXIF or nothing): walks the segments to the frame header (SOF0 … SOF15 without DHT, JPG, DAC).

    Passes over bytes between segments as libjpeg does.
    """
    data, position, exif = memoryview(encoded), 2, b""
    while 0 <= position <= len(data) - 9:
        marker = data[position + 1]
        if data[position] != 0xFF or marker == 0xFF:
            position = bytes(data).find(b"\xff", position + 1)
        elif marker == 0xDA:  # the scan: a frame header cannot follow
            break
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, position + 5)
            return (width, height), exif
        elif marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a length
            position += 2
        else:
            stop = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
            if marker == 0xE1 and bytes(data[position + 4 : position + 10]) == b"Exif\0\0":
                exif = exif or bytes(data[position + 4 : stop])
            position = stop
    return None, exif


def _exif_of_png(encoded: Encoded) -> bytes:
    """The eXIf chunk's content; empty where there is none before the pixels."""
    data, position = memoryview(encoded), 8
    while position <= len(data) - 8:
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"eXIf":
            return bytes(data[position + 8 : position + 8 + length])
        if kind == b"IDAT":
            break
        position += 12 + length
    return b""


def find_excess_pixels(encoded: Encoded, max_pixels: int) -> str | None:
    """Why an image is too large to be decoded: it declares more than `max_pixels`; None where it is not."""
    size = declared_size(encoded)
    if size is None or size[0] * size[1] <= max_pixels:
        return None
    if size == (2**31, 2**31):
        return f"declares more pixels than PIL decodes ({MAX_PIXELS}); not decoded"
    return f"declares {size[0]} × {size[1]} pixels, more than the {max_pixels} allowed; not decoded"


def prepare_encoded(
    data: bytes, file: str, size: StoredSize, *, has_fingerprint: bool = False
) -> PreparedImage | str:
    """What is stored of the content of a file called `file`, or why it cannot be used. Decodes all of it.

    An image that is larger than `size` is turned upright, resized with antialiasing (PIL's bilinear, as when
    training) and encoded again, without its metadata: JPEG as JPEG, every other format as PNG. Others stay as they are.
    """
    if not data:
        return "has zero bytes"
    if excess := find_excess_pixels(data, MAX_PIXELS):
        return excess
    try:
        opened = Image.open(io.BytesIO(data))
        image_format = opened.format or ""
        is_grey = opened.mode in ("1", "L", "LA") or opened.mode.startswith("I")
        image = _turn_upright(opened, 3)
    except Exception as error:  # PIL raises a dozen types for damaged images
        return f"is not an image that decodes: {explain(error)}"
    upright = (image.height, image.width)
    resized = size.extents(*upright)
    if resized is not None:
        image = image.convert("L") if is_grey else image  # exact: the three channels are equal
        image = image.resize((resized[1], resized[0]), Image.Resampling.BILINEAR)
        image.info.clear()  # PIL would write comments and colour profiles from it
        image_format = "JPEG" if image_format in ("JPEG", "MPO") else "PNG"
        buffer = io.BytesIO()
        if image_format == "JPEG":
            image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # 4:4:4
        else:
            image.save(buffer, "PNG")
        data = buffer.getvalue()
    extension = _choose_extension(file, image_format)
    checked = CheckedImage(image.width, image.height, len(data), zlib.crc32(data), extension)
    if has_fingerprint:
        checked = replace(checked, fingerprint=fingerprint(image))
    return PreparedImage(checked, data, upright, resized)


def explain(error: Exception) -> str:
    """PIL's reason in one line, without the address of a buffer."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "its format is not known" if text.startswith("cannot identify image file") else text


def _choose_extension(file: str, image_format: str) -> str:
    """The file's own extension in lower case where it is one of its format's, else the format's usual one."""
    suffix = os.path.splitext(file)[1].lower()
    if Image.registered_extensions().get(suffix) == image_format:
        return suffix[1:]
    return {"JPEG": "jpg", "MPO": "jpg", "TIFF": "tif"}.get(image_format, image_format.lower()[:4])


IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".png",
        ".webp",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".jp2",
    )
)
