"""Bootstrap intervals of accuracy and mean class recall, over images or groups of images.

Draws are stratified by class, so that every draw contains every class and a mean over classes exists. Intervals are
percentiles (Efron & Tibshirani 1993, chapter 13). The bootstrap is smoothed, because a class of one image would not
vary in a plain one. Both scores are linear in the images' values. So values of −1, 0 and 1 describe both a score (1:
correct) and the difference of two classifiers (1: only the first is correct, −1: only the second).
"""

import numpy as np
from numpy.typing import NDArray

from fsl_dist.metrics.retrieval import NO_GROUP
from fsl_dist.seeding import generator

DRAWS = 1000
"""bootstrap draws of an interval"""

BORROWED = 2
"""images, or groups, of all classes that are added to those which a class is drawn from"""

Interval = tuple[float, float]
"""low and high"""


def interval_of(draws: NDArray[np.float64], level: float = 0.95) -> Interval:
    """The central `level` of `draws` (float64 [B]) by their percentiles."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample(
    values: NDArray[np.int64],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the mean of `values`, and the mean over classes of each class's mean, in `draws` bootstrap draws.

    Without groups, a draw takes n_c images of each class with replacement, from its n_c images and 2 artificial ones
    with the average value of all images. With groups, it takes groups with replacement, stratified by their most
    frequent class (equal counts: the smaller label), and a share 2 / (G + 2) of these G gets the mean value of a
    group of any class. The draws are shifted so that their mean is the observed score. If many classes have few
    images, the interval of the plain bootstrap is far too narrow.

    A class that is the most frequent of no group may be missing in a draw, whose mean is then over the others.

    Args:
        values: int64 [n], n ≥ 1: −1, 0 or 1.
        labels: int64 [n]: true classes.
        groups: int64 [n]; an image of group −1 is a separate group. None: no groups.
        draws: B.
        seed: of the draws, which depend on nothing else.

    Returns:
        float64 [B] twice: over images, and over classes.
    """
    rng = generator(seed, "bootstrap")
    classes, positions = np.unique(labels, return_inverse=True)
    counts = np.bincount(positions)
    if groups is None or (groups == NO_GROUP).all():
        sums, totals = _draw_images(values, positions, draws, rng), counts.astype(np.float64)
    else:
        sums, totals = _draw_groups(values, positions, len(classes), groups, draws, rng)
    is_there = np.broadcast_to(totals > 0, sums.shape)
    shares = np.divide(sums, totals, out=np.zeros(sums.shape), where=is_there)
    over_images = sums.sum(axis=1) / totals.sum(axis=-1)
    over_classes = shares.sum(axis=1) / is_there.sum(axis=1)
    observed = np.bincount(positions, weights=values)
    over_images += observed.sum() / counts.sum() - over_images.mean()
    over_classes += (observed / counts).mean() - over_classes.mean()
    return over_images, over_classes


def _draw_images(
    values: NDArray[np.int64], positions: NDArray[np.int64], draws: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Sum of the values of each class in each draw of images: float64 [B, C].

    The number of times that each value is drawn is multinomial, so no individual image has to be drawn.
    """
    counts = np.bincount(positions)
    ups, downs = (
        (np.bincount(positions[is_it], minlength=len(counts)) + BORROWED * is_it.mean()) / (counts + BORROWED)
        for is_it in (values > 0, values < 0)
    )
    drawn = rng.binomial(counts, ups, size=(draws, len(counts)))
    share = np.divide(downs, 1 - ups, out=np.zeros(len(counts)), where=ups < 1)
    return (drawn - rng.binomial(counts - drawn, np.minimum(share, 1.0))).astype(np.float64)


def _draw_groups(
    values: NDArray[np.int64],
    positions: NDArray[np.int64],
    num_classes: int,
    groups: NDArray[np.int64],
    draws: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the values and numbers of images of each class in each draw of groups: float64 [B, C] twice."""
    from scipy.sparse import csr_array

    is_lone = groups == NO_GROUP
    members = groups.copy()
    members[is_lone] = groups.max() + 1 + np.arange(int(is_lone.sum()))
    _, group_of = np.unique(members, return_inverse=True)
    num_groups = int(group_of.max()) + 1
    # [groups, classes]; entries of the same cell are added.
    sums, totals = (
        csr_array((data.astype(np.float64), (group_of, positions)), shape=(num_groups, num_classes))
        for data in (values, np.ones(len(values)))
    )
    means = sums.sum(axis=1) / totals.sum(axis=1)
    rows = np.repeat(np.arange(num_groups), np.diff(totals.indptr))
    order = np.lexsort((totals.indices, -totals.data, rows))
    strata = totals.indices[order][np.searchsorted(rows[order], np.arange(num_groups))]
    drawn_sums, drawn_totals = np.zeros((draws, num_classes)), np.zeros((draws, num_classes))
    for stratum in np.unique(strata):
        own = np.flatnonzero(strata == stratum)
        shape = (draws, len(own))
        picks = rng.integers(0, len(own), size=shape) + np.arange(draws)[:, None] * len(own)
        is_borrowed = rng.random(shape) < BORROWED / (len(own) + BORROWED)
        borrowed = means[rng.integers(0, num_groups, size=int(is_borrowed.sum()))]
        # [groups, draws]: how often each group is drawn, how often with its own values, and the means that it borrows.
        times, with_own, with_others = (
            np.bincount(which.ravel(), weights, minlength=picks.size).reshape(shape).T
            for which, weights in ((picks, None), (picks[~is_borrowed], None), (picks[is_borrowed], borrowed))
        )
        drawn_sums += (sums[own].T @ with_own + totals[own].T @ with_others).T
        drawn_totals += (totals[own].T @ times).T
    return drawn_sums, drawn_totals
