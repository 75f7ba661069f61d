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
    val: Score
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
    def own(self) -> Result:
        """The row's own head, by which its learning rate is chosen."""
        return next(iter(self.results.values()))
