"""The picture that every file shows, and what is seen of it. Each format's files are made in the modules next to this one.

It is 3 × 3 blocks of 16 × 16 pixels, whole blocks of every JPEG sampling, so that lossy formats keep its colours. It differs from
itself in each of the eight orientations. What a file shows follows from the definition of its format, not from a decoder.
"""

from dataclasses import dataclass

import numpy as np

SIDE = 48


@dataclass(frozen=True)
class Picture:
    data: bytes
    shown: np.ndarray | None
    """uint8 [48, 48] or [48, 48, 3]; None: it must be refused"""
    refusal: str = ""
    """what the refusal says"""
    margin: int = 0
    """pixels along the blocks' edges that are not defined: chroma of half the resolution is blended there"""


def blocks(values):
    """[48, 48, …] of nine values."""
    return np.asarray(values).reshape(3, 3, *np.shape(values)[1:]).repeat(16, 0).repeat(16, 1)


COLOURS = blocks(
    [(200, 40, 30), (30, 180, 60), (40, 50, 210), (220, 200, 40), (128, 128, 128), (30, 170, 190), (180, 60, 200),
     (20, 20, 20), (235, 235, 235)]
).astype(np.uint8)  # fmt: skip
GREYS = blocks([0, 37, 80, 255, 128, 10, 200, 160, 99]).astype(np.uint8)
ALPHA = blocks([0, 255, 128, 1, 255, 0, 77, 255, 200]).astype(np.uint8)
NUMBERS = blocks([0, 3, 1, 2, 3, 0, 2, 1, 1])
"""0 … 3: a palette's, or 2 bits"""
PALETTE = np.array([(200, 40, 30), (30, 180, 60), (40, 50, 210), (250, 240, 20)], dtype=np.uint8)
BITS = blocks([0, 1, 1, 0, 0, 1, 1, 0, 1])
FOURS = blocks([0, 15, 7, 3, 9, 12, 1, 5, 14])
DEEP = GREYS.astype(np.uint16) * 256 + 37
"""16 bits, whose upper 8 are GREYS"""
DEEP_COLOURS = COLOURS.astype(np.uint16) * 256 + 91


def luma(shown):
    """Grey of what is shown, ITU-R BT.601, float64 [48, 48]."""
    return shown @ np.array([0.299, 0.587, 0.114]) if shown.ndim == 3 else shown.astype(np.float64)


def ycbcr(rgb):
    """JFIF's full-range YCbCr of uint8 [..., 3], rounded."""
    r, g, b = np.moveaxis(rgb.astype(np.float64), -1, 0)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    planes = np.stack([y, 128 + (b - y) / 1.772, 128 + (r - y) / 1.402], axis=-1)
    return np.clip(np.rint(planes), 0, 255).astype(np.uint8)


def in_orientation(shown, orientation):
    """What is stored so that `orientation` shows `shown` (EXIF 2.3, tag 274): its rows and columns, exchanged or reversed."""
    stored = shown.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else shown
    rows = slice(None, None, -1 if orientation in (3, 4, 6, 7) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 7, 8) else 1)
    return np.ascontiguousarray(stored[rows, columns])


def is_inside(margin):
    """bool [48, 48]: pixels at least `margin` away from the edges of their blocks."""
    place = np.arange(SIDE) % 16
    row = (place >= margin) & (place < 16 - margin)
    return row[:, None] & row
