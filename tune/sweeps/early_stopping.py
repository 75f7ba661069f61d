"""Which trials are stopped early: Ray Tune's ASHA, fed with every validation, and a file of what it was fed.

The scheduler's state is what it was told and in which order, so the file is all there is to keep: after a kill the same
reports make the same state. A trial that goes on from a checkpoint reports some epochs again and hears what was decided.
"""

import json
import os
from types import SimpleNamespace
from typing import Any

from index.base.files import Owner, write_atomic
from index.base.object_cache import put_appended
from tune.records import REPORTS_FILE, Report, SweepFolder
from tune.sweeps.config import Asha, SweepConfig


class Judge:
    """Answers each validation of each trial: stop here, or go on. One process has it; Ray makes it an actor."""

    def __init__(self, config: SweepConfig, owner: Owner) -> None:
        self.owner = owner
        self._scheduler = build_scheduler(config)
        self._decided: dict[tuple[int, int], bool] = {}
        reports = SweepFolder(owner.folder).reports()
        for report in reports:
            self._decide(report.trial, report.epoch, report.value, report.stops)
        self._path = owner.folder / REPORTS_FILE
        owner.check()
        # Anew, not appended to: a line that a kill cut off must not stand before the next one.
        write_atomic(self._path, "".join(map(_line, reports)).encode())

    def report(self, trial: int, epoch: int, value: float) -> bool:
        """Whether `trial` stops after `epoch` epochs; written down before it is said."""
        if (trial, epoch) in self._decided:
            return self._decided[trial, epoch]
        stops = self._decide(trial, epoch, value)
        self.owner.check()
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(Report(trial, epoch, value, stops)))
            file.flush()
            os.fsync(file.fileno())
        put_appended(self._path)
        return stops

    def is_stopped(self, trial: int) -> bool:
        """Whether the trial was told to stop before."""
        return any(stops for (number, _), stops in self._decided.items() if number == trial)

    def _decide(self, trial: int, epoch: int, value: float, stops: bool | None = None) -> bool:
        """Feed the scheduler; `stops`: what it had decided when it was fed this before."""
        decided = self._scheduler.feed(trial, epoch, value)
        self._decided[trial, epoch] = decided if stops is None else stops
        return self._decided[trial, epoch]


class _GoOn:
    """Stops nothing."""

    def feed(self, trial: int, epoch: int, value: float) -> bool:
        """False."""
        return False


class _TuneAsha:
    """Ray Tune's AsyncHyperBandScheduler with one bracket. It asks of a trial its id and of Tune's controller nothing."""

    def __init__(self, settings: Asha, max_epochs: int, base_trial: int) -> None:
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._base_trial = base_trial
        self._scheduler = AsyncHyperBandScheduler(
            time_attr="epoch",
            metric="value",
            mode="max",
            max_t=max(max_epochs, settings.grace_epochs),
            grace_period=settings.grace_epochs,
            reduction_factor=settings.reduction,
            stop_last_trials=False,
        )
        self._trials: dict[int, Any] = {}

    def feed(self, trial: int, epoch: int, value: float) -> bool:
        """Whether the trial's value is below the cut of a rung that it has just reached."""
        if trial not in self._trials:
            self._trials[trial] = SimpleNamespace(trial_id=f"{trial:04d}")
            self._scheduler.on_trial_add(None, self._trials[trial])
        result = {"epoch": epoch, "value": value}
        action = self._scheduler.on_trial_result(None, self._trials[trial], result)
        return action == self._scheduler.STOP and trial != self._base_trial


def build_scheduler(config: SweepConfig) -> _GoOn | _TuneAsha:
    """The scheduler that a sweep names."""
    if isinstance(config.scheduler, Asha):
        return _TuneAsha(config.scheduler, config.max_epochs, 0 if config.include_base else -1)
    return _GoOn()


def _line(report: Report) -> str:
    facts = {"trial": report.trial, "epoch": report.epoch, "value": report.value, "stops": report.stops}
    return json.dumps(facts) + "\n"
