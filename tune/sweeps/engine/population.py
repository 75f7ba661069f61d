"""Population based training over trials that are run folders."""

from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from index.base.errors import RequestError
from index.base.settings import dump
from tune.records import Trial
from tune.space import Point
from tune.sweeps.engine.driver import Driver
from tune.sweeps.engine.perturbing import perturb
from tune.sweeps.engine.records import is_end, number_of
from tune.sweeps.engine.searcher import as_config
from tune.sweeps.schedulers import Population
from tune.sweeps.trial import check_point


class FolderPopulation(PopulationBasedTraining):
    """Tune's PopulationBasedTraining, asynchronous. A change is recorded in the trial's folder before the trial
    continues.

    The base provides its network to others and takes over none. After a kill the population consists of the
    unfinished trials.
    """

    def __init__(self, driver: Driver, settings: Population) -> None:
        super().__init__(
            time_attr="epoch",
            perturbation_interval=settings.every_epochs,
            quantile_fraction=settings.quantile,
            custom_explore_fn=_as_it_is,  # points are perturbed in _get_new_config
            log_config=False,
        )
        self._driver, self._settings = driver, settings

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Add the trial to the population, with the progress in its reports."""
        super().on_trial_add(tune_controller, trial)
        own = self._driver.under_way[number_of(trial)].trial
        epochs = [
            report.epoch
            for report in self._driver.stop_rule.reports
            if (report.trial, report.change) == (own.number, len(own.changes))
        ]
        epoch = max(epochs, default=own.changes[-1].epoch if own.changes else 0)
        state = self._trial_state[trial]
        state.last_train_time = epoch
        state.last_perturbation_time = epoch - epoch % self._settings.every_epochs

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Continue the trial, provide its network to others, or let it take over one."""
        if is_end(result):
            return TrialScheduler.CONTINUE
        self._driver.report(number_of(trial), result["epoch"], result["value"])
        return super().on_trial_result(tune_controller, trial, result)

    def _exploit(self, tune_controller: Any, trial: TuneTrial, trial_to_clone: TuneTrial) -> None:
        if number_of(trial) != self._driver.base_trial:
            super()._exploit(tune_controller, trial, trial_to_clone)

    def _get_new_config(
        self, trial: TuneTrial, trial_to_clone: TuneTrial
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        own = self._driver.under_way[number_of(trial)].trial
        donor = self._driver.under_way[number_of(trial_to_clone)].trial
        epoch = self._trial_state[trial_to_clone].last_train_time
        changed = self._driver.change(own.number, donor.number, epoch, self._perturb(own, donor))
        return as_config(changed), {}

    def _perturb(self, own: Trial, donor: Trial) -> Point:
        """The new point of `own`; the donor's if the perturbed one is invalid."""
        config = self._driver.config
        point = {key: donor.point.get(key, _value_of_base(config, key)) for key in config.space}
        new = perturb(
            config.space,
            point,
            seed=config.seed,
            trial=own.number,
            change=len(own.changes),
            resample=self._settings.resample,
        )
        try:
            check_point(config, new, own.folder)
        except RequestError:
            return point
        return new


def _as_it_is(config: dict[str, Any]) -> dict[str, Any]:
    return config


def _value_of_base(config: Any, key: str) -> Any:
    value: Any = dump(config.trial_base())
    for part in key.split("."):
        value = value[part]
    return tuple(value) if isinstance(value, list) else value
