"""Division into train, val, test, novel: pure functions of labels, units and a seed.

A *unit* must not be divided (a patient, a lesion): all of its samples are in one split. Splits are numbered as in
`fsl_dist.data.catalogue.SPLITS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.seeding import generator

TRAIN, VAL, TEST, NOVEL = range(4)
_NUM_SIDES = 4

BASE_NOVEL_SHARE = 0.2
"""share of a base class for validation, and again for test (the count rounded down)"""
BASE_NOVEL_LEAST = 5
"""images of a base class for validation, and again for test, at least"""


@dataclass(frozen=True, slots=True)
class SplitAssignment:
    """A side for every sample."""

    sides: NDArray[np.int8]
    """int8 [n]: TRAIN, VAL, TEST or NOVEL"""
    small_classes: NDArray[np.int64]
    """labels of classes that are too small to divide: all of their images are in train"""


def split_stratified(
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    fractions: Sequence[float],
    seed: int,
) -> SplitAssignment:
    """Divide every class by `fractions` (train, val, test; their sum is 1).

    labels: int64 [n]; units: int64 [n] or None, where each negative number is a separate unit. A class gives val and
    test their shares, rounded to the nearest count, at least one image each (none for a fraction of 0). A class
    without images left for train goes to train completely. With units, counts are as close as undivided units allow.
    """
    _check_fractions(fractions)
    counts = np.bincount(labels)
    targets = np.zeros((len(counts), _NUM_SIDES), dtype=np.int64)
    for side in (VAL, TEST):
        share = np.floor(fractions[side] * counts + 0.5).astype(np.int64)
        targets[:, side] = np.maximum(share, 1) if fractions[side] > 0 else 0
    return _fill_targets(labels, units, counts, targets, seed)


def split_base_novel(
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    num_base: int,
    seed: int,
) -> SplitAssignment:
    """PCN's split: the `num_base` largest classes are base, the others novel (PCN, experimental set-up).

    A base class gives max(5, 20% rounded down) images to val and as many to test; if none is left for train, the
    class goes to train completely. Ties in size: the smaller label is base (labels are in the order of their names).
    Raises RequestError if num_base leaves no novel class, or if a unit has both kinds of class.
    """
    counts = np.bincount(labels)
    num_classes = np.count_nonzero(counts)
    if not 1 <= num_base < num_classes:
        raise RequestError(
            f"num_base={num_base} must be in 1 … {num_classes - 1}: there are {num_classes} classes and at least "
            "one must stay novel"
        )
    is_base = np.zeros(len(counts), dtype=bool)
    is_base[np.argsort(-counts, kind="stable")[:num_base]] = True
    return split_given_base(labels, units, is_base, seed)


def split_given_base(
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    is_base: NDArray[np.bool_],
    seed: int,
) -> SplitAssignment:
    """`split_base_novel` for known base classes: is_base, bool [number of labels]."""
    counts = np.bincount(labels, minlength=len(is_base))
    sample_is_base = is_base[labels]
    _check_undivided(units, sample_is_base.astype(np.int64), "base and novel classes")

    share = np.maximum(BASE_NOVEL_LEAST, np.floor(BASE_NOVEL_SHARE * counts + 1e-9).astype(np.int64))
    targets = np.zeros((len(counts), _NUM_SIDES), dtype=np.int64)
    targets[:, VAL] = targets[:, TEST] = share
    sides = np.full(len(labels), NOVEL, dtype=np.int8)
    base_units = None if units is None else units[sample_is_base]
    base = _fill_targets(labels[sample_is_base], base_units, counts * is_base, targets, seed)
    sides[sample_is_base] = base.sides
    return SplitAssignment(sides, base.small_classes)


def split_classes(
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    fractions: Sequence[float],
    seed: int,
) -> SplitAssignment:
    """Class-disjoint split: whole classes go to train, val and test by `fractions` of the number of classes.

    Counts are rounded to the nearest, with at least one class for every fraction above 0. Raises RequestError if
    there are too few classes, or if a unit has classes of two splits.
    """
    _check_fractions(fractions)
    present = np.unique(labels)
    num = [0 if f == 0 else max(1, int(f * len(present) + 0.5)) for f in fractions]
    num_train = len(present) - num[VAL] - num[TEST]
    if num_train < 1:
        raise RequestError(
            f"split=classes with fractions={_as_text(fractions)} needs {num[VAL] + num[TEST] + 1} classes or more; "
            f"there are {len(present)}"
        )
    order = generator(seed, "split").permutation(present)
    side_of_label = np.zeros(int(present.max()) + 1, dtype=np.int8)
    side_of_label[order[num_train : num_train + num[VAL]]] = VAL
    side_of_label[order[num_train + num[VAL] :]] = TEST
    sides = side_of_label[labels]
    _check_undivided(units, sides.astype(np.int64), "classes of two splits")
    return SplitAssignment(sides, np.zeros(0, dtype=np.int64))


def holdout(
    selection: Selection, groups: NDArray[np.int64], fraction: float, seed: int
) -> tuple[Selection, Selection]:
    """Divide a selection in two, class by class, without dividing a group.

    Every class keeps at least one image in `rest`; a class that cannot spare one is not in `held_out`.

    Args:
        selection: the samples to divide.
        groups: int64 [num_samples of the catalogue], −1 for a sample without a group (it counts as a separate group).
        fraction: share of each class to hold out, 0 to below 1; 0 holds nothing out.
        seed: of the draw, 0 or more.

    Returns:
        (rest, held_out).
    """
    classes, labels = np.unique(selection.sample_labels, return_inverse=True)
    chosen = split_stratified(labels, groups[selection.ids], (1 - fraction, fraction, 0.0), seed)
    is_held = chosen.sides == VAL
    return (
        Selection.from_labels(selection.ids[~is_held], classes[labels[~is_held]]),
        Selection.from_labels(selection.ids[is_held], classes[labels[is_held]]),
    )


def find_divided_unit(units: NDArray[np.int64] | None, sides: NDArray[np.integer]) -> int | None:
    """The smallest unit (≥ 0) whose samples are on more than one of `sides` (int [n]); None if there is none."""
    if units is None:
        return None
    pairs = np.unique(np.stack([units, sides.astype(np.int64)])[:, units >= 0], axis=1)
    repeated = pairs[0, 1:][pairs[0, 1:] == pairs[0, :-1]]
    return int(repeated[0]) if len(repeated) else None


class DividedUnitError(RequestError):
    """A unit that must stay together is divided; `unit` is its number, so that the caller can report its name."""

    def __init__(self, unit: int, what: str) -> None:
        super().__init__(
            f"unit {unit} to keep together has samples of {what}; choose another split or correct its labels"
        )
        self.unit = unit
        self.what = what


def _check_undivided(units: NDArray[np.int64] | None, sides: NDArray[np.int64], what: str) -> None:
    divided = find_divided_unit(units, sides)
    if divided is not None:
        raise DividedUnitError(divided, what)


def _check_fractions(fractions: Sequence[float]) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise RequestError(
            f"fractions={_as_text(fractions)} must be three numbers for train, val and test, none negative, "
            "train above 0, that sum to 1, such as 0.7,0.1,0.2"
        )


def _as_text(fractions: Sequence[float]) -> str:
    return ",".join(f"{fraction:g}" for fraction in fractions)


def _fill_targets(
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    counts: NDArray[np.int64],
    targets: NDArray[np.int64],
    seed: int,
) -> SplitAssignment:
    """Give val and test the counts in `targets` (int64 [num_classes, sides]) of every class, train the rest."""
    needed = targets.sum(axis=1)
    too_small = (counts > 0) & (counts <= needed)
    targets = np.where(too_small[:, None], 0, targets)
    targets[:, TRAIN] = counts - targets.sum(axis=1)
    order = generator(seed, "split").permutation(len(labels))
    if units is None or np.all(units < 0):
        sides = _deal_samples(labels, targets, order)
    else:
        sides = _deal_units(labels, units, targets, order)
        # A class whose units were all dealt away has nothing to learn from; a small one may share its units with
        # larger classes. Both go to train whole; moves go to train only, so no other class loses its share of it.
        too_small |= (counts > 0) & (np.bincount(labels[sides == TRAIN], minlength=len(counts)) == 0)
        is_moved = too_small[labels]
        sides[is_moved | np.isin(units, units[is_moved & (units >= 0)])] = TRAIN
    return SplitAssignment(sides, np.flatnonzero(too_small))


def _deal_samples(
    labels: NDArray[np.int64], targets: NDArray[np.int64], order: NDArray[np.int64]
) -> NDArray[np.int8]:
    """Exact counts: in `order`, a class's first samples go to val, the next to test, the others to train."""
    by_class = order[np.argsort(labels[order], kind="stable")]
    sorted_labels = labels[by_class]
    rank = np.arange(len(labels)) - np.searchsorted(sorted_labels, sorted_labels)
    num_val = targets[sorted_labels, VAL]
    dealt = np.where(
        rank < num_val, VAL, np.where(rank < num_val + targets[sorted_labels, TEST], TEST, TRAIN)
    )
    sides = np.empty(len(labels), dtype=np.int8)
    sides[by_class] = dealt
    return sides


