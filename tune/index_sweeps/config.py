"""Settings of a sweep of indexes: the vectors, the varied settings of builds and searches, and the criterion."""

import difflib
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field

from index.base.errors import ConfigError
from index.base.settings import dump, merge, settings, validate
from index.config import KINDS_OF, IndexConfig, Kind
from index.tune import has_codes
from tune.space import Point, show_point
from tune.sweep_settings import SweepSettings

SEARCH_PARAMETERS = ("nprobe", "ef_search", "k_factor")
"""search parameters that can change without another build"""
_NO_KNOBS = ("vectors", "labels", "metric", "device", "keep_versions", "memory_mb")
_MODES = {"ms": "min", "bytes": "min", "recall": "max"}


@settings("index")
class FileIndexConfig(IndexConfig):
    """An index of the vectors of a file."""

    vectors: str
    """float32 [n, dim] as .npy, or .parquet with one column of lists"""
    labels: str = ""
    """integers .npy [n], or a column of the .parquet file; empty: all vectors are of one class"""

    def settings(self) -> IndexConfig:
        """The index's own settings, without the files."""
        return IndexConfig(**{f.name: getattr(self, f.name) for f in fields(IndexConfig)})

    def with_whole_paths(self) -> "FileIndexConfig":
        """The same settings with absolute paths; a column's name is not changed."""
        is_file = self.labels and (self.labels.endswith(".npy") or Path(self.labels).expanduser().is_file())
        labels = str(Path(self.labels).expanduser().resolve()) if is_file else self.labels
        return replace(self, vectors=str(Path(self.vectors).expanduser().resolve()), labels=labels)


@settings("")
class IndexSweepConfig(SweepSettings):
    """All settings of a sweep of indexes: `space` defines builds, `evaluation` the searches on each of them."""

    subject: ClassVar[str] = "an index"

    index: FileIndexConfig
    """the vectors, and the settings that all builds share"""
    metric: Literal["ms", "recall", "bytes"] = "ms"
    """what builds are compared by, at their best search parameters: milliseconds per query or bytes per vector in
    memory, both with mode=min, or recall with mode=max"""
    mode: Literal["max", "min"] = "min"
    """min: smaller is better"""
    recall: Annotated[float, Field(ge=0, le=1)] = 0.95
    """share of the true neighbours that search parameters must find to be accepted"""
    max_ms: Annotated[float, Field(ge=0)] = 0.0
    """maximum milliseconds per query of accepted search parameters; 0: no limit"""
    k: Annotated[int, Field(ge=1)] = 10
    """neighbours a query"""
    sample: Annotated[int, Field(ge=1)] = 1000
    """number of vectors of the index that are used as queries, each excluded from its own answer"""
    at_once: Annotated[int, Field(ge=0)] = 0
    """queries per search; 0: all of the sample together"""

    def __post_init__(self) -> None:
        if self.mode != _MODES[self.metric]:
            raise ConfigError(
                f"mode={self.mode} with metric={self.metric}: the better index has the "
                f"{'smaller' if self.mode == 'max' else 'larger'} one (mode={_MODES[self.metric]})"
            )
        if not isinstance(self.search, str):
            raise ConfigError(
                "search.kind=import belongs to sweeps of runs: indexes are measured without Ray, whose searchers "
                "it names (search: random, grid or optuna)"
            )
        self._check_space()
        self._check_evaluation()
        self.check_points()

    @property
    def value_name(self) -> str:
        """What builds are compared by."""
        return self.metric

    def trial_config(self, point: Point) -> IndexConfig:
        """The index settings of a point; raises ConfigError if settings exclude each other."""
        tree = merge(dump(self.index.settings()), point)
        return validate(IndexConfig, tree, f"the point {show_point(point)}" if point else "the base", "index")

    def search_settings(self, own: dict[str, int], kind: Kind, num_clusters: int) -> list[dict[str, int]]:
        """All combinations of the evaluation grid for an index of this kind with the parameters `own`,
        each with all parameters.

        A parameter that is missing in the grid is not changed, and neither is k_factor if FAISS ranks by the vectors
        themselves, so that more candidates find nothing more. A value above the number of clusters means all of them.
        """
        cells = [dict(own)]
        for name, values in self.evaluation.items():
            if name in own and name in _takes(kind):
                most = num_clusters if name == "nprobe" else 1 << 30
                wanted = dict.fromkeys(min(int(value), most) for value in values)
                cells = [{**cell, name: value} for cell in cells for value in wanted]
        return cells

    def is_enough(self, recall: float, ms: float) -> bool:
        """Whether search parameters that were measured so count."""
        return recall >= self.recall and (not self.max_ms or ms <= self.max_ms)

    def _check_space(self) -> None:
        if self.search == "points" or self.points:
            raise ConfigError("search=points lists runs; a sweep of indexes names its builds by space")
        if not self.space:
            raise ConfigError(
                "space is empty: name what builds differ by, such as kind: {choice: [ivf_flat, ivf_pq]}"
            )
        known = {f.name for f in fields(IndexConfig)}
        for key, knob in self.space.items():
            if key in SEARCH_PARAMETERS:
                raise ConfigError(
                    f"space.{key} needs no build: put it under evaluation ({key}: [...]), where every value is "
                    "measured on each build"
                )
            if key in _NO_KNOBS:
                raise ConfigError(f"space.{key} is the same for all builds (index names it: index.{key})")
            if key not in known:
                raise ConfigError(f"space.{key}: an index has no such key{_nearest(key, known)}")
            knob.check(key)
            if self.search == "grid" and not knob.options:
                raise ConfigError(
                    f"space.{key} is a range, and search=grid needs choice or grid (search=random supports ranges)"
                )

    def _check_evaluation(self) -> None:
        builds = {f.name for f in fields(IndexConfig)} - set(SEARCH_PARAMETERS)
        knob = self.space.get("kind")
        kinds = [kind for kind in get_args(Kind) if kind in (knob.options if knob else [self.index.kind])]
        for name, values in self.evaluation.items():
            if name in builds:
                raise ConfigError(f"evaluation.{name} needs a build: put it under space")
            if name not in SEARCH_PARAMETERS:
                raise ConfigError(
                    f"evaluation.{name}: a search has no such parameter{_nearest(name, SEARCH_PARAMETERS)}"
                )
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"evaluation.{name}={list(values)} must name different values, one or more")
            if not all(type(value) is int and value >= 1 for value in values):
                raise ConfigError(f"evaluation.{name}={list(values)} must be whole numbers of at least 1")
            if not any(name in _takes(kind) for kind in kinds):
                takers = [kind for kind in get_args(Kind) if name in _takes(kind)]
                raise ConfigError(
                    f"evaluation.{name} moves nothing on {' and '.join(f'kind={kind}' for kind in kinds)}; it "
                    f"belongs to {' and '.join(f'kind={kind}' for kind in takers)}"
                )


def _takes(kind: Kind) -> list[str]:
    """Search parameters that affect the results of an index of this kind."""
    return [
        name
        for name in SEARCH_PARAMETERS
        if (has_codes(kind) if name == "k_factor" else kind in KINDS_OF[name])
    ]


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(known))}"
