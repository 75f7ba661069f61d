"""Activation maps: the image regions that cause the distance of two images (CHAI Eq. 2), and their comparison with a
mask."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fsl_dist.metrics.class_scores import Floats

_ROUNDING = 16 * float(np.finfo(np.float32).eps)


def activation_maps(maps: Floats, own: Floats, other: Floats) -> NDArray[np.float64]:
    """Compute Σ_z g_z(i,j) · (f_z(own) − f_z(other))²: float64 [n, h, w] (CHAI Eq. 2).

    With the maps of the query this is the query activation map (QAM), with those of the result the result activation
    map (RAM). If f is the mean of g over the map, the mean of the result is Σ_z f_z(own) · (f_z(own) − f_z(other))².

    Args:
        maps: [n, D, h, w], the feature maps g of `own`.
        own: [n, D], the embeddings f of the first image of each pair.
        other: [n, D], those of the second image.
    """
    weights = np.square(own.astype(np.float64) - other.astype(np.float64))
    return np.einsum("ndhw,nd->nhw", maps, weights, dtype=np.float64, casting="same_kind")


def upsample(maps: Floats, side: int) -> NDArray[np.float64]:
    """Bilinear: [n, h, w] → float64 [n, side, side], pixel centres on pixel areas, edges repeated."""
    planes = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float64))[:, None]
    return functional.interpolate(planes, size=(side, side), mode="bilinear", align_corners=False)[
        :, 0
    ].numpy()


def is_constant(plane: Floats) -> bool:
    """Whether the values of a map (any shape) differ by no more than the rounding of float32,
    in which maps are computed.

    The bound is 16 units in the last place of the largest absolute value, a relative difference of 1.9e-6: the sums
    of two equal pixels may be rounded differently. A map of one pixel is constant.
    """
    low, high = float(plane.min()), float(plane.max())
    return not high - low > _ROUNDING * max(abs(low), abs(high))


def scale_to_unit(plane: Floats, side: int = 0) -> NDArray[np.float64]:
    """Scale a map linearly to 0 … 1; a constant map becomes zeros.

    Args:
        plane: float, any shape; [h, w] with `side`.
        side: upsample to `side` × `side` pixels first; 0: keep the size. Whether the map is constant is decided before
            that, because interpolation rounds the values of a constant map, and scaling would turn them into a pattern.

    Returns:
        float64, the shape of `plane` or [side, side].
    """
    if is_constant(plane):
        return np.zeros((side, side) if side else plane.shape)
    values = upsample(plane[None], side)[0] if side else plane.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    return (values - low) / (high - low) if high > low else np.zeros(values.shape)


def otsu_threshold(plane: Floats) -> float:
    """The value t for which {≤ t} and {> t} have the largest variance between them (Otsu 1979); the least such t.

    plane: any shape, of two different values at least. Exact, over all values that occur, not over bins of a histogram.
    Costs a sort.
    """
    values, counts = np.unique(plane, return_counts=True)
    below = np.cumsum(counts)[:-1]
    sums = np.cumsum(values.astype(np.float64) * counts)
    above = plane.size - below
    means_apart = sums[:-1] / below - (sums[-1] - sums[:-1]) / above
    return float(values[:-1][(below * above * np.square(means_apart)).argmax()])


def foreground(plane: Floats, side: int = 0) -> NDArray[np.bool_]:
    """Threshold a map by Otsu's method; all False if it is constant. plane, side: as for `scale_to_unit`."""
    scaled = scale_to_unit(plane, side)
    return scaled > otsu_threshold(scaled) if scaled.any() else np.zeros(scaled.shape, dtype=np.bool_)


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> float:
    """Share of the pixels of either (bool, one shape) that are in both; 1 where both are empty."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0
