"""Scores of a head on images that it was not fitted to, with bootstrap intervals, and the comparison of two."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import DataError, RequestError
from fsl_dist.heads.fitting import Embedded, Head
from fsl_dist.metrics.bootstrap import Interval, interval_of, resample
from fsl_dist.metrics.calibration import calibration_error
from fsl_dist.metrics.class_scores import class_shares

Metric = Literal["acc", "mcr"]


@dataclass(frozen=True, slots=True, eq=False)
class HeadScore:
    """The scores of a head on some images."""

    acc: float
    """share of right predictions, 0 … 1"""
    mcr: float
    """mean class recall: the mean over the classes with images of each class's share, 0 … 1"""
    ece: float
    """expected calibration error, 0 … 1"""
    acc_interval: Interval
    """95 % bootstrap interval of `acc`"""
    mcr_interval: Interval
    """95 % bootstrap interval of `mcr`"""
    ids: NDArray[np.int64] = field(repr=False)
    """int64 [n]: the images"""
    labels: NDArray[np.int64] = field(repr=False)
    """int64 [n]: their true classes"""
    predictions: NDArray[np.int64] = field(repr=False)
    """int64 [n]: labels"""
    probabilities: NDArray[np.float64] = field(repr=False)
    """float64 [n, C]"""
    groups: NDArray[np.int64] | None = field(repr=False, default=None)
    """int64 [n]; None if there are no groups"""

    @property
    def n(self) -> int:
        """Number of images."""
        return len(self.labels)

    @property
    def is_right(self) -> NDArray[np.bool_]:
        """bool [n]."""
        return self.predictions == self.labels

    def value(self, metric: Metric) -> float:
        """`acc` or `mcr`."""
        return self.acc if metric == "acc" else self.mcr


@dataclass(frozen=True, slots=True)
class Comparison:
    """The difference between two heads on the same images."""

    metric: Metric
    difference: float
    """score of the first less that of the second"""
    interval: Interval
    """95 % of it, by a bootstrap of the pairs"""

    @property
    def is_more_than_noise(self) -> bool:
        """The interval excludes 0."""
        low, high = self.interval
        return low > 0 or high < 0


def score_head(head: Head, part: Embedded, *, seed: int = 0) -> HeadScore:
    """Score a head on images that it was not fitted to.

    The intervals are those of a smoothed bootstrap of 1,000 draws of images stratified by class, or of groups where
    `part` has them (`metrics.bootstrap`).

    Args:
        head: the head.
        part: at least one image; an image of a class that the head lacks counts as wrong.
        seed: of the intervals' draws.

    Returns:
        The scores.

    Raises:
        DataError: `part` is empty.
    """
    if len(part.labels) == 0:
        raise DataError("there are no images to score a head on")
    return score_probabilities(head.probabilities(part.vectors, part.logits), head.classes, part, seed=seed)


def score_probabilities(
    probabilities: NDArray[np.float64], classes: NDArray[np.int64], part: Embedded, *, seed: int = 0
) -> HeadScore:
    """`score_head` for computed probabilities float64 [n, C]; classes: int64 [C], the columns' labels."""
    predictions = classes[probabilities.argmax(axis=1)]
    is_right = predictions == part.labels
    acc, mcr = resample(is_right.astype(np.int64), part.labels, part.groups, seed=seed)
    return HeadScore(
        acc=float(is_right.mean()),
        mcr=float(class_shares(is_right, part.labels)[1].mean()),
        ece=calibration_error(probabilities, is_right),
        acc_interval=_inside(interval_of(acc)),
        mcr_interval=_inside(interval_of(mcr)),
        ids=part.ids,
        labels=part.labels,
        predictions=predictions,
        probabilities=probabilities,
        groups=part.groups,
    )


def _inside(interval: Interval) -> Interval:
    """A score is a share: at most 1, at least 0."""
    return max(interval[0], 0.0), min(interval[1], 1.0)


def compare(first: HeadScore, second: HeadScore, metric: Metric = "mcr", *, seed: int = 0) -> Comparison:
    """Compare two heads by the images on which they differ.

    Args:
        first: scores of one head.
        second: of the other, on the same images in the same order.
        metric: the score to compare.
        seed: of the bootstrap draws.

    Returns:
        The difference and its interval.

    Raises:
        RequestError: they were scored on different images.
    """
    if not (np.array_equal(first.ids, second.ids) and np.array_equal(first.labels, second.labels)):
        raise RequestError("two heads are compared on the same images; these were scored on different ones")
    values = first.is_right.astype(np.int64) - second.is_right.astype(np.int64)
    acc, mcr = resample(values, first.labels, first.groups, seed=seed)
    return Comparison(
        metric, first.value(metric) - second.value(metric), interval_of(acc if metric == "acc" else mcr)
    )
