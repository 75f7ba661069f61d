"""Timing several ways of doing the same work in turn, so that a noisy machine is noisy for all of them."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Clock = Literal["wall", "cpu"]


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one contender."""

    units: float
    """how much work it did"""
    wall_s: float
    cpu_s: float
    """CPU time of this process, its threads, and its child processes with theirs"""

    def per_unit_ms(self, clock: Clock) -> float:
        """Thousandths of a second a unit of work took."""
        return 1000 * (self.wall_s if clock == "wall" else self.cpu_s) / self.units


@dataclass(frozen=True, slots=True)
class Measured:
    """All rounds of all contenders; round i of each was taken side by side with round i of the others."""

    unit: str
    """what a unit of work is: image, step, query"""
    rounds: Mapping[str, Sequence[Round]]

    def median_ms(self, name: str, clock: Clock = "wall") -> float:
        """Median over the rounds of the milliseconds a unit."""
        return statistics.median(turn.per_unit_ms(clock) for turn in self.rounds[name])

    def ratios(self, name: str, to: str, clock: Clock = "wall") -> list[float]:
        """Time a unit of `name` over that of `to`, pair by pair."""
        return [
            one.per_unit_ms(clock) / other.per_unit_ms(clock)
            for one, other in zip(self.rounds[name], self.rounds[to], strict=True)
        ]


def interleave(
    contenders: Mapping[str, Callable[[], float]], *, unit: str, rounds: int = 5, warm_up: int = 1
) -> Measured:
    """Run each contender once a round, `warm_up` rounds uncounted first; a call returns how many units it did.

    Every other round goes backwards, so that none always follows the same one.
    """
    measured: dict[str, list[Round]] = {name: [] for name in contenders}
    for turn in range(-warm_up, rounds):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            cpu, wall = tree_cpu_s(), time.perf_counter()
            units = contenders[name]()
            took = Round(units, time.perf_counter() - wall, tree_cpu_s() - cpu)
            if turn >= 0:
                measured[name].append(took)
    return Measured(unit, measured)


def tree_cpu_s() -> float:
    """CPU seconds of this process and all its descendants so far, of those that ended and were waited for as well.

    Living descendants are found in /proc, in steps of 10 ms; where there is no /proc, they count once they ended.
    """
    ended = os.times()
    total = time.process_time() + ended.children_user + ended.children_system
    return total + sum(_used_s(pid) for pid in descendants(os.getpid()))


def descendants(pid: int) -> list[int]:
    """Living children of a process, theirs, and so on; none where there is no /proc."""
    found: list[int] = []
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it ended meanwhile, or there is no /proc
        return found
    children: list[int] = []
    for task in tasks:
        with suppress(OSError):  # this thread ended meanwhile; its children are another thread's now
            children += [int(child) for child in (task / "children").read_text().split()]
    for child in children:
        found += [child, *descendants(child)]
    return found


def status_mb(pid: int | str, name: str) -> float:
    """A figure of /proc/PID/status, 10⁶ bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1.024e-3


def _used_s(pid: int) -> float:
    """User and system seconds of a process and of its own ended children."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
