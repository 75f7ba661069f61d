"""Image files as `pack` stores them: what is known of each, and finding those that do not decode. No torch here."""

import io
import os
import zlib
from dataclasses import dataclass, replace
from typing import Optional

from PIL import Image

from fsl_dist.data.fingerprints import fingerprint
from fsl_dist.data.formats.completeness import find_gap
from fsl_dist.data.formats.depth import PixelRange, to_eight_bits
from fsl_dist.data.pixels import MAX_PIXELS, decode_turned, find_excess_pixels, to_colours
from fsl_dist.data.pixels import open_upright as open_upright  # other programs import it from here
from fsl_dist.data.resize import StoredSize


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


def prepare_encoded(
    data: bytes,
    file: str,
    size: StoredSize,
    *,
    pixel_range: PixelRange | None = None,
    has_fingerprint: bool = False,
) -> PreparedImage | str:
    """What is stored of the content of a file called `file`, or why it cannot be used. Decodes all of it.

    An image that is larger than `size` is turned upright, resized with antialiasing (PIL's bilinear, as when
    training) and encoded again, without its metadata: JPEG as JPEG, every other format as PNG. One whose pixels have more
    than 8 bits and are scaled by `pixel_range` is encoded again as grey PNG of 8 bits. Others stay as they are.
    """
    if not data:
        return "has zero bytes"
    if excess := find_excess_pixels(data, MAX_PIXELS):
        return excess
    try:
        decoded = decode_turned(data)
        eight_bits = to_eight_bits(decoded.image, pixel_range)
        is_scaled = pixel_range is not None and eight_bits is not decoded.image
        is_grey = eight_bits.mode in ("1", "L", "LA", "La")
        image = to_colours(eight_bits, 3)
        gap = find_gap(data)
    except Exception as error:  # PIL raises a dozen types for damaged images
        return f"is not an image that decodes: {explain(error)}"
    if gap is not None:
        return gap
    upright, image_format = (image.height, image.width), decoded.format
    resized = size.extents(*upright)
    if resized is not None or is_scaled:
        image = image.convert("L") if is_grey else image  # exact: the three channels are equal
        if resized is not None:
            image = image.resize((resized[1], resized[0]), Image.Resampling.BILINEAR)
        image.info.clear()  # PIL would write comments and colour profiles from it
        image_format = "JPEG" if image_format == "JPEG" else "PNG"
        if image_format == "JPEG":
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)  # 4:4:4
            data = buffer.getvalue()
        else:
            data = encode_png(image)
    extension = _choose_extension(file, image_format)
    checked = CheckedImage(image.width, image.height, len(data), zlib.crc32(data), extension)
    if has_fingerprint:
        checked = replace(checked, fingerprint=fingerprint(image))
    return PreparedImage(checked, data, upright, resized)


def scale_encoded(data: bytes, pixel_range: PixelRange) -> bytes:
    """An image file as `pack` stores it with `pixel_range`: grey of more than 8 bits as PNG, others as they are.

    Raises whatever `decode_turned` and `to_eight_bits` do.
    """
    image = decode_turned(data).image
    eight_bits = to_eight_bits(image, pixel_range)
    return data if eight_bits is image else encode_png(eight_bits)


def encode_png(image: Image.Image, compress_level: int = 6) -> bytes:
    """The content of a PNG file of an image; `compress_level` is zlib's, 0 to 9."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def explain(error: Exception) -> str:
    """PIL's reason in one line, without the address of a buffer."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "its format is not known" if text.startswith("cannot identify image file") else text


def _choose_extension(file: str, image_format: str) -> str:
    """The file's own extension in lower case where it is one of its format's, else the format's usual one."""
    suffix = os.path.splitext(file)[1].lower()
    if Image.registered_extensions().get(suffix) == image_format:
        return suffix[1:]
    return {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}.get(image_format, image_format.lower()[:4])


IMAGE_SUFFIXES = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".webp",
        ".avif",
        ".bmp",
        ".gif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".j2k",
    )
)
