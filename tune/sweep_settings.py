"""The settings that all sweeps share: the points and their order, their number, and the criterion."""

import abc
from dataclasses import field
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from index.base.errors import ConfigError
from index.base.settings import settings
from tune.space import Knob, Point, Scalar, Value, draw_point, grid_point, grid_size

_MOST_PRUNED = 200
"""number of consecutive points that may be refused before the sweep gives up on its space"""
_PROBES_OF_GRID = 10_000
"""number of combinations of a grid that are checked against the rules of the varied object before a sweep starts"""


@settings("search")
class ImportedSearch:
    """A `ray.tune.search.Searcher` that proposes the points, imported by its path."""

    kind: Literal["import"] = "import"
    class_: Annotated[str, Field(pattern=r"^\w+(\.\w+)*:\w+$")]
    """its import path, `package.module:Class`; `class` in YAML"""
    settings: dict[str, Scalar] = field(default_factory=dict)
    """what its constructor is called with; the space, the metric and the mode come from the sweep"""


@settings("")
class SweepSettings(abc.ABC):
    """The part of a sweep's settings that is the same for runs and for indexes."""

    subject: ClassVar[str]
    """what a point creates"""

    dir: str = ""
    """the sweep's folder, which contains its trials"""
    space: dict[str, Knob] = field(default_factory=dict)
    """what trials differ by: dotted key → knob"""
    evaluation: dict[str, tuple[Scalar, ...]] = field(default_factory=dict)
    """what needs no new trial: name of a setting → values; every combination is measured on each trial"""
    mode: Literal["max", "min"] = "max"
    """max: larger is better"""
    search: Literal["random", "grid", "optuna", "points"] | ImportedSearch = "random"
    """random: points drawn by seed; grid: all combinations; optuna: proposed by Optuna's TPE from the trials so far
    (needs `optuna`); points: those of `points`; or a Searcher of Ray Tune:
    `{kind: import, class: "package.module:Class", settings: {…}}`"""
    points: tuple[dict[str, Value], ...] = ()
    """search=points: what each trial changes of the base, dotted key → value, in the order in which they are tried"""
    trials: Annotated[int, Field(ge=1)] = 20
    """points that are tried; a grid has no more than its combinations, and of `points` all are tried"""
    include_base: bool = True
    """trial 0000 is the unchanged base, in addition to the others: it is never stopped early, and not counted"""
    hours: Annotated[float, Field(ge=0)] = 0.0
    """no trial starts after so many hours of running, resumed ones together; 0: no limit"""
    max_failures: Annotated[int, Field(ge=-1)] = -1
    """maximum number of failed trials before the sweep ends; −1: any number"""
    seed: Annotated[int, Field(ge=0)] = 0
    """points are functions of it; a run's own draws start from base.run.seed"""

    @property
    @abc.abstractmethod
    def value_name(self) -> str:
        """What trials are compared by."""

    @abc.abstractmethod
    def trial_config(self, point: Point) -> object:
        """The settings of a point's trial; ConfigError for a point that breaks their rules."""

    @property
    def search_name(self) -> str:
        """What proposes the points, in a word."""
        return self.search if isinstance(self.search, str) else self.search.class_

    def check_points(self) -> None:
        """Raise the first point's error if none of many points is valid."""
        first: ConfigError | None = None
        size = self.most_pruned if self.search_size is None else self.search_size
        for number in range(min(size, _PROBES_OF_GRID)):
            try:
                self.trial_config(self.point(number))
            except ConfigError as error:
                first = first or error
            else:
                return
        raise ConfigError(f"no point of the space makes {self.subject}; the first error: {first}")

    def point(self, number: int) -> Point:
        """Point `number` (0, 1, …) of a search that does not depend on trials: of a grid, or drawn."""
        if self.search == "grid":
            return grid_point(self.space, number)
        if self.search == "points":
            return self.points[number]
        return draw_point(self.space, self.seed, number)

    @property
    def num_points(self) -> int:
        """Points to try, the base itself left out."""
        if self.search == "points":
            return len(self.points)
        return self.trials if self.search_size is None else min(self.trials, self.search_size)

    @property
    def search_size(self) -> int | None:
        """Total number of points of the search: combinations of a grid, points of a list; None if it is unlimited."""
        if self.search == "points":
            return len(self.points)
        return grid_size(self.space) if self.search == "grid" else None

    @property
    def keys(self) -> tuple[str, ...]:
        """The dotted keys that trials differ by."""
        return tuple(dict.fromkeys([*self.space, *(key for point in self.points for key in point)]))

    @property
    def most_pruned(self) -> int:
        """Number of consecutive invalid points before the sweep gives up; a grid or a list is exhausted instead."""
        return _MOST_PRUNED if self.search_size is None else self.search_size + 1
