"""Activation maps over images: grey where a map is low, purple to yellow where it is high."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.evaluation.activation_maps import scale_to_unit, upsample
from fsl_dist.metrics.class_scores import Floats

# Share of the colour at a map's highest value; the rest is the image, so that it shows through.
_OPACITY = 0.8
DIMMING = 0.75
"""brightness of the grey image below a map: yellow is visible on white areas too"""


def tint(plane: Floats, side: int) -> Image.Image:
    """A map ([h, w]) as colours: RGBA, `side` × `side` pixels, scaled to the map's own range;
    transparent if it is constant."""
    return _colour(scale_to_unit(plane, side))


def range_text(plane: Floats, side: int) -> str:
    """The values at the ends of the colour scale of `tint`, with three digits: `0.0121 … 1.3`."""
    low, high = map_range(plane, side)
    return f"{low:.3g} … {high:.3g}"


def map_range(plane: Floats, side: int) -> tuple[float, float]:
    """The lowest and the highest value of a map ([h, w]) drawn with `side` × `side` pixels."""
    values = upsample(plane[None], side)
    return float(values.min()), float(values.max())


def ramp(width: int = 256) -> Image.Image:
    """The colours of a map from its lowest to its highest value, left to right: RGBA, `width` × 1 pixels."""
    return _colour(np.linspace(0.0, 1.0, width)[None])


def _colour(scaled: NDArray[np.float64]) -> Image.Image:
    """RGBA image of values in 0 … 1 ([h, w]): the higher, the more opaque."""
    levels = (_palette()[np.round(scaled * 255).astype(np.int64)] * 255).round()
    levels[:, :, 3] = np.round(scaled * _OPACITY * 255)
    return Image.fromarray(levels.astype(np.uint8))


def overlay(pixels: NDArray[np.uint8], plane: Floats) -> Image.Image:
    """RGB: an image (uint8 [S, S, 3]) in dimmed grey under the colours of its map ([h, w])."""
    grey = Image.fromarray(pixels).convert("L").point(lambda level: level * DIMMING).convert("RGBA")
    return Image.alpha_composite(grey, tint(plane, len(pixels))).convert("RGB")


def _palette() -> NDArray[np.float64]:
    """float64 [256, 4]: ordered by lightness too, so that it reads in grey and to the colour-blind."""
    from matplotlib import colormaps

    return colormaps["inferno"](np.arange(256))
