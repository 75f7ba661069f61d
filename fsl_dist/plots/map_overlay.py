"""Activation maps over images: grey where a map is low, purple to yellow where it is high."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.evaluation.activation_maps import scale_to_unit
from fsl_dist.metrics.class_scores import Floats

# Share of the colour at a map's highest value; the rest is the image, so that it shows through.
_OPACITY = 0.8
DIMMING = 0.75
"""brightness of the grey image below a map: yellow is visible on white areas too"""


def tint(plane: Floats, side: int) -> Image.Image:
    """A map ([h, w]) as colours: RGBA, `side` × `side` pixels, scaled to the map's own range;
    transparent if it is constant."""
    scaled = scale_to_unit(plane, side)
    levels = (_palette()[np.round(scaled * 255).astype(np.int64)] * 255).round()
    levels[:, :, 3] = np.round(scaled * _OPACITY * 255)
    return Image.fromarray(levels.astype(np.uint8))


def overlay(pixels: NDArray[np.uint8], plane: Floats) -> Image.Image:
    """RGB: an image (uint8 [S, S, 3]) in dimmed grey under the colours of its map ([h, w])."""
    grey = Image.fromarray(pixels).convert("L").point(lambda level: level * DIMMING).convert("RGBA")
    return Image.alpha_composite(grey, tint(plane, len(pixels))).convert("RGB")


def palette_steps(num: int) -> list[tuple[int, int, int]]:
    """`num` colours from low to high as they are drawn over black."""
    places = np.linspace(0, 1, num)
    colours = _palette()[np.round(places * 255).astype(np.int64), :3] * 255
    return [(round(red), round(green), round(blue)) for red, green, blue in colours.tolist()]


def _palette() -> NDArray[np.float64]:
    """float64 [256, 4]: ordered by lightness too, so that it reads in grey and to the colour-blind."""
    from matplotlib import colormaps

    return colormaps["inferno"](np.arange(256))
