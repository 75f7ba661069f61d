"""Image files as `pack` stores them: their properties, and the detection of undecodable files. No torch here."""

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
    """An image file that decodes, or the reason why it cannot be used."""

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
    """fingerprint for the search for near-duplicates; empty if there is no such search"""


@dataclass(frozen=True, slots=True)
class PreparedImage:
    """An image as it is stored."""

    image: CheckedImage
    data: bytes
    """the given bytes object itself if the image is stored unchanged"""
    upright: tuple[int, int]
    """(height, width) in pixels, as the source's image decodes"""
    resized: tuple[int, int] | None
    """(height, width) after resizing; None: not resized"""


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
    """Prepare the content of a file called `file` for storage, or return the reason why it cannot be used. Decodes
    all of it.

    An image that is larger than `size` is turned upright, resized with antialiasing (PIL's bilinear filter, as in
    training) and encoded again, without its metadata: JPEG as JPEG, every other format as PNG. An image of more than
    8 bits that `pixel_range` scales is encoded as 8-bit grey PNG. Other images are stored unchanged.
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
    """Encode an image file as `pack` stores it with `pixel_range`: grey of more than 8 bits as PNG, others unchanged.

    Raises the errors of `decode_turned` and `to_eight_bits`.
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
    return "its format is unknown" if text.startswith("cannot identify image file") else text


def _choose_extension(file: str, image_format: str) -> str:
    """The file's own extension in lower case if it fits the format, otherwise the usual one of the format."""
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
