"""The used part of a fit's time budget, over all sessions."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from index.base.files import exists
from index.base.record_files import read_record, write_record

CLOCK_FILE = "clock.json"
_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Used:
    """What a fit has used of its budget."""

    used_s: float
    """since the call, all sessions together"""
    spent_s: dict[str, float]
    """the same by phase"""


class Clock:
    """Seconds of this session and of those before, by phase; written into the fit's folder every two seconds."""

    def __init__(self, out: Path, budget_s: float, started: float) -> None:
        """`started`: `time.monotonic()` when this session was called."""
        self.budget_s = budget_s
        self.spent_s: dict[str, float] = {}
        self._out = out
        self._started = started
        self._before_s = 0.0
        self._phase = ("start", started)
        self._stop = threading.Event()
        if exists(out / CLOCK_FILE):
            before = read_record(Used, out / CLOCK_FILE, out)
            self._before_s, self.spent_s = before.used_s, before.spent_s

    @property
    def used_s(self) -> float:
        """Seconds since the call, sessions before it included."""
        return self._before_s + time.monotonic() - self._started

    @property
    def left_s(self) -> float:
        """Seconds until the budget is used up."""
        return self.budget_s - self.used_s

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's seconds under `name`."""
        before = self._phase[0]
        self._turn(name)
        try:
            yield
        finally:
            self._turn(before)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write the seconds down while the block runs."""
        thread = threading.Thread(target=self._follow, name="clock", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()
            self.write()

    def write(self) -> None:
        """Write the seconds down."""
        write_record(self._out / CLOCK_FILE, Used(round(self.used_s, 2), self.by_phase()))

    def by_phase(self) -> dict[str, float]:
        """Seconds by phase, in order, that of the present phase up to now."""
        name, since = self._phase
        now = {name: self.spent_s.get(name, 0.0) + time.monotonic() - since}
        return {phase: round(seconds, 2) for phase, seconds in (self.spent_s | now).items()}

    def _turn(self, name: str) -> None:
        phase, since = self._phase
        now = time.monotonic()
        self.spent_s[phase] = self.spent_s.get(phase, 0.0) + now - since
        self._phase = name, now

    def _follow(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self.write()
