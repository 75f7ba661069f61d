"""The expected gain from more images: scores on parts of the training images, extrapolated by a power law.

The error of many classifiers falls as a power of the number of training images, ε(n) = a · n^−b (Hestness et al., "Deep
Learning Scaling is Predictable, Empirically", 2017). With two parameters it can be fitted to two or more sizes. Where
more images stop helping, the extrapolation is too optimistic.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FRACTIONS = (0.25, 0.5, 1.0)
"""parts of the training images that are compared"""


@dataclass(frozen=True, slots=True)
class Gain:
    """The expected gain from more images."""

    mean: float
    """difference of the score, a fraction; above 0 if the score rises"""
    low: float
    """5th percentile over the bootstrap"""
    high: float
    """95th percentile"""

    @property
    def is_known(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


def fit_power_law(
    sizes: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(a, b) of errors = a · sizes^−b by least squares of the logarithms.

    Args:
        sizes: float64 [s], above 0, not all equal.
        errors: float64 [..., s], above 0.

    Returns:
        Two arrays float64 [...]. b is below 0 where errors rise.
    """
    x = np.log(np.asarray(sizes, dtype=np.float64))
    y = np.log(np.asarray(errors, dtype=np.float64))
    centred = x - x.mean()
    slope = (y * centred).sum(axis=-1) / (centred**2).sum()
    return np.exp(y.mean(axis=-1) - slope * x.mean()), -slope


def draw_part(
    labels: NDArray[np.int64], units: NDArray[np.int64], fraction: float, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Positions (int64, ascending) of a part of every class: `fraction` of its images, rounded, at least one.

    labels, units: int64 [n]. Images of the same unit (a number from 0 on; each −1 is a separate unit) are selected
    consecutively, so that the part contains as few units as possible.
    """
    own = np.where(units >= 0, units, units.max(initial=-1) + 1 + np.arange(len(units)))
    _, unit = np.unique(own, return_inverse=True)
    turn = rng.permutation(unit.max(initial=0) + 1)[unit]
    order = np.lexsort((rng.permutation(len(labels)), turn, labels))
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    wanted = np.maximum(np.floor(fraction * counts + 0.5), 1).astype(np.int64)
    place = np.arange(len(labels)) - np.repeat(starts, counts)
    return np.sort(order[place < np.repeat(wanted, counts)])


def resample_shares(
    is_right: NDArray[np.bool_],
    classes: NDArray[np.int64],
    weights: NDArray[np.float64],
    times: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Bootstrap of weighted means of the classes' shares of right answers: float64 [times, m, G].

    The images of each class are drawn again, and all classifiers are scored on the same ones.

    Args:
        is_right: bool [m, n], m classifiers on the same n images.
        classes: int64 [n], 0 … C − 1, each with an image.
        weights: float64 [C, G]: G means over classes, each column sums to 1.
        times: draws.
        rng: of the draws.
    """
    order = np.argsort(classes, kind="stable")
    sorted_right = is_right[:, order].astype(np.float64)
    sizes = np.bincount(classes, minlength=len(weights))
    starts = np.cumsum(sizes) - sizes
    base, spread = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    means = np.empty((times, len(is_right), weights.shape[1]))
    for number in range(times):
        drawn = base + np.floor(rng.random(len(base)) * spread).astype(np.int64)
        means[number] = np.add.reduceat(sorted_right[:, drawn], starts, axis=1) / sizes @ weights
    return means


def wilson_interval(
    right: NDArray[np.int64], number: NDArray[np.int64], z: float = 1.96
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Wilson's interval of a share, `right` of `number` (int64 [n], number ≥ 1): (low, high), float64 [n].
    z=1.96: 95 %."""
    share = right / number
    centre = (share + z**2 / (2 * number)) / (1 + z**2 / number)
    half = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2)) / (1 + z**2 / number)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)
