"""The next point of a sweep: drawn at random, enumerated, or proposed by Optuna from the trials so far."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fsl_dist.seeding import generator
from index.base.extras import require
from tune.records import Trial
from tune.space import Knob, Point
from tune.sweep_settings import SweepSettings

if TYPE_CHECKING:
    import optuna


def check_search(config: SweepSettings) -> None:
    """Raise RequestError if the search needs a package that is not installed."""
    if config.search == "optuna":
        _import_optuna()


def next_point(config: SweepSettings, trials: Sequence[Trial]) -> tuple[int, Point] | None:
    """Return (number of the draw, the point) after those of `trials`; None if a grid or a list is exhausted.

    A drawn or enumerated point is a function of (seed, number of the draw); Optuna's also of the trials' values.
    """
    draw = max((trial.draw for trial in trials), default=-1) + 1
    if config.search == "optuna":
        return draw, _propose(config, trials, draw)
    if config.search_size is not None and draw >= config.search_size:
        return None
    return draw, config.point(draw)


def _propose(config: SweepSettings, trials: Sequence[Trial], draw: int) -> Point:
    """Optuna's TPE, rebuilt from all trials and seeded by the draw: it keeps no state."""
    optuna = _import_optuna()
    distributions = {key: _distribution_of(knob) for key, knob in config.space.items()}
    seed = int(generator(config.seed, "sweep optuna", draw).integers(2**32))
    # A running trial counts as a bad one, so that concurrent trials do not all try the same region.
    sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
    study = optuna.create_study(direction=f"{config.mode}imize", sampler=sampler)
    for trial in trials:
        if trial.point:
            study.add_trial(_told(config, trial, distributions))
    asked = study.ask(distributions)
    return {key: _value_of(knob, asked.params[key]) for key, knob in config.space.items()}


def _told(
    config: SweepSettings, trial: Trial, distributions: "dict[str, optuna.distributions.BaseDistribution]"
) -> "optuna.trial.FrozenTrial":
    optuna = _import_optuna()
    states = optuna.trial.TrialState
    params = {
        key: knob.options.index(trial.point[key]) if knob.options else trial.point[key]
        for key, knob in config.space.items()
    }
    result = trial.result
    if result is not None and result.state == "finished" and result.value is not None:
        return optuna.trial.create_trial(value=result.value, params=params, distributions=distributions)
    # Optuna ranks pruned trials without a value last, so it avoids the region of a failed trial. A trial that is
    # marked as failed would be ignored, and its point proposed again and again.
    reached = {result.epochs: result.value} if result and result.state == "stopped" else {}
    return optuna.trial.create_trial(
        state=states.PRUNED if result else states.RUNNING,
        params=params,
        distributions=distributions,
        intermediate_values=reached,
    )


def _distribution_of(knob: Knob) -> "optuna.distributions.BaseDistribution":
    distributions = _import_optuna().distributions
    if knob.options:
        return distributions.CategoricalDistribution(range(len(knob.options)))
    if knob.randint:
        return distributions.IntDistribution(*knob.randint)
    if knob.uniform:
        return distributions.FloatDistribution(*knob.uniform)
    return distributions.FloatDistribution(*knob.loguniform, log=True)


def _value_of(knob: Knob, found: float) -> bool | int | float | str | tuple:
    return knob.options[int(found)] if knob.options else found


def _import_optuna():  # type: ignore[no-untyped-def]
    require("optuna")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
