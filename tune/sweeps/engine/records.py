"""The callback by which Tune's events reach the sweep's folder."""

from dataclasses import fields
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial as TuneTrial

from tune.records import Result
from tune.sweeps.engine.driver import Driver

LEFT = "left"
"""state of a trial that stopped on request; it has not ended"""

_FIELDS = [field.name for field in fields(Result)]


class FolderRecords(Callback):
    """Records how trials end, and lets the driver check the running ones."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Check the running trials."""
        actors = {
            number_of(trial): trial.temporary_state.ray_actor for trial in trials if trial.status == "RUNNING"
        }
        self._driver.look({number: actor for number, actor in actors.items() if actor is not None})

    def on_trial_start(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """An actor has taken a trial."""
        self._driver.started(number_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, result: dict[str, Any], **info: Any
    ) -> None:
        """Write down the result that ends a trial; validations are the scheduler's."""
        if result.get("state") == LEFT:
            self._driver.left(number_of(trial))
        elif is_end(result):
            self._driver.ended(number_of(trial), Result(**{name: result[name] for name in _FIELDS}))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Record a trial that was stopped while it waited at a checkpoint; others have ended before."""
        self._driver.stopped_waiting(number_of(trial))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Record the loss of a trial's actor."""
        self._driver.died(number_of(trial))


class BudgetStopper(Stopper):
    """Ends Tune when the sweep's minutes are used up."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped by it."""
        return False

    def stop_all(self) -> bool:
        """Whether to end now."""
        return self._driver.must_end


def number_of(trial: TuneTrial) -> int:
    """The number of the sweep's trial that Tune runs as `trial`.
    A configuration may be another trial's, its id is not."""
    return int(trial.trial_id.partition("-")[0])


def is_end(result: dict[str, Any]) -> bool:
    """Whether the result is the end of a trial, and not a validation."""
    return "state" in result
