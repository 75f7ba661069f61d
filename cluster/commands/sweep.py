"""The command group `sweep`: many runs over a space of settings."""

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.capacity_option import CAPACITY
from cluster.commands.output import emit

if TYPE_CHECKING:
    from tune.sweep_file import AnySweep
    from tune.sweeps.sweep import SweepSummary

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
DIR = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def sweep() -> None:
    """Many runs, or many indexes, over a space of settings: run it, resume it, report it.

    \b
    Example:
      fsl-dist sweep run --config sweeps/pcn-omniglot dir=sweeps/pcn
      fsl-dist sweep report sweeps/pcn
    """


@sweep.command(epilog="Example: fsl-dist sweep run --config sweeps/pcn-omniglot trials=50")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="SWEEP.yaml; key=value overrides it, or the run or the index that it varies.",
)
@click.option("--resume", is_flag=True, help="Resume if the folder already contains this sweep.")
@CAPACITY
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def run(path: Path, resume: bool, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Start a sweep in a new folder, `dir` of SWEEP.yaml."""
    started = time.monotonic()
    from tune.index_sweeps.sweep import prepare_index_sweep
    from tune.sweep_file import find_stored, load_sweep
    from tune.sweeps.config import SweepConfig
    from tune.sweeps.sweep import check_resumable, prepare_sweep

    config = load_sweep(path, overrides)
    before = find_stored(config) if resume else None
    if before is not None:
        check_resumable(before)
        config = before
    elif isinstance(config, SweepConfig):
        config = prepare_sweep(config)
    else:
        config = prepare_index_sweep(config)
    _drive(config, as_json, started)


@sweep.command(epilog="Example: fsl-dist sweep resume sweeps/pcn")
@DIR
@click.option("--retry-failed", is_flag=True, help="Run failed trials again, from their last checkpoints.")
@CAPACITY
@JSON
def resume(folder: Path, retry_failed: bool, as_json: bool) -> None:
    """Resume an interrupted sweep: finished trials are kept, others continue from their checkpoints."""
    started = time.monotonic()
    from tune.sweep_file import load_stored
    from tune.sweeps.sweep import check_resumable

    config = load_stored(folder)
    check_resumable(config, retry_failed=retry_failed)
    _drive(config, as_json, started, retry_failed=retry_failed)


@sweep.command(epilog="Example: fsl-dist sweep report sweeps/pcn")
@DIR
@JSON
def report(folder: Path, as_json: bool) -> None:
    """Write report.md, report.html, trials.csv and evaluation.csv into DIR, and best.yaml of a sweep of runs.

    A sweep under way may be reported too.
    """
    from tune.index_sweeps.report import write_index_report
    from tune.sweep_file import load_stored
    from tune.sweeps.config import SweepConfig
    from tune.sweeps.report import write_report

    is_of_runs = isinstance(load_stored(folder), SweepConfig)
    written = write_report(folder) if is_of_runs else write_index_report(folder)
    emit(written.to_json(), as_json, written.text)


def _drive(config: "AnySweep", as_json: bool, started: float, *, retry_failed: bool = False) -> None:
    summary = _summary_of(config, started, retry_failed=retry_failed)
    best = ""
    if summary.best_trial is not None:
        best = f", best {summary.metric} {summary.best_value:.4f} of trial {summary.best_trial:04d}"
    emit(
        dataclasses.asdict(summary),
        as_json,
        f"{summary.dir}: {summary.finished} finished, {summary.stopped} stopped early, {summary.failed} failed, "
        f"{summary.pruned} pruned{best}; {summary.wall_s:.0f} s, {summary.utilisation:.0%} of the cores' time in trials\n"
        f"next: fsl-dist sweep report {summary.dir}",
    )


def _summary_of(config: "AnySweep", started: float, *, retry_failed: bool) -> "SweepSummary":
    """Run the rest of a sweep: runs on Ray, indexes in this process."""
    from cluster.commands.sweep_table import live_table
    from fsl_dist.training.ray.session import ray_session
    from fsl_dist.training.trackers.sending import check_trackers
    from tune.index_sweeps.sweep import drive_index_sweep
    from tune.sweeps.config import SweepConfig
    from tune.sweeps.sweep import drive, num_cpus

    if not isinstance(config, SweepConfig):
        with live_table() as show:
            return drive_index_sweep(config, show=show, retry_failed=retry_failed, started=started)
    check_trackers(config.base)
    with ray_session(num_cpus(config)), live_table() as show:
        return drive(config, show=show, retry_failed=retry_failed, started=started)
