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


WAY_OUT = "pack with pixel_range to define the values of black and white, or convert it"
"""of `DepthError`, for images of a data set that is not packed yet"""


class DepthError(ValueError):
    """Pixels that do not fit 8 or 16 bits. The message states their type and range."""


def to_eight_bits(image: Image.Image, pixel_range: PixelRange | None) -> Image.Image:
    """Convert a decoded image to 8 bits per sample (mode L if its samples were deeper).

    Args:
        image: as PIL decoded it; size, orientation and mode are arbitrary.
        pixel_range: maps grey images of more than 8 bits, in a format that does not state its largest value: `low` to
            0, `high` to 255, linearly, rounded and clipped. None: integers of 0 … 65535 keep their upper 8 bits,
            unless the format does not state its largest value and none is above 255; then they are 8-bit values
            already and are kept.

    Raises:
        DepthError: floating-point, negative or larger pixels without `pixel_range`; pixels that are not finite.
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
    kind = "int16" if image.mode == "I" and tags.get(_BITS) == (16,) else str(values.dtype)
    is_float = values.dtype.kind == "f"
    if is_float and (num_odd := np.count_nonzero(~np.isfinite(values))):
        raise DepthError(
            f"{num_odd} of its {values.size} {kind} pixels are NaN or infinite; replace them in the source"
        )
    states_range = image.format in _SCALED and not is_float
    if pixel_range is not None and not states_range:
        return Image.fromarray(_scale(values, pixel_range))
    low, high = values.min().item(), values.max().item()
    if is_float or low < 0 or high > 65535:
        raise DepthError(f"its {kind} pixels from {low:g} to {high:g} do not fit 8 or 16 bits; {WAY_OUT}")
    divisor = 16 if tags.get(_BITS) == (12,) else 256 if high > 255 or states_range else 1
    return Image.fromarray((values.astype(np.int32) // divisor).astype(np.uint8))


def join_bytes(image: Image.Image) -> Image.Image:
    """Samples of 16 bits (mode I;16) whose upper bytes are red, and lower ones green."""
    values = np.asarray(image).astype(np.uint16)
    return Image.fromarray(values[..., 0] << 8 | values[..., 1])


def _scale(values: NDArray[np.generic], pixel_range: PixelRange) -> NDArray[np.uint8]:
    low, high = pixel_range
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.floor(scaled.clip(0, 255) + 0.5).astype(np.uint8)
