"""The command `fsl-dist fit`."""

import dataclasses
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.capacity_option import CAPACITY
from cluster.commands.output import align_columns, emit

if TYPE_CHECKING:
    from tune.fit.fitting import Fit


@click.command(epilog="Example: fsl-dist fit my_images --minutes 10 backbone.weights=mobilenet_v2.pth")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--out",
    "dir",
    type=click.Path(path_type=Path),
    help="New folder for the result.  [default: FOLDER's name and -fit]",
)
@click.option(
    "--minutes",
    type=float,
    default=10.0,
    show_default=True,
    help="From the start of the command to the report.",
)
@click.option(
    "--final/--no-final",
    default=None,
    help="Train the chosen recipe once more, including the images held out for validation. With --no-final, the best "
    "run of the last round is the result. "
    "With --final, a val split of the data set is included too.  [default: train once more, without such a val split]",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of split and training."
)
@click.option("--resume", is_flag=True, help="Continue the fit in the folder, if there is one.")
@CAPACITY
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def fit(
    folder: Path,
    dir: Path | None,
    minutes: float,
    final: bool | None,
    seed: int,
    resume: bool,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Train the best model for the images in FOLDER within a number of minutes, chosen on validation images.

    FOLDER contains one folder of images per class, or is a packed data set. KEY=VALUE are settings of a run for all
    candidates (backbone.name, backbone.weights, data.image_size); metric=balanced, acc or mcr; and pack.KEY=VALUE,
    options of pack.
    """
    # Let threads that wait for each other sleep: if another program uses a core, spinning threads slow each other
    # down. OpenMP reads this when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from tune.fit.fitting import run_fit

    result = run_fit(
        folder,
        started=time.monotonic() - _process_age_s(),
        dir=dir,
        minutes=minutes,
        settings=overrides,
        final="auto" if final is None else final,
        seed=seed,
        resume=resume,
        progress=True,
    )
    emit({"dir": str(result.dir), **dataclasses.asdict(result.record)}, as_json, _describe(result))


def _process_age_s() -> float:
    """Seconds since this process started, whose imports are part of the budget; 0 if the system does not report it."""
    try:
        ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0.0


def _describe(result: "Fit") -> str:
    from fsl_dist.config import load_run

    record, folder = result.record, shlex.quote(str(result.dir))
    run = result.dir / record.final_run
    # A network with a head has no maps whose mean is the embedding.
    no_maps = " --no-maps" if load_run(run).backbone.embedding_dim else ""
    lines = [
        align_columns(result.table()),
        "",
        f"* the result; = equal to the best within noise on validation; compared by {record.metric}; percent (95 "
        "% interval)",
        *(f"warning: {warning}" for warning in record.warnings),
        f"run: {run}",
        f"record: {result.dir / 'fit.json'}, {result.dir / 'table.csv'}",
        *([f"report: {result.report}"] if result.report.is_file() else []),
        f"index: {result.dir / 'index'}",
        f"next: fsl-dist predict {folder} IMAGE…",
        f"next: fsl-dist explain {folder} IMAGE… --out evidence{no_maps}",
        f"next: fsl-dist evaluate {folder}",
    ]
    return "\n".join(lines)
