"""The command group `job`: the state and results of submitted commands."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from cluster.commands.durations import Duration
from cluster.commands.output import align_columns, align_left, emit
from cluster.jobs.following import follow
from cluster.jobs.job import (
    FINAL_MARK,
    RESULT_MARK,
    JobPlace,
    JobStatus,
    LostSightError,
    WaitedError,
    read_result,
)
from cluster.jobs.options import kube_of, on_followed, on_place, open_place, way_back
from index.base.errors import FslDistError, RequestError

if TYPE_CHECKING:
    from cluster.jobs.kuberay.place import KubeRayPlace

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
_NAME = click.argument("name")
_NAME_OR_SCHEDULE = click.argument("name", required=False)
_SCHEDULE = click.option("--schedule", metavar="NAME", help="kuberay: the newest run of this RayCronJob.")


@click.group()
def job() -> None:
    """Submitted jobs: their state, their log, their end.

    \b
    Example:
      fsl-dist job list --to ray
      fsl-dist job logs train-20260102-030405-9f1c4e27a0b3 --follow --to ray
    """


@job.command(epilog="Example: fsl-dist job status first --to ray --json")
@_NAME_OR_SCHEDULE
@_SCHEDULE
@on_place
@JSON
def status(
    name: str | None,
    schedule: str | None,
    to: str,
    address: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """State of a job: what it waits for while it waits, its result once it has succeeded."""
    place = open_place(to, address=address, kube=kube_of(to, namespace, address))
    found = place.status(_find_name(place, name, schedule))
    lines = [
        f"{found.name}: {found.state}",
        f"command: {found.command}",
        f"started: {found.started}",
        f"ended: {found.ended}",
    ]
    if found.deadline:
        lines.append(f"deadline: {found.deadline}{' (has passed)' if found.is_late else ''}")
    lines += [f"message: {found.message}"] if found.message else []
    lines += [f"result: {json.dumps(found.result)}"] if found.result is not None else []
    emit(dataclasses.asdict(found), as_json, "\n".join(lines))


@job.command(epilog="Example: fsl-dist job logs first --follow --to ray")
@_NAME_OR_SCHEDULE
@_SCHEDULE
@click.option(
    "--follow", is_flag=True, help="Follow it until it ends, as submit does: log on stderr, result on stdout."
)
@on_followed
@on_place
@JSON
def logs(
    name: str | None,
    schedule: str | None,
    follow: bool,
    wait_s: float | None,
    api_timeout_s: float,
    to: str,
    address: str | None,
    namespace: str | None,
    as_json: bool,
) -> None:
    """Print a job's log so far on stdout; with --follow, follow it again: log on stderr, result on stdout, its exit
    code."""
    place = open_place(to, address=address, kube=kube_of(to, namespace, address), timeout_s=api_timeout_s)
    found = _find_name(place, name, schedule)
    if follow:
        follow_job(place, found, way_back(found, to, address, namespace), wait_s=wait_s)
    text = "".join(place.logs(found, follow=False))
    if as_json:
        emit({"name": found, "log": text}, True, "")
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


@job.command(name="list", epilog="Example: fsl-dist job list --to kuberay --schedule fsl-dist-index-rebuild")
@_SCHEDULE
@on_place
@JSON
def list_jobs(
    schedule: str | None, to: str, address: str | None, namespace: str | None, as_json: bool
) -> None:
    """List all jobs, or the runs of a schedule, the newest first."""
    place = open_place(to, address=address, kube=kube_of(to, namespace, address))
    found = place.list() if schedule is None else _scheduling(place).list_runs(schedule)
    rows = [["name", "state", "started (UTC)", "ended", "command" if schedule is None else "remark"]]
    rows += [
        [s.name, s.state, s.started, s.ended, _shorten(s.command) if schedule is None else s.message]
        for s in found
    ]
    text = align_columns(rows) if found else "no jobs"
    emit({"jobs": [dataclasses.asdict(status) for status in found]}, as_json, text)


@job.command(epilog="Example: fsl-dist job describe first --to kuberay")
@_NAME
@on_place
@JSON
def describe(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """A job on Kubernetes on one screen: state, cluster, pods and their states, the last events."""
    place = _scheduling(open_place(to, address=address, kube=kube_of(to, namespace, address)))
    found = place.describe(name)
    lines = [f"{key}: {value}" for key, value in found.items() if isinstance(value, str) and value]
    for key in ("pods", "events"):
        rows = [list(row.values()) for row in found[key]]
        lines += ["", align_left([list(found[key][0]), *rows]) if rows else f"no {key}"]
    emit(found, as_json, "\n".join(lines))


@job.command(epilog="Example: fsl-dist job events first --to kuberay")
@_NAME
@on_place
@JSON
def events(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """What Kubernetes noted about a job, its cluster, its pods and its place in the queue, the oldest first."""
    place = _scheduling(open_place(to, address=address, kube=kube_of(to, namespace, address)))
    found = place.events(name)
    rows = [list(event.values()) for event in found]
    text = align_left([list(found[0]), *rows]) if found else "no events (a cluster keeps them for an hour)"
    emit({"name": name, "events": found}, as_json, text)


@job.command(epilog="Example: fsl-dist job clean --older-than 30d --to kuberay")
@click.option("--older-than", type=Duration(), required=True, help="Since they ended, such as 30d.")
@on_place
@JSON
def clean(older_than: int, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """Delete the records of jobs, and of a schedule's runs, that ended long ago; what they stored stays."""
    place = _scheduling(open_place(to, address=address, kube=kube_of(to, namespace, address)))
    removed = list(place.clean(older_than))
    emit({"removed": removed}, as_json, "\n".join(f"{name}: removed" for name in removed) or "no jobs")


