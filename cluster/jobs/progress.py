"""How far a job has come, as the progress lines of its log say."""

import re
from dataclasses import dataclass

from cluster.jobs.job import RESULT_MARK

# `fsl_dist.training.runlog.describe_progress` writes these lines, and the driver of a sweep those of trials.
_STEP = re.compile(
    r"epoch (?P<epoch>\d+)(?:/(?P<epochs>\d+))?  step (?P<step>\d+)/(?P<steps>\d+)  loss (?P<loss>\S+)  "
    r"(?P<images_per_s>\d+) img/s  (?:(?P<metric>\S+) (?P<value>-?[\d.]+)(?P<start> at the start)?.*?  )?"
    r"at most (?P<left>[\d:]+) left  data wait (?P<data_wait_ms>\d+) ms$"
)
_TRIAL = re.compile(r"(?P<done>\d+) of (?P<wanted>\d+): trial \d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobProgress:
    """What the newest progress line of a job says; None where it says nothing of the kind."""

    line: str = ""
    """the newest line of progress, else the last line of the log"""
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    """within the epoch"""
    steps: int | None = None
    loss: float | None = None
    """None also where it is not finite"""
    images_per_s: float | None = None
    data_wait_ms: float | None = None
    """milliseconds of the step spent waiting for data"""
    metric: str | None = None
    """name of the validation metric"""
    value: float | None = None
    """newest validation"""
    trials_done: int | None = None
    trials_wanted: int | None = None


def read_progress(log: str) -> JobProgress:
    """The progress in the end of a job's log."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip() and not line.startswith(RESULT_MARK)]
    for line in reversed(lines):
        if found := _STEP.search(line):
            return JobProgress(
                line=found[0],
                epoch=_number(found["epoch"]),
                epochs=_number(found["epochs"]),
                step=_number(found["step"]),
                steps=_number(found["steps"]),
                loss=_finite(found["loss"]),
                images_per_s=_finite(found["images_per_s"]),
                data_wait_ms=_finite(found["data_wait_ms"]),
                metric=found["metric"],
                value=_finite(found["value"]),
            )
        if found := _TRIAL.match(line):
            return JobProgress(
                line=line, trials_done=_number(found["done"]), trials_wanted=_number(found["wanted"])
            )
    return JobProgress(line=lines[-1] if lines else "")


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)


def _finite(text: str | None) -> float | None:
    value = None if text is None else float(text)
    return value if value is not None and abs(value) < float("inf") else None
