"""Random rectangles with a given share of an area, for crops and for random erasing. Pure arithmetic."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def boxes_in(
    sizes: NDArray[np.int64],
    share: Floats,
    shape: Floats,
    places: Floats,
    ratio: tuple[float, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the first and last edges of rectangles inside areas of `sizes`.

    torchvision tries shapes until one fits. Here the aspect ratio is chosen among those that fit, on a logarithmic
    scale. If none fits (a long image), the rectangle has the nearest allowed ratio and the largest possible area.

    Args:
        sizes: int64 [n, 2], heights and widths in pixels.
        share: float [n], share of the area, above 0 and at most 1.
        shape: float [n], 0 … 1 from the tallest to the widest rectangle that `ratio` allows and that fits.
        places: float [n, 2] (y, x), 0 … 1 from the first to the last position that fits.
        ratio: smallest and largest width / height.

    Returns:
        First and last edges, float64 [n, 2] (y, x) each, in pixels.
    """
    height, width = sizes.T.astype(np.float64)
    share = share.astype(np.float64)
    aspect = width / height
    tallest, widest = np.clip(np.stack([share * aspect, aspect / share]), ratio[0], ratio[1])
    chosen = tallest * (widest / tallest) ** shape
    wide = np.minimum(np.sqrt(share * height * width * chosen), np.minimum(width, height * chosen))
    extents = np.stack([wide / chosen, wide], axis=1)
    near = np.maximum(0, places * (sizes - extents))
    return near, np.minimum(sizes, near + extents)
