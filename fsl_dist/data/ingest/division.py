"""Which samples go to train, val, test, novel: the split options that pack, adopt and resplit share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.names.readings import read_known
from fsl_dist.data.split import (
    NOVEL,
    TEST,
    TRAIN,
    VAL,
    DividedUnitError,
    find_divided_unit,
    split_base_novel,
    split_classes,
    split_given_base,
    split_stratified,
)
from fsl_dist.errors import RequestError

SplitKind = Literal["stratified", "classes", "base-novel", "column", "folders"]
"""`folders`: what `pack` records of a source whose folders give the splits"""

_DEFAULT_FRACTIONS: dict[str, tuple[float, ...]] = {"stratified": (0.7, 0.1, 0.2), "classes": (0.6, 0.2, 0.2)}


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitOptions:
    """How samples are divided among the splits."""

    split: SplitKind | Literal[""] = ""
    """empty: the split that the source gives for each sample if a column or key is set, otherwise stratified"""
    num_base: int | None = None
    """base-novel: number of base classes, which are the largest ones"""
    fractions: tuple[float, ...] | None = None
    """train, val, test, summing to 1; stratified: of images, default 0.7, 0.1, 0.2; classes:
    of classes, default 0.6, 0.2, 0.2"""
    seed: int = 0
    """splits, and for pack the order in the shards"""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RequestError(f"seed={self.seed} must be at least 0")
        name, value = self.split_source
        if value and self.split not in ("", "column"):
            raise RequestError(f"{name}={value} and split={self.split} both decide the split; leave one out")
        if self.split == "column" and not value:
            raise RequestError(f"split=column needs {name}=…, which names the split of each sample")
        if self.split_kind == "base-novel" and self.num_base is None:
            raise RequestError("split=base-novel needs num_base=…, the number of base classes")
        if self.split_kind != "base-novel" and self.num_base is not None:
            raise RequestError(f"num_base={self.num_base} belongs to split=base-novel")
        if self.fractions is not None and self.split_kind not in _DEFAULT_FRACTIONS:
            raise RequestError(
                f"fractions=… belongs to split=stratified or split=classes, not to split={self.split_kind}"
            )

    @property
    def split_source(self) -> tuple[str, str]:
        """(argument that sets where each sample's split is read, its value; empty: not set)."""
        return "split_column", ""

    @property
    def split_kind(self) -> SplitKind:
        """The split that is made, defaults resolved."""
        return self.split or ("column" if self.split_source[1] else "stratified")

    @property
    def rule(self) -> dict[str, object]:
        """The rule as a catalogue stores it."""
        return {
            "split": self.split_kind,
            "num_base": self.num_base,
            "fractions": self.fractions or _DEFAULT_FRACTIONS.get(self.split_kind),
            "seed": self.seed,
        }


def number_names(names: Sequence[str], known: Sequence[str] = ()) -> tuple[list[str], NDArray[np.int64]]:
    """(distinct names, int64 [n]: position of each of `names`, −1 for an empty one).

    `known` names keep their positions, even if an earlier version or another kind of source wrote them differently
    (`1.0` for `1`, `readings.read_value`). The others follow, sorted by value if all are whole numbers, otherwise as
    text.
    """
    values = {read_known(name): number for number, name in enumerate(known)}
    position = {name: values[value] for name in set(names) if (value := read_known(name)) in values}
    position |= {name: number for number, name in enumerate(known)}
    added = {name for name in names if name and name not in position}
    if all(name.isascii() and name.isdecimal() and len(name) < 19 for name in added):
        ordered = sorted(added, key=lambda name: (int(name), name))
    else:
        ordered = sorted(added)
    position |= {name: len(known) + number for number, name in enumerate(ordered)}
    return [*known, *ordered], np.array([position.get(name, -1) for name in names], dtype=np.int64)


def divide(
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    splits: Sequence[str],
    names: tuple[Sequence[str], Sequence[str]],
    options: SplitOptions,
    old: Catalogue | None = None,
) -> tuple[NDArray[np.int8], list[str]]:
    """(side of every sample, int8 [n]; warnings).

    labels, units: int64 [n], −1 for no unit; splits: names, used only for split kinds `column` and `folders`;
    `names`: of classes and of units, for errors. If the samples are added to `old`, its labels and units keep their
    numbers, new ones follow, and its own samples keep their split. A new sample with a known unit (for class-disjoint
    splits: a known class) gets the split of that unit, and a new class is novel if there are base classes. All others
    are divided by the rule. Raises RequestError if the split is impossible.
    """
    class_names, unit_names = names
    kind, warnings = options.split_kind, list[str]()
    try:
        if kind in ("column", "folders"):
            sides = np.array([SPLITS.index(split) for split in splits], dtype=np.int8)
            _check_undivided(units, sides, "two splits in the split column")
            if kind == "folders":
                warnings = _warn_of_untrained(labels, sides, class_names, old)
        else:
            sides = (
                np.full(len(labels), -1, dtype=np.int8)
                if old is None
                else _follow(old, labels, units, names, kind)
            )
            kept = units if len(unit_names) else None
            sides, warnings = _divide_open(sides, labels, kept, class_names, options, is_first=old is None)
        if old is not None:
            _check_undivided(
                np.concatenate([old.units, units]),
                np.concatenate([old.splits, sides]),
                "two splits, counting those already in the data set",
            )
    except DividedUnitError as error:
        raise RequestError(
            f"keep_together=…: '{unit_names[error.unit]}' has samples of {error.what}; "
            "choose another split or correct the table"
        ) from error
    return sides, warnings


def _warn_of_untrained(
    labels: NDArray[np.int64], sides: NDArray[np.int8], class_names: Sequence[str], old: Catalogue | None
) -> list[str]:
    """A warning where val or test have classes that train lacks, though not as novel ones."""
    trained = labels[sides == TRAIN]
    if old is not None:
        trained = np.concatenate([trained, old.labels[old.splits == TRAIN]])
    missing = np.setdiff1d(labels[(sides == VAL) | (sides == TEST)], trained)
    if not len(missing):
        return []
    shown = ", ".join(f"'{class_names[label]}'" for label in missing[:5].tolist())
    more = f" … ({len(missing)} in all)" if len(missing) > 5 else ""
    return [f"of the classes in val and test, train has no images of {shown}{more}"]


def _follow(
    old: Catalogue,
    labels: NDArray[np.int64],
    units: NDArray[np.int64],
    names: tuple[Sequence[str], Sequence[str]],
    kind: SplitKind,
) -> NDArray[np.int8]:
    """int8 [n]: the sides of samples that are determined by those in `old`, −1 for the others."""
    class_names, unit_names = names
    side_of_class = _known_sides(old.labels, old.splits, len(class_names))
    side_of_unit = _known_sides(
        old.units, old.splits, len(unit_names) + 1
    )  # unit −1 reads the last entry: none
    sides = side_of_class[labels] if kind == "classes" else np.full(len(labels), -1, dtype=np.int8)
    if kind == "base-novel":
        sides[(side_of_class[labels] < 0) | (side_of_class[labels] == NOVEL)] = NOVEL
    return np.where(sides < 0, side_of_unit[units], sides)


def _divide_open(
    sides: NDArray[np.int8],
    labels: NDArray[np.int64],
    units: NDArray[np.int64] | None,
    class_names: Sequence[str],
    options: SplitOptions,
    *,
    is_first: bool,
) -> tuple[NDArray[np.int8], list[str]]:
    """Divide the samples whose side is −1 by the rule; is_first: they are the first of their data set."""
    is_open = sides < 0
    if not is_open.any():
        return sides, []
    labels, units = labels[is_open], None if units is None else units[is_open]
    kind, seed = options.split_kind, options.seed
    fractions = options.fractions or _DEFAULT_FRACTIONS.get(kind, ())
    if kind == "base-novel" and is_first:
        assigned = split_base_novel(labels, units, cast(int, options.num_base), seed)
    elif kind == "base-novel":
        assigned = split_given_base(labels, units, np.ones(len(class_names), dtype=np.bool_), seed)
    elif kind == "classes" and not is_first and len(np.unique(labels)) < len(SPLITS) - 1:
        sides[is_open] = TRAIN
        new = ", ".join(f"'{class_names[label]}'" for label in np.unique(labels))
        return sides, [f"new classes {new} are too few for split=classes: all of their images go to train"]
    elif kind == "classes":
        assigned = split_classes(labels, units, fractions, seed)
    else:
        assigned = split_stratified(labels, units, fractions, seed)
    sides[is_open] = assigned.sides
    counts = np.bincount(labels)
    return sides, [
        f"class '{class_names[label]}' is too small for split={kind} ({counts[label]} images): all go to train"
        for label in assigned.small_classes.tolist()
    ]


def _known_sides(numbers: NDArray[np.int64], sides: NDArray[np.int8], length: int) -> NDArray[np.int8]:
    """int8 [length]: the side of each number that occurs, −1 for all others."""
    known = np.full(length, -1, dtype=np.int8)
    known[numbers[numbers >= 0]] = sides[numbers >= 0]
    return known


def _check_undivided(units: NDArray[np.int64], sides: NDArray[np.int8], what: str) -> None:
    divided = find_divided_unit(units, sides)
    if divided is not None:
        raise DividedUnitError(divided, what)
