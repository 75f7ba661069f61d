"""What every section shares: its sizes, its findings, and timing on a device that works on its own."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from benchmarks.suite.report import Table, Target


class NotHereError(Exception):
    """This machine lacks what a section needs; the message says what."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where and how large."""

    device: torch.device
    is_small: bool
    rounds: int

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"


@dataclass(slots=True)
class Outcome:
    """What a section found."""

    tables: list[Table] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self, name: str, value: float, at_most: float, remark: str = "") -> None:
        """Note a check that fails above `at_most`."""
        self.targets.append(Target(name, [float(value)], at_most=at_most, is_guarded=False, remark=remark))


def wait(device: torch.device) -> None:
    """Return once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_s(do: Callable[[], object], setting: Setting, *, repeats: int = 1) -> float:
    """Median seconds of one of `repeats` calls in a row, after one uncounted round."""
    walls = []
    for turn in range(setting.rounds + 1):
        wait(setting.device)
        started = time.perf_counter()
        for _ in range(repeats):
            do()
        wait(setting.device)
        if turn:
            walls.append((time.perf_counter() - started) / repeats)
    return statistics.median(walls)


def round_to(value: float, digits: int = 3) -> float:
    """A figure as it is printed."""
    return float(f"{value:.{digits}g}")


def without_tf32(does: bool = True) -> None:
    """Products and convolutions of float32 in full float32, or (`does` False) with TF32's ten bits."""
    torch.backends.cuda.matmul.allow_tf32 = not does
    torch.backends.cudnn.allow_tf32 = not does
