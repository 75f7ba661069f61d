"""The total running time of a sweep, over all sessions, and the working time of its trials."""

import datetime
import time
from dataclasses import replace

from index.base.files import Owner
from tune.records import Result, Session, SweepFolder
from tune.sweep_settings import SweepSettings

OVERDUE = 1.03
"""maximum running time of a sweep as a multiple of its minutes: ending Ray takes a few more seconds"""


class Clock:
    """The total running time of the sweep, recorded when trials end."""

    def __init__(
        self,
        config: SweepSettings,
        folder: SweepFolder,
        owner: Owner,
        cores: float,
        cores_of_trial: float,
        started: float | None,
    ) -> None:
        self._folder, self._number = folder, owner.epoch
        self.started = time.monotonic() if started is None else started
        self._before_s = sum(session.wall_s for session in folder.sessions())
        self._limit_s = config.hours * 3600
        self._budget_s = getattr(config, "minutes", 0.0) * 60
        self._cores_of_trial = cores_of_trial
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._session = Session(started=now, cores=cores)
        self._core_s, self._seen = 0.0, (self.started, cores)

    @property
    def is_over(self) -> bool:
        """Whether the sweep's hours or minutes are used up, so that no trial starts."""
        return 0 < self._limit_s <= self.used_s or self.is_due

    @property
    def used_s(self) -> float:
        """Seconds that the sweep has run, this time and before."""
        return self._before_s + time.monotonic() - self.started

    @property
    def is_due(self) -> bool:
        """Whether the sweep's minutes are used up, so that trials under way stop at their next validation."""
        return 0 < self._budget_s <= self.used_s

    @property
    def is_overdue(self) -> bool:
        """Whether trials that have not stopped since then are ended at once."""
        return 0 < OVERDUE * self._budget_s <= self.used_s

    def see(self, cores: float) -> None:
        """Record the current number of cores of the cluster; a session's number is the mean over its time."""
        at, before = self._seen
        now = time.monotonic()
        self._core_s += before * (now - at)
        self._seen = now, cores

    def add(self, result: Result) -> None:
        """Count the work of a trial."""
        busy = (result.train_s + result.evaluate_s) * self._cores_of_trial
        self._session = replace(self._session, busy_core_s=self._session.busy_core_s + busy)
        self.write()

    def write(self) -> None:
        """Record the running time so far."""
        self.see(self._seen[1])
        wall_s = self._seen[0] - self.started
        self._session = replace(self._session, wall_s=wall_s, cores=self._core_s / max(wall_s, 1e-9))
        self._folder.write_session(self._number, self._session)
