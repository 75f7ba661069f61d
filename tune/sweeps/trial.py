"""One trial: trained or resumed like a single run, then scored on the evaluation grid.

This module does not depend on where it runs; `tune.sweeps.engine.trainable` runs trials sequentially in an actor.
"""

import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fsl_dist.config import RunConfig
from fsl_dist.data.loader import describe_samples
from fsl_dist.evaluation.report import evaluate_settings
from fsl_dist.training.checkpoint import CheckpointFolder, read_progress
from fsl_dist.training.launch import check_run, train_run
from fsl_dist.training.loop import Watch
from fsl_dist.training.trained import open_trained
from index.base.errors import FslDistError
from index.base.files import Owner, write_atomic
from index.base.stopping import Stopped, StopRequest
from tune.records import Cell, Result, State, Trial, write_evaluation
from tune.space import Point
from tune.sweeps.config import SweepConfig
from tune.sweeps.engine.take_over import take_over
from tune.sweeps.tracking import report_trial

ERROR_FILE = "error.txt"


class Asks(Protocol):
    """The interface of the rule that decides whether a trial stops."""

    def watch(self, trial: int) -> Watch:
        """The function that the trial's run calls after each validation; it may be sent to another process."""
        ...

    def is_stopped(self, trial: int) -> bool:
        """Whether the trial was stopped before."""
        ...


def check_point(config: SweepConfig, point: Point, folder: Path) -> RunConfig:
    """The run of a point; RequestError (ConfigError) where the run's rules or the data refuse it. Trains nothing."""
    run = config.trial_config(point, str(folder))
    check_run(run)
    return run


def run_trial(
    config: SweepConfig,
    trial: Trial,
    asks: Asks,
    *,
    owner: Owner | None = None,
    is_left: Callable[[], bool] = lambda: False,
    stop: StopRequest | None = None,
) -> Result | None:
    """Train a trial, from its last checkpoint if there is one, and score it;
    return its result, also for an error of its own.

    A trial that the scheduler stopped is not scored.

    Args:
        config: the sweep.
        trial: the trial, with its folder.
        asks: decides whether it stops.
        owner: the sweep's; nothing is written next to the run once another driver has claimed the sweep.
        is_left: whether the run was interrupted to be continued later, here or elsewhere.
        stop: requests the run to stop with a checkpoint; the trial is then unfinished.

    Returns:
        How it ended; None if it was interrupted.

    Raises:
        StaleOwnerError: another driver has claimed the sweep.
    """
    started = time.perf_counter()
    run = config.trial_config(trial.point, str(trial.folder))
    is_stopped, train_s = asks.is_stopped(trial.number), 0.0
    try:
        if not is_stopped:
            take_over(run, trial)
            watch = asks.watch(trial.number)
            train_run(run, resume=True, watch=watch, sweep=Path(config.dir), stop=stop)
            is_stopped = asks.is_stopped(trial.number)
        if is_left() or (stop is not None and stop.is_set):
            return None
        train_s = time.perf_counter() - started
        if not is_stopped and config.scores_trials:
            evaluate_trial(config, trial, run, owner)
    except Stopped:
        return None
    except Exception as error:
        if is_left():
            return None
        if owner is not None:
            owner.check()
        words = str(error) if isinstance(error, FslDistError) else f"{type(error).__name__}: {error}"
        write_atomic(trial.folder / ERROR_FILE, traceback.format_exc().encode())
        return replace(
            progress_of(trial, "failed"),
            train_s=train_s or time.perf_counter() - started,
            error=_one_line(words),
        )
    result = progress_of(trial, "stopped" if is_stopped else "finished")
    if owner is not None:
        owner.check()
    report_trial(config, trial, run, result)
    return replace(result, train_s=train_s, evaluate_s=time.perf_counter() - started - train_s)


def evaluate_trial(config: SweepConfig, trial: Trial, run: RunConfig, owner: Owner | None = None) -> None:
    """Score a trained trial under every combination of the evaluation grid, its images embedded once."""
    catalogue, _ = describe_samples(run.data)
    if not {"test", "val", "novel"}.intersection(catalogue.split_names):
        return  # all images were trained on, or held out for validation
    cells = config.evaluation_settings(run)
    with closing(open_trained(trial.folder)) as trained:
        reports = evaluate_settings(trained, [settings for _, settings in cells])
    scored = [
        Cell(settings, report.to_json()["metrics"])
        for (settings, _), report in zip(cells, reports, strict=True)
    ]
    if owner is not None:
        owner.check()
    write_evaluation(trial.folder, reports[0].split, scored)


def progress_of(trial: Trial, state: State) -> Result:
    """The result of a trial that ended in `state`, from its last checkpoint."""
    checkpoints = CheckpointFolder(trial.folder, keep=1, owner=None)
    checkpoints.refresh()
    latest = checkpoints.latest()
    if latest is None:
        return Result(state=state)
    progress = read_progress(latest)
    value = progress.best_value if progress.best_step >= 0 else None
    return Result(state=state, value=value, epochs=progress.epoch)


def _one_line(text: str) -> str:
    return " ".join(text.split())
