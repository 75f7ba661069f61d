"""Time spent: seconds on the clock, and seconds of processor time, which other work on the machine does not stretch."""

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Spent:
    """Time of some work."""

    seconds: float = 0.0
    cpu_s: float | None = 0.0
    """of this process and its threads; None where the work was done by other processes, which are not followed"""

    def __add__(self, other: "Spent") -> "Spent":
        is_known = self.cpu_s is not None and other.cpu_s is not None
        cpu_s = (self.cpu_s or 0.0) + (other.cpu_s or 0.0) if is_known else None
        return Spent(self.seconds + other.seconds, cpu_s)


def stopwatch() -> Callable[[], Spent]:
    """Starts now; the function that it returns gives what was spent since."""
    started, cpu = time.perf_counter(), time.process_time()
    return lambda: Spent(time.perf_counter() - started, time.process_time() - cpu)
