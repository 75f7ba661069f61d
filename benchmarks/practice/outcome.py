"""What a row is given, and what it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.practice.parts import Prepared
from benchmarks.practice.scores import Score
from benchmarks.practice.spent import Spent


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one row."""

    prepared: Prepared
    seed: int
    rate: float = 0.0
    """learning rate, of rows that have one"""
    budget_s: float = 0.0
    """seconds, of rows that are given time"""


@dataclass(frozen=True, slots=True)
class Result:
    """Scores of one head. Test is not looked at before the run was chosen."""

    setting: str
    """what validation chose, in words"""
    val: Score | None
    """None for a network that was trained on the validation images after it was chosen"""
    test: Callable[[], Score]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run."""

    spent: Spent
    """of training or searching, without scoring"""
    images: int
    """seen while training"""
    results: Mapping[str, Result]
    """by head, the row's own first"""
    setup: Spent
    """of features or activations, which are computed once for all runs of a row; nothing where there are none"""

    @property
    def validated(self) -> float:
        """What learning rates are compared by: the validation score of the row's own head; 0 where there is none."""
        own = next(iter(self.results.values()))
        return 0.0 if own.val is None else own.val.chosen_by