@job.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: fsl-dist job enter --config run.yaml --ray-version 2.60.0 -- train run.dir=/data/runs/first",
)
@click.option(
    "--config", type=click.Path(path_type=Path, exists=True, dir_okay=False), help="The command's --config."
)
@click.option("--ray-version", default="", help="The Ray that must be here.")
@click.option("--deadline", help="When it ends at the latest, such as 2026-11-21T22:00:00Z.")
@click.option(
    "--stop-retries",
    is_flag=True,
    help="Have Ray stop the job if a retry cannot fix its failure: a bad request (exit code 2), or its deadline.",
)
@click.option("--exit-code-file", type=click.Path(path_type=Path), hidden=True)
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND…", type=click.UNPROCESSED)
@click.pass_context
def enter(
    context: click.Context,
    /,
    config: Path | None,
    ray_version: str,
    deadline: str | None,
    stop_retries: bool,
    exit_code_file: Path | None,
    arguments: tuple[str, ...],
) -> None:
    """The command inside a job, on its machine: run the given command, with resuming, and put its result in the log's
    last line."""
    from cluster.jobs.deadlines import DeadlineError, read_moment
    from cluster.jobs.entrypoint import end_for_good, run_job
    from index.base.files import write_atomic

    deadline_s = read_moment(deadline) if deadline else None
    code, is_late = 1, False
    try:
        root: click.Group = context.find_root().command  # type: ignore[assignment]
        code = run_job(root, arguments, config=config, ray_version=ray_version, deadline_s=deadline_s)
    except FslDistError as error:
        code, is_late = error.exit_code, isinstance(error, DeadlineError)
        if not stop_retries:
            raise
        click.echo(f"error: {error}", err=True)
    finally:
        if exit_code_file is not None:
            sys.stdout.flush()
            write_atomic(exit_code_file, str(code).encode())
    if stop_retries and (code == RequestError.exit_code or is_late):
        end_for_good(code)
    sys.exit(code)


def follow_job(place: JobPlace, name: str, back: str, *, wait_s: float | None = None) -> NoReturn:
    """Show a job's log on stderr until it ends, then its result on stdout; exit as the job did.

    Exits with 3 if the job has not started after `wait_s` seconds. Exits with 4 if the cluster cannot be reached for
    too long; the job may still be running.
    """
    line, log = "", ""
    try:
        place.status(name)  # whether there is such a job
        for piece in follow(place, name, wait_s=wait_s):
            *whole, line = (line + piece).split("\n")
            for text in whole:
                if text.startswith(RESULT_MARK):
                    log = text
                elif not text.startswith(FINAL_MARK):
                    click.echo(text, err=True)
        if line and not line.startswith(RESULT_MARK):
            click.echo(line, err=True)
        status = place.status(name)
    except KeyboardInterrupt:
        click.echo(f"{name} keeps running; follow it again: {back}", err=True)
        sys.exit(130)
    except WaitedError as error:
        raise WaitedError(f"{error}; follow it again: {back}") from None
    except RequestError:
        raise
    except FslDistError as error:
        raise LostSightError(f"{error}; {name} may still run; look again: {back}") from None
    if status.state == "stopped" and (result := read_result(log)) is not None:
        # Deleted after it had ended: its result was read.
        status = dataclasses.replace(status, state="succeeded", exit_code=0, result=result)
    _tell_end(status)
    sys.exit(status.follower_exit_code)


def _find_name(place: JobPlace, name: str | None, schedule: str | None) -> str:
    """The job that is meant: `name`, or the newest run of `schedule`."""
    if (name is None) == (schedule is None):
        raise RequestError("give the name of a job, or --schedule and the name of a schedule")
    if name is not None:
        return name
    assert schedule is not None
    runs = [run for run in _scheduling(place).list_runs(schedule) if not run.message.startswith("missed")]
    if not runs:
        raise RequestError(f"schedule {schedule} has not run yet")
    return runs[0].name


def _scheduling(place: JobPlace) -> "KubeRayPlace":
    from cluster.jobs.kuberay.place import KubeRayPlace

    if not isinstance(place, KubeRayPlace):
        raise RequestError("schedules, events, describe and clean are Kubernetes' own: give --to kuberay")
    return place


def _tell_end(status: JobStatus) -> None:
    if status.result is not None:
        click.echo(json.dumps(status.result, allow_nan=False))
    code = f", exit code {status.exit_code}" if status.exit_code else ""
    click.echo(
        f"{status.name}: {status.state}{code}{': ' + status.message if status.message else ''}", err=True
    )


def _shorten(command: str) -> str:
    return command if len(command) <= 60 else command[:57] + "..."
