"""The state of a sweep at a moment, for a live table."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tune.plan import Plan, rank_trials
from tune.records import Report, Trial


@dataclass(frozen=True, slots=True)
class Line:
    """One trial of a live table."""

    trial: Trial
    state: str
    """running, or how it ended"""
    epochs: int = 0
    """at the last validation"""
    value: float | None = None
    """running: of the last validation; finished: the best"""
    seconds: float = 0.0
    """since it was submitted; finished: inside training and evaluation"""


@dataclass(frozen=True, slots=True)
class Standing:
    """A sweep under way."""

    metric: str
    num_done: int
    num_wanted: int
    wall_s: float
    """of this start"""
    counts: Mapping[str, int]
    """state → trials that ended so"""
    running: Sequence[Line]
    best: Sequence[Line]
    """the best first, at most five"""


Show = Callable[[Standing], None]
"""what shows a sweep under way"""


def stand(
    plan: Plan, running: Mapping[int, float], reports: Sequence[Report], metric: str, started: float
) -> Standing:
    """The state of the sweep. running: number of each running trial → `time.monotonic()` of its submission."""
    now = time.monotonic()
    last = {report.trial: report for report in reports}
    under_way = []
    for number, since in sorted(running.items()):
        epochs, value = (last[number].epoch, last[number].value) if number in last else (0, None)
        under_way.append(Line(plan.trials[number], "running", epochs, value, now - since))
    best = [
        Line(trial, r.state, r.epochs, r.value, r.train_s + r.evaluate_s)
        for trial in rank_trials(plan.trials.values(), plan.config.mode)[:5]
        if (r := trial.result)
    ]
    states: list[str] = [trial.result.state for trial in plan.trials.values() if trial.result]
    counts = {state: states.count(state) for state in dict.fromkeys(states)}
    return Standing(metric, plan.num_done, plan.num_wanted, now - started, counts, under_way, best)
