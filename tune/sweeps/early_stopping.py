"""Early stopping of trials: Ray Tune's ASHA or median rule, which gets every validation, and a log of its inputs.

The scheduler's state depends only on its inputs and their order, so the log is all there is to keep: after a kill the
same reports restore the same state. A trial that resumes from a checkpoint reports some epochs again and gets the
earlier decisions.
"""

import math
import os
from dataclasses import dataclass
from typing import Any

from index.base.checksums import encode_line
from index.base.files import Owner, write_atomic
from index.base.object_cache import put_appended
from tune.records import REPORTS_FILE, Report, SweepFolder
from tune.sweeps.config import SweepConfig
from tune.sweeps.schedulers import Asha, MedianRule


class StopRule:
    """Decides at each validation of each trial whether it stops. Used by the sweep's driver."""

    def __init__(self, config: SweepConfig, owner: Owner) -> None:
        self.owner = owner
        self._scheduler = build_scheduler(config)
        self._decided: dict[tuple[int, int, int], bool] = {}
        self.reports = SweepFolder(owner.folder).reports()
        for report in self.reports:
            self._decide(report, is_old=True)
        self._path = owner.folder / REPORTS_FILE
        owner.check()
        # Rewritten, not appended to: the file may end with a line that a kill truncated.
        write_atomic(self._path, "".join(map(_line, self.reports)).encode())

    def report(self, trial: int, epoch: int, value: float, change: int = 0) -> bool:
        """Whether `trial` stops after `epoch` epochs; recorded before it is returned.

        change: how often the trial continued from another one's network; it then reports the same epochs again.
        """
        if (trial, change, epoch) in self._decided:
            return self._decided[trial, change, epoch]
        stops = self._decide(Report(trial, epoch, value, False, change))
        self.owner.check()
        self.reports.append(Report(trial, epoch, value, stops, change))
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(self.reports[-1]))
            file.flush()
            os.fsync(file.fileno())
        put_appended(self._path)
        return stops

    def is_stopped(self, trial: int) -> bool:
        """Whether the trial was stopped before."""
        return any(stops for (number, *_), stops in self._decided.items() if number == trial)

    def _decide(self, report: Report, *, is_old: bool = False) -> bool:
        """Feed the scheduler. is_old: the report contains the decision of the scheduler's earlier run."""
        decided = self._scheduler.feed(report.trial, report.epoch, report.value)
        stops = report.stops if is_old else decided
        self._decided[report.trial, report.change, report.epoch] = stops
        return stops


class _GoOn:
    """Stops nothing."""

    def feed(self, trial: int, epoch: int, value: float) -> bool:
        """False."""
        return False


@dataclass(frozen=True, slots=True)
class _Member:
    """The part of a trial that a scheduler of Ray Tune uses: its name."""

    trial_id: str


class _TuneAsha:
    """Ray Tune's AsyncHyperBandScheduler with one bracket.
    It uses only a trial's id, and nothing of Tune's controller."""

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
        self._trials: dict[int, _Member] = {}

    def feed(self, trial: int, epoch: int, value: float) -> bool:
        """Whether the trial's value is below the cut of a rung that it has just reached."""
        if trial not in self._trials:
            self._trials[trial] = _Member(f"{trial:04d}")
            self._scheduler.on_trial_add(None, self._trials[trial])
        result = {"epoch": epoch, "value": value}
        action = self._scheduler.on_trial_result(None, self._trials[trial], result)
        return action == self._scheduler.STOP and trial != self._base_trial


class _TuneMedian:
    """Ray Tune's MedianStoppingRule, which never pauses a trial here. The base is neither stopped nor compared with."""

    def __init__(self, settings: MedianRule, base_trial: int) -> None:
        from ray.tune.schedulers import MedianStoppingRule

        self._base_trial = base_trial
        self._scheduler = MedianStoppingRule(
            time_attr="epoch",
            metric="value",
            mode="max",
            grace_period=settings.grace_epochs,
            min_samples_required=settings.min_trials,
            min_time_slice=math.inf,
        )
        self._stopped: set[int] = set()

    def feed(self, trial: int, epoch: int, value: float) -> bool:
        """Whether the trial's best value is below the median of the other trials' averages up to this epoch."""
        if trial == self._base_trial:
            return False
        if trial not in self._stopped:  # the rule accepts no more reports of a trial that it has stopped
            result: dict[str, Any] = {"epoch": epoch, "value": value}
            action = self._scheduler.on_trial_result(None, _Member(f"{trial:04d}"), result)
            if action == self._scheduler.STOP:
                self._stopped.add(trial)
        return trial in self._stopped


def build_scheduler(config: SweepConfig) -> _GoOn | _TuneAsha | _TuneMedian:
    """The rule that decides on each report separately;
    none for a scheduler that pauses trials (`tune.sweeps.engine`)."""
    base_trial = 0 if config.include_base else -1
    match config.scheduler:
        case Asha():
            return _TuneAsha(config.scheduler, config.max_epochs, base_trial)
        case MedianRule():
            return _TuneMedian(config.scheduler, base_trial)
    return _GoOn()


def _line(report: Report) -> str:
    facts = {"trial": report.trial, "epoch": report.epoch, "value": report.value, "stops": report.stops}
    return encode_line(facts | ({"change": report.change} if report.change else {}))
