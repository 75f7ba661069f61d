"""The command group `job`: the state and results of submitted commands."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import NoReturn

import click

from cluster.commands.output import align_columns, emit
from cluster.jobs.job import RESULT_MARK, JobPlace, JobStatus
from cluster.jobs.options import kube_of, on_place, open_place, way_back

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
_NAME = click.argument("name")


@click.group()
def job() -> None:
    """Submitted jobs: their state, their log, their end.

    \b
    Example:
      fsl-dist job list --to ray
      fsl-dist job logs train-20260102-030405-9f1c4e27a0b3 --follow --to ray
    """


@job.command(epilog="Example: fsl-dist job status first --to ray --json")
@_NAME
@on_place
@JSON
def status(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """State of a job, and its result once it has succeeded."""
    found = open_place(to, address=address, kube=kube_of(to, namespace, address)).status(name)
    lines = [
        f"{name}: {found.state}",
        f"command: {found.command}",
        f"started: {found.started}",
        f"ended: {found.ended}",
    ]
    lines += [f"message: {found.message}"] if found.message else []
    lines += [f"result: {json.dumps(found.result)}"] if found.result is not None else []
    emit(dataclasses.asdict(found), as_json, "\n".join(lines))


@job.command(epilog="Example: fsl-dist job logs first --follow --to ray")
@_NAME
@click.option(
    "--follow", is_flag=True, help="Follow it until it ends, as submit does: log on stderr, result on stdout."
)
@on_place
@JSON
def logs(name: str, follow: bool, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """Print a job's log so far on stdout; with --follow, follow it again:
    log on stderr, result on stdout, its exit code."""
    place = open_place(to, address=address, kube=kube_of(to, namespace, address))
    if follow:
        follow_job(place, name, way_back(name, to, address, namespace))
    text = "".join(place.logs(name, follow=False))
    if as_json:
        emit({"name": name, "log": text}, True, "")
    else:
        click.echo(text, nl=False)


@job.command(epilog="Example: fsl-dist job stop first --to ray")
@_NAME
@on_place
@JSON
def stop(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """End a job; its stored results are kept, and the same command resumes it."""
    place = open_place(to, address=address, kube=kube_of(to, namespace, address))
    before = place.status(name)
    place.stop(name)
    found = place.status(name)
    said = f"{name} had ended already: {found.state}" if before.is_over else f"{name}: {found.state}"
    emit(dataclasses.asdict(found), as_json, said)


@job.command(name="list", epilog="Example: fsl-dist job list --to ray")
@on_place
@JSON
def list_jobs(to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """List all jobs, the newest first."""
    found = open_place(to, address=address, kube=kube_of(to, namespace, address)).list()
    rows = [["name", "state", "started (UTC)", "ended", "command"]]
    rows += [[s.name, s.state, s.started, s.ended, _shorten(s.command)] for s in found]
    text = align_columns(rows) if found else "no jobs"
    emit({"jobs": [dataclasses.asdict(status) for status in found]}, as_json, text)


@job.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: fsl-dist job enter --config run.yaml --ray-version 2.60.0 -- train run.dir=/data/runs/first",
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The command's --config."
)
@click.option("--ray-version", default="", help="The Ray that must be here.")
@click.option("--exit-code-file", type=click.Path(path_type=Path), hidden=True)
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND…", type=click.UNPROCESSED)
@click.pass_context
def enter(
    context: click.Context,
    /,
    config: Path | None,
    ray_version: str,
    exit_code_file: Path | None,
    arguments: tuple[str, ...],
) -> None:
    """The command inside a job, on its machine: run the given command, with resuming,
    and put its result in the log's last line."""
    from cluster.jobs.entrypoint import run_job
    from index.base.errors import FslDistError
    from index.base.files import write_atomic

    code = 1
    try:
        code = run_job(context.find_root().command, arguments, config=config, ray_version=ray_version)  # type: ignore[arg-type]
    except FslDistError as error:
        code = error.exit_code
        raise
    finally:
        if exit_code_file is not None:
            sys.stdout.flush()
            write_atomic(exit_code_file, str(code).encode())
    sys.exit(code)


def follow_job(place: JobPlace, name: str, back: str) -> NoReturn:
    """Show a job's log on stderr until it ends, then its result on stdout; exit as the job did."""
    line = ""
    try:
        for piece in place.logs(name, follow=True):
            *whole, line = (line + piece).split("\n")
            for text in whole:
                if not text.startswith(RESULT_MARK):
                    click.echo(text, err=True)
        if line and not line.startswith(RESULT_MARK):
            click.echo(line, err=True)
        status = place.status(name)
    except KeyboardInterrupt:
        click.echo(f"{name} keeps running; follow it again: {back}", err=True)
        sys.exit(130)
    _tell_end(status)
    sys.exit(status.follower_exit_code)


def _tell_end(status: JobStatus) -> None:
    if status.result is not None:
        click.echo(json.dumps(status.result, allow_nan=False))
    code = f", exit code {status.exit_code}" if status.exit_code else ""
    click.echo(
        f"{status.name}: {status.state}{code}{': ' + status.message if status.message else ''}", err=True
    )


def _shorten(command: str) -> str:
    return command if len(command) <= 60 else command[:57] + "..."
