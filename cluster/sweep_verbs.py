"""The verb group `sweep`: many runs over a space of settings."""

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.output import emit

if TYPE_CHECKING:
    from tune.config import SweepConfig

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
DIR = click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))


@click.group()
def sweep() -> None:
    """Many runs over a space of settings: run it, go on with it, report it.

    \b
    Example:
      fsl-dist sweep run --config experiments/sweeps/pcn-omniglot.yaml dir=sweeps/pcn
      fsl-dist sweep report sweeps/pcn
    """


@sweep.command(epilog="Example: fsl-dist sweep run --config experiments/sweeps/pcn-omniglot.yaml trials=50")
@click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path),
    required=True,
    help="SWEEP.yaml; key=value goes over it, or over the run that it varies.",
)
@click.option("--resume", is_flag=True, help="Go on where the folder holds this very sweep already.")
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def run(path: Path, resume: bool, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Start a sweep in a new folder, `dir` of SWEEP.yaml."""
    started = time.monotonic()
    from tune.sweep_file import load_sweep

    config = load_sweep(path, overrides)
    from tune.sweep import continue_sweep, prepare_sweep

    _drive(continue_sweep(config) if resume else prepare_sweep(config), as_json, started)


@sweep.command(epilog="Example: fsl-dist sweep resume sweeps/pcn")
@DIR
@click.option("--retry-failed", is_flag=True, help="Run failed trials again, from their last checkpoints.")
@JSON
def resume(folder: Path, retry_failed: bool, as_json: bool) -> None:
    """Go on with a sweep that was cut off: finished trials stay, others go on from their checkpoints."""
    started = time.monotonic()
    from tune.sweep import resume_sweep

    _drive(resume_sweep(folder, retry_failed=retry_failed), as_json, started, retry_failed=retry_failed)


@sweep.command(epilog="Example: fsl-dist sweep report sweeps/pcn")
@DIR
@JSON
def report(folder: Path, as_json: bool) -> None:
    """Write report.md, trials.csv, evaluation.csv, report.html and best.yaml into DIR; a sweep under way may be reported too."""
    from tune.sweep_report import write_report

    written = write_report(folder)
    emit(written.to_json(), as_json, written.text)


def _drive(config: "SweepConfig", as_json: bool, started: float, *, retry_failed: bool = False) -> None:
    from cluster.local import ray_session
    from tune.sweep import drive, num_cpus

    with ray_session(num_cpus(config)):
        summary = drive(config, show=_status_printer(), retry_failed=retry_failed, started=started)
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


def _status_printer() -> Callable[[str], None]:
    """Rewrite one line on a terminal, an empty one to wipe it; nothing elsewhere, where each trial's end is a line."""
    if sys.stderr.isatty():
        return lambda line: click.echo(f"\r\x1b[2K{line}", err=True, nl=False)
    return lambda line: None
