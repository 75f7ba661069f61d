"""Scores of a classifier: from class scores to the rank of the true class, from ranks to shares.

All shares are fractions in 0 … 1. If two classes have the same score, the one at the smaller position ranks first, so
that a result never depends on the sorting algorithm.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import TrainingError

Floats = NDArray[np.floating]

NEVER = np.iinfo(np.int64).max
"""Rank of a true class that is not among those scored: within no k."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repeated:
    """A score measured several times."""

    mean: float
    """mean over the repetitions"""
    std: float
    """standard deviation over the repetitions, divided by n (ddof 0)"""
    n: int
    """number of repetitions"""

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.std:{spec}}"

    @classmethod
    def from_values(cls, values: Sequence[float]) -> Self:
        """Mean and standard deviation of `values`, one a repetition."""
        return cls(mean=float(np.mean(values)), std=float(np.std(values)), n=len(values))


def rank_targets(scores: Floats, targets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of classes that rank before the true one: int64 [n].

    `scores`: [n, C], larger is more similar. `targets`: int64 [n], the true class's position among the C, or −1 if it
    is missing; its rank is then `NEVER`. Raises TrainingError if a score is NaN.
    """
    if np.isnan(scores).any():
        raise TrainingError(
            f"{int(np.isnan(scores).any(axis=1).sum())} of {len(scores)} test samples have scores that are not "
            "numbers: the embedding or a prototype is not finite (a lower learning rate, or an earlier checkpoint)"
        )
    if scores.shape[1] == 0:
        return np.full(len(targets), NEVER)
    own: NDArray[np.floating] = np.take_along_axis(scores, np.maximum(targets, 0)[:, None], axis=1)
    is_before = scores > own
    is_before |= (scores == own) & (np.arange(scores.shape[1]) < targets[:, None])
    return np.where(targets >= 0, is_before.sum(axis=1), NEVER).astype(np.int64)


def share_within(ranks: NDArray[np.int64], k: int) -> float:
    """Share of the samples (`ranks`: int64 [n], n ≥ 1) whose true class is among the first `k` (recall@k,
    PCN Eq. 10)."""
    return float(np.mean(ranks < k))


def class_shares(
    is_right: NDArray[np.bool_], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Share of each class's samples that are right: (labels int64 [C] ascending, shares float64 [C]).

    `is_right`: bool [n]; `labels`: int64 [n]. Their mean over the classes is MCA (PCN Eq. 9).
    """
    tested, classes = np.unique(labels, return_inverse=True)
    return tested, np.bincount(classes, weights=is_right) / np.bincount(classes)


def class_mean_share_within(ranks: NDArray[np.int64], labels: NDArray[np.int64], k: int) -> float:
    """`share_within` of each class that has samples, averaged over these classes. `labels`: int64 [n].

    With k = 1 it is the mean class accuracy (MCA, PCN Eq. 9); otherwise the balanced recall@k (PCN appendix, Table 5).
    """
    return float(np.mean(class_shares(ranks < k, labels)[1]))
