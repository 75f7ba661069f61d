"""Masks as they are stored next to their images: PNG, of the image's size, without interpolated values."""

import io

import numpy as np
from PIL import Image

from fsl_dist.data.formats.completeness import find_gap
from fsl_dist.data.images import explain
from fsl_dist.data.pixels import MAX_PIXELS, decode_turned, find_excess_pixels

_PNG_MODES = frozenset(("1", "L", "LA", "P", "RGB", "RGBA", "I;16"))


def prepare_mask(data: bytes, upright: tuple[int, int], stored: tuple[int, int] | None) -> bytes | str:
    """Return the PNG to store for a mask file's content, or the reason why it cannot be used. Decodes all of it.

    `upright`: (height, width) of the decoded image, which the mask must have; `stored`: the size to resize it to, with
    nearest-neighbour interpolation, None for none. A PNG of the right size keeps its bytes; other formats are encoded
    as PNG.
    """
    if not data:
        return "has zero bytes"
    if excess := find_excess_pixels(data, MAX_PIXELS):
        return excess
    try:
        # A mask that keeps its bytes keeps all 16 bits of its colours; object numbers may be below 256.
        decoded = decode_turned(data, may_be_dark=stored is None)
        gap = find_gap(data)
    except Exception as error:  # PIL raises a dozen types for damaged images
        return f"is not an image that decodes: {explain(error)}"
    if gap is not None:
        return gap
    mask = decoded.image
    if (mask.height, mask.width) != upright:
        return f"has {mask.width} × {mask.height} pixels, its image {upright[1]} × {upright[0]}"
    if stored is None and decoded.format == "PNG" and not decoded.is_turned:
        return data
    if mask.mode.startswith("I"):
        values = np.asarray(mask)
        if values.min() >= 0 and values.max() <= 65535:
            mask = Image.fromarray(values.astype(np.uint16))
    if mask.mode not in _PNG_MODES:
        return (
            f"has pixels of mode {mask.mode}, which PNG does not support; use 8 or 16 bits, a palette or RGB"
        )
    if stored is not None:
        mask = mask.resize((stored[1], stored[0]), Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    return buffer.getvalue()
