"""The keys that are allowed in a sweep's space and in its evaluation grid."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields

from fsl_dist.config import RunConfig
from fsl_dist.metrics.config import EvaluationConfig
from index.base.errors import ConfigError
from index.base.settings import known_keys
from tune.space import Knob, Scalar, Value

_NO_KNOBS = (
    "run.dir",
    "run.trackers",
    "data.dataset",
    "data.version",
    "workers.",
    "mining.run",
    "mining.actors",
    "mining.cpus",
    "mining.gpus",
)


def check_listed(points: Sequence[Mapping[str, Value]], space: Mapping[str, Knob]) -> None:
    """Raise ConfigError for a list of points with a key that no point may have, without points, or next to a space."""
    if not points:
        raise ConfigError(
            "points is empty: search=points tries those that it lists, such as [{training.lr: 1e-3}, "
            "{training.lr: 1e-4}]"
        )
    if space:
        raise ConfigError(
            "space belongs to the searches that draw points; search=points lists them in points"
        )
    for number, point in enumerate(points):
        for key in point:
            _check_key(f"points[{number}].", key)


def check_space(
    space: Mapping[str, Knob], search: object, points: Sequence[Mapping[str, Value]] = ()
) -> None:
    """Raise ConfigError for an unknown key, for one that needs no training or is common to all trials,
    and for invalid knobs."""
    if points:
        raise ConfigError("points lists the points to try, which needs search=points")
    if not space:
        raise ConfigError(
            "space is empty: name what trials differ by, such as training.lr: {loguniform: [1e-4, 1e-2]}"
        )
    for key, knob in space.items():
        _check_key("space.", key)
        knob.check(key)
        if search == "grid" and not knob.options:
            raise ConfigError(
                f"space.{key} is a range, and search=grid needs choice or grid (search=random supports ranges)"
            )


def _check_key(place: str, key: str) -> None:
    """Raise ConfigError for a key that trials cannot differ by."""
    known = known_keys(RunConfig)
    if key.startswith("evaluation."):
        raise ConfigError(
            f"{place}{key} needs no training: put it under evaluation ({key.partition('.')[2]}: [...]), where "
            "every value is scored on each trial"
        )
    if key.startswith(_NO_KNOBS):
        raise ConfigError(f"{place}{key} is the same for all trials (settings or resources name it)")
    if key not in known:
        raise ConfigError(f"{place}{key}: a run has no such key{_nearest(key, known)}")


def check_evaluation(grid: Mapping[str, tuple[Scalar, ...]]) -> None:
    """Raise ConfigError for a name that is not a setting of an evaluation,
    and for values that are missing or repeated."""
    names = {f.name for f in fields(EvaluationConfig)}
    known = known_keys(RunConfig)
    for name, values in grid.items():
        if name not in names:
            trained = sorted(key for key in known if name in (key, key.rpartition(".")[2]))
            if trained:
                raise ConfigError(f"evaluation.{name} changes what is trained: put {trained[0]} under space")
            raise ConfigError(f"evaluation.{name}: an evaluation has no such key{_nearest(name, names)}")
        if not values or len(set(values)) < len(values):
            raise ConfigError(f"evaluation.{name}={list(values)} must name different values, one or more")


def _nearest(key: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(key, sorted(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""
