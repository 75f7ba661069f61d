"""The schedulers in the form that Tune calls. Each records every validation before it decides,
and lets a run end by itself.

A run that should stop gets a stop message and reports its end itself, after its checkpoint: a STOP of Tune would
leave it waiting in an actor that the next trial needs.
"""

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, HyperBandScheduler, TrialScheduler

from tune.sweeps.config import SweepConfig
from tune.sweeps.engine.driver import Driver
from tune.sweeps.engine.population import FolderPopulation
from tune.sweeps.engine.records import is_end, number_of
from tune.sweeps.schedulers import HyperBand, Population


class FolderScheduler(FIFOScheduler):
    """Uses Tune's ASHA or median rule, restored from the reports in the sweep's folder."""

    def __init__(self, driver: Driver) -> None:
        super().__init__()
        self._driver = driver

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Stop the trial if the rule decides so."""
        if not is_end(result) and self._driver.report(number_of(trial), result["epoch"], result["value"]):
            self._driver.end_run(number_of(trial), trial.temporary_state.ray_actor)
        return TrialScheduler.CONTINUE


class FolderHyperBand(HyperBandScheduler):
    """Tune's HyperBand. The base is in no bracket.

    After a kill its brackets are filled again by the unfinished trials, each of which continues from its progress.
    """

    def __init__(self, driver: Driver, settings: HyperBand) -> None:
        super().__init__(
            time_attr="epoch",
            max_t=driver.config.max_epochs,
            reduction_factor=settings.reduction,
            stop_last_trials=False,  # a run ends itself, and is scored
        )
        self._driver = driver

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Add the trial to a bracket."""
        if number_of(trial) != self._driver.base_trial:
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Continue the trial, let it wait for the rest of the bracket, or stop it."""
        if is_end(result):
            return TrialScheduler.CONTINUE
        self._driver.report(number_of(trial), result["epoch"], result["value"])
        if not self._is_live(trial):
            return TrialScheduler.CONTINUE
        action = super().on_trial_result(tune_controller, trial, result)
        if action == TrialScheduler.STOP:
            self._driver.end_run(number_of(trial), trial.temporary_state.ray_actor)
            return TrialScheduler.CONTINUE
        return action

    def on_trial_remove(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Remove the trial from its bracket."""
        if self._is_live(trial):
            super().on_trial_remove(tune_controller, trial)

    def _is_live(self, trial: TuneTrial) -> bool:
        """Whether the trial is in a bracket and has not been stopped there."""
        return trial in self._trial_info and trial in self._trial_info[trial][0].current_trials()


def build_tune_scheduler(config: SweepConfig, driver: Driver) -> TrialScheduler:
    """The scheduler that a sweep names."""
    match config.scheduler:
        case HyperBand():
            return FolderHyperBand(driver, config.scheduler)
        case Population():
            return FolderPopulation(driver, config.scheduler)
    return FolderScheduler(driver)