def _deal_units(
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    targets: NDArray[np.int64],
    order: NDArray[np.int64],
) -> NDArray[np.int8]:
    """Greedy, largest unit first: to the side that needs most of its samples, then to the relatively emptiest.

    In the spirit of iterative stratification (Sechidis et al. 2011), by units instead of single samples.
    """
    own = units.copy()
    alone = np.flatnonzero(units < 0)
    own[alone] = max(0, int(units.max()) + 1) + np.arange(len(alone))
    _, first_seen, unit_of_ordered, sizes = np.unique(
        own[order], return_index=True, return_inverse=True, return_counts=True
    )
    unit_of = np.empty(len(labels), dtype=np.int64)
    unit_of[order] = unit_of_ordered
    num_labels = len(targets)
    pairs, held = np.unique(unit_of * num_labels + labels, return_counts=True)
    starts = np.searchsorted(pairs, np.arange(len(sizes) + 1) * num_labels).tolist()
    # Plain lists: a million units of a few samples take seconds, with small arrays a minute.
    pair_labels, held_counts = (pairs % num_labels).tolist(), held.tolist()
    remaining: list[list[int]] = targets[:, : TEST + 1].tolist()
    wanted = np.maximum(targets, 1).tolist()
    side_of_unit = np.zeros(len(sizes), dtype=np.int8)
    for unit in np.lexsort((first_seen, -sizes)).tolist():
        mine = range(starts[unit], starts[unit + 1])
        best, best_score = TRAIN, (-1.0, 0.0)
        for side in (TRAIN, VAL, TEST):
            needed, emptiness = 0, 0.0
            for pair in mine:
                label = pair_labels[pair]
                left = remaining[label][side]
                needed += max(0, min(left, held_counts[pair]))
                emptiness += left / wanted[label][side]
            if (needed, emptiness) > best_score:
                best, best_score = side, (needed, emptiness)
        side_of_unit[unit] = best
        for pair in mine:
            remaining[pair_labels[pair]][best] -= held_counts[pair]
    return side_of_unit[unit_of]
