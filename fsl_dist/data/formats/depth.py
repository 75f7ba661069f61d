"""Pixels of more than 8 bits as 8 bits, and those that have no place there."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

PixelRange = tuple[float, float]
"""(low, high): the values that become black and white"""

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339
_SIGNED = 2
# Formats whose values PIL scales to 16 bits, because they state their largest value.
_SCALED = ("PPM", "JPEG2000")


class DepthError(ValueError):
    """Pixels that do not fit 8 or 16 bits. The message states their type and range."""


def to_eight_bits(image: Image.Image, pixel_range: PixelRange | None) -> Image.Image:
    """A decoded image with samples of 8 bits (mode L where its samples were deeper).

    Args:
        image: as PIL decoded it; its size, turn and mode do not matter.
        pixel_range: maps a grey image of more than 8 bits: `low` to 0, `high` to 255, linearly, rounded; values outside
            are clipped. None: whole numbers of 0 … 65535 keep their upper 8 bits. Where none is above 255 in a format that
            does not state its largest value, they are 8 bits already and stay as they are.

    Raises:
        DepthError: floating point, negative or larger pixels without `pixel_range`; pixels that are not finite.
    """
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    sample_format = (tags.get(_SAMPLE_FORMAT) or (1,))[0]
    values: NDArray[np.generic]
    if image.mode == "F":
        values = np.asarray(image)
    elif image.mode.startswith("I;16"):
        values = np.asarray(image)
        if tags.get(_PHOTOMETRIC) == 0 and image.mode == "I;16":  # white is zero, which PIL leaves to us
            values = 65535 - values
    elif image.mode == "I":
        values = np.asarray(image)
        if sample_format != _SIGNED and tags.get(_BITS) == (32,):
            values = values.view(np.uint32)
    elif image.mode == "L" and sample_format == _SIGNED:
        values = np.asarray(image).view(np.int8)
    else:
        return image
    if pixel_range is not None:
        return Image.fromarray(_scale(values, pixel_range))
    low, high = _range_of(values)
    if values.dtype.kind == "f" or low < 0 or high > 65535:
        raise DepthError(_describe(values, low, high))
    if tags.get(_BITS) == (12,):
        return Image.fromarray((values >> 4).astype(np.uint8))
    is_deep = high > 255 or image.format in _SCALED
    return Image.fromarray((values >> 8 if is_deep else values).astype(np.uint8))


def _scale(values: NDArray[np.generic], pixel_range: PixelRange) -> NDArray[np.uint8]:
    low, high = pixel_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    if not np.isfinite(scaled).all():
        raise DepthError(_describe(values, *_range_of(values)))
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)


def _range_of(values: NDArray[np.generic]) -> tuple[float, float]:
    """The smallest and largest finite value; 0, 0 where there is none."""
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return (finite.min().item(), finite.max().item()) if finite.size else (0, 0)


def _describe(values: NDArray[np.generic], low: float, high: float) -> str:
    kind = "int16" if values.dtype == np.int32 and low >= -32768 and high <= 32767 else str(values.dtype)
    num_odd = np.count_nonzero(~np.isfinite(values)) if values.dtype.kind == "f" else 0
    if num_odd:
        return f"{num_odd} of its {values.size} {kind} pixels are NaN or infinite; replace them in the source"
    return (
        f"its {kind} pixels from {low:g} to {high:g} do not fit 8 or 16 bits; pack with pixel_range to say "
        "which values become black and white, or convert it"
    )
