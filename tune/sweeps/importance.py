"""The effect of each knob on the metric: its permutation importance in a small forest,
and the points of a scatter plot."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.base.errors import VersionError
from tune.records import TRIAL_FILE, Trial
from tune.space import Knob, Value

LEAST_TRIALS = 8
"""with fewer trials with a value than this, no importance is reported"""


def position_of(knob: Knob, value: Value) -> float:
    """Position of a value on its knob's axis: the number, its logarithm for loguniform,
    otherwise its index among the options."""
    if knob.options and not all(_is_number(option) for option in knob.options):
        return float(knob.options.index(value))
    if isinstance(value, str | tuple) or (knob.loguniform and value <= 0):
        raise ValueError(f"{value} is not a value of a knob of numbers")
    return math.log10(value) if knob.loguniform else float(value)


def _positions(trial: Trial, space: Mapping[str, Knob]) -> list[float]:
    try:
        return [position_of(knob, trial.point[key]) for key, knob in space.items()]
    except (KeyError, ValueError) as error:
        raise VersionError(
            f"{trial.folder / TRIAL_FILE} is damaged: its point is not in the sweep's space ({error})"
        ) from None


def scored_points(trials: Sequence[Trial], space: Mapping[str, Knob]) -> tuple[NDArray, NDArray]:
    """(float64 [n, knobs], float64 [n]): positions and values of the trials that have a value, the base left out."""
    rows = [trial for trial in trials if trial.is_scored and trial.point]
    points = np.array([_positions(trial, space) for trial in rows])
    return points.reshape(len(rows), len(space)), np.array(
        [trial.result.value for trial in rows if trial.result]
    )


def knob_importance(trials: Sequence[Trial], space: Mapping[str, Knob], seed: int = 0) -> dict[str, float]:
    """Share of each knob in the variation of the value, 0 … 1 with sum 1; empty with fewer than `LEAST_TRIALS` trials.

    Permutation importance (mean loss of R² over 20 shuffles, at least 0) of a forest of 200 trees fitted on all
    trials with a value; trials that were stopped early count with their values so far. All 0 if the value depends on
    no knob.
    """
    points, values = scored_points(trials, space)
    if len(values) < LEAST_TRIALS:
        return {}
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    forest = RandomForestRegressor(200, min_samples_leaf=2, random_state=seed).fit(points, values)
    found = permutation_importance(forest, points, values, n_repeats=20, random_state=seed)
    losses = np.maximum(found.importances_mean, 0.0)
    shares = losses / losses.sum() if losses.sum() > 0 else losses
    return {key: float(share) for key, share in zip(space, shares, strict=True)}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
