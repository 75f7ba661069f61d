"""How long a sweep has run, this time and before, and how much of that its trials worked."""

import datetime
import time
from dataclasses import replace

from index.base.files import Owner
from tune.records import Result, Session, SweepFolder
from tune.sweep_settings import SweepSettings


class Clock:
    """How long the sweep has run, this time and before, written down as trials end."""

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
        self._cores_of_trial = cores_of_trial
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self._session = Session(started=now, cores=cores)

    @property
    def is_over(self) -> bool:
        """Whether the sweep's hours are used up."""
        return 0 < self._limit_s <= self._before_s + time.monotonic() - self.started

    def add(self, result: Result) -> None:
        """Count the work of a trial."""
        busy = (result.train_s + result.evaluate_s) * self._cores_of_trial
        self._session = replace(self._session, busy_core_s=self._session.busy_core_s + busy)
        self.write()

    def write(self) -> None:
        """Write down how long it has been."""
        self._session = replace(self._session, wall_s=time.monotonic() - self.started)
        self._folder.write_session(self._number, self._session)
