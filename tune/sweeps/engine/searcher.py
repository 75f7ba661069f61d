"""The search algorithm that passes the trials of a sweep's plan to Tune, each under its number."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.search.search_algorithm import SearchAlgorithm

from tune.records import Trial
from tune.sweeps.engine.driver import Driver

if TYPE_CHECKING:
    from ray.tune.experiment import Experiment


class FolderSearch(SearchAlgorithm):
    """Yields the unfinished trials of the sweep's folder, then new points.

    It is not a `Searcher`, since PopulationBasedTraining does not accept one, and since a Searcher would let Tune
    name the trials. Its state is the folder, so nothing is saved or restored.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._attempts: dict[int, int] = {}
        self._is_ended = False

    def add_configurations(self, experiments: "list[Experiment]") -> None:
        """Set the experiment for which trials are created."""
        self._spec: dict[str, Any] = experiments[0].spec

    def next_trial(self) -> TuneTrial | None:
        """The next trial as Tune runs it."""
        trial = None if self._is_ended else self._driver.next_trial()
        if trial is None:
            return None
        attempt = self._attempts[trial.number] = self._attempts.get(trial.number, 0) + 1
        return TuneTrial(
            self._spec["run"],
            config=as_config(trial, is_stopped=self._driver.stop_rule.is_stopped(trial.number)),
            trial_id=f"{trial.number:04d}" if attempt == 1 else f"{trial.number:04d}-{attempt}",
            storage=self._spec["storage"],
            max_failures=0,  # the driver submits it again
        )

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Does nothing: the plan reads results when it needs them."""

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing, likewise."""

    def is_finished(self) -> bool:
        """Whether no trial comes any more; one that dies comes again."""
        return self._is_ended or self._driver.is_finished

    def set_finished(self) -> None:
        """End the search."""
        self._is_ended = True

    def has_checkpoint(self, dirpath: str) -> bool:
        """Never."""
        return False

    def save_to_dir(self, dirpath: str, **kwargs: Any) -> None:
        """Nothing."""

    def restore_from_dir(self, dirpath: str) -> None:
        """Nothing."""


def as_config(trial: Trial, *, is_stopped: bool = False) -> dict[str, Any]:
    """The configuration of a trial for the trainable. is_stopped: the trial was stopped before, and its run is over."""
    return {
        "number": trial.number,
        "point": {key: list(v) if isinstance(v, tuple) else v for key, v in trial.point.items()},
        "changes": [asdict(change) for change in trial.changes],
        "is_stopped": is_stopped,
    }
