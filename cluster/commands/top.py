"""The command `top`: running jobs with their newest progress."""

import dataclasses
import sys
import time
from typing import TYPE_CHECKING

import click

from cluster.commands.output import emit
from cluster.jobs.options import kube_of, on_place, open_place
from cluster.jobs.progress import JobProgress, read_progress

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.jobs.job import JobPlace, JobStatus

_REFRESH_S = 2.0


@click.command(epilog="Example: fsl-dist top --to kuberay")
@click.option("--once", is_flag=True, help="Print one table and end; so does --json, and output to a file.")
@on_place
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
def top(once: bool, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """Show jobs that run or wait, with their newest progress, until Ctrl-C.

    Progress comes from the jobs' logs, which get a line each minute.

    \b
    Example:
      fsl-dist top --to ray
      fsl-dist top --to kuberay --once --json
    """
    from rich.console import Console

    place = open_place(to, address=address, kube=kube_of(to, namespace, address))
    if once or as_json or not sys.stdout.isatty():
        found = _look(place)
        jobs = [
            {**dataclasses.asdict(status), "progress": dataclasses.asdict(progress)}
            for status, progress in found
        ]
        if as_json or not found:
            emit({"jobs": jobs}, as_json, "no job runs or waits")
        else:
            # A file has no width that a table would have to fit.
            Console(width=None if sys.stdout.isatty() else 200, color_system=None).print(draw_jobs(found))
        return
    from rich.live import Live

    with Live(auto_refresh=False, screen=True) as live:
        while True:
            live.update(draw_jobs(_look(place)), refresh=True)
            time.sleep(_REFRESH_S)


def _look(place: "JobPlace") -> "list[tuple[JobStatus, JobProgress]]":
    """Jobs that have not ended, the newest first; one that ends meanwhile is shown as it was."""
    found = []
    for status in place.list():
        if status.is_over:
            continue
        if status.state == "pending":
            # The list does not say what a job waits for.
            found.append((place.status(status.name), JobProgress()))
        else:
            found.append((status, read_progress(place.tail(status.name))))
    return found


def draw_jobs(jobs: "list[tuple[JobStatus, JobProgress]]") -> "Table":
    """A table of jobs."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"jobs that run or wait: {len(jobs)}", title_justify="left")
    for name in ("job", "state", "started (UTC)"):
        table.add_column(name, no_wrap=True)
    for name in ("progress", "loss", "img/s", "data wait", "validation"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("command, or the reason of a wait")
    for status, progress in jobs:
        table.add_row(
            *(Text(cell) for cell in (status.name, status.state, status.started)),
            *(Text(cell) for cell in _cells(progress)),
            Text(status.message or status.command),
        )
    return table


def _cells(progress: JobProgress) -> list[str]:
    if progress.trials_wanted is not None:
        return [f"{progress.trials_done}/{progress.trials_wanted} trials", "", "", "", ""]
    if progress.epoch is None:
        return [progress.line[:40], "", "", "", ""]
    of = "" if progress.epochs is None else f"/{progress.epochs}"
    return [
        f"epoch {progress.epoch}{of} step {progress.step}/{progress.steps}",
        "not finite" if progress.loss is None else f"{progress.loss:.4f}",
        f"{progress.images_per_s:.0f}",
        f"{progress.data_wait_ms:.0f} ms",
        "" if progress.value is None else f"{progress.metric} {progress.value:.4f}",
    ]
