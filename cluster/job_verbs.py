"""The verbs `fsl-dist submit` and `job`: a command that runs elsewhere, the same on this machine, on Ray and on Kubernetes."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from cluster.jobs import RESULT_MARK, Job, JobPlace, JobStatus
from cluster.output import align_columns, emit
from index.errors import RequestError

if TYPE_CHECKING:
    from cluster.kuberay_render import KubeOptions

_PLACES = ("local", "ray", "kuberay")
_TO = click.option(
    "--to",
    type=click.Choice(_PLACES),
    default="local",
    show_default=True,
    help="This machine, a Ray cluster, or Kubernetes with KubeRay.",
)
_ADDRESS = click.option(
    "--address", help="ray: URL of the dashboard; RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."
)
_NAMESPACE = click.option("--namespace", help="kuberay: the namespace.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
_NAME = click.argument("name")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _on_place(function: Callable[..., None]) -> Callable[..., None]:
    """The options that say where a job is."""
    return _TO(_ADDRESS(_NAMESPACE(function)))


class _Seconds(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Seconds of 90, 90s, 15m, 24h or 2d."""
        found = re.fullmatch(r"([1-9][0-9]*)([smhd]?)", str(value))
        if not found:
            self.fail(f"{value!r} must be a duration such as 90s, 15m, 24h or 2d", param, ctx)
        return int(found[1]) * _UNITS[found[2] or "s"]


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: fsl-dist submit --to ray --name first -- train --config experiments/omniglot/pcn.yaml workers.num=4",
)
@_on_place
@click.option("--name", help="Of the job, new there; made of the verb and the time unless given.")
@click.option(
    "--follow/--detach",
    default=True,
    show_default=True,
    help="Show its log and wait for it, or return at once.",
)
@click.option(
    "--wheel",
    type=click.Path(path_type=Path),
    help="ray: a wheel to send instead of the code that runs here.",
)
@click.option("--no-ship", is_flag=True, help="ray: send no code; the cluster has this project.")
@click.option("--image", help="kuberay: the container image.")
@click.option("--workers", type=click.IntRange(min=1), help="kuberay: worker pods.")
@click.option("--cpus-per-worker", type=click.IntRange(min=1), help="kuberay: CPUs a worker pod.")
@click.option("--gpus-per-worker", type=click.IntRange(min=0), help="kuberay: GPUs a worker pod.")
@click.option("--memory", help="kuberay: memory a worker pod, such as 32Gi.")
@click.option("--storage", help="kuberay: the PersistentVolumeClaim of data and runs.")
@click.option("--queue", help="kuberay: a queue of Kueue.")
@click.option("--priority", help="kuberay: a priority class.")
@click.option("--retries", type=click.IntRange(min=0), help="kuberay: new clusters after failures.")
@click.option("--deadline", type=_Seconds(), help="kuberay: the longest a job may take, such as 24h.")
@click.option("--dry-run", is_flag=True, help="kuberay: print the manifests, and touch no cluster.")
@_JSON
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND…", type=click.UNPROCESSED)
@click.pass_context
def submit(
    context: click.Context,
    /,
    to: str,
    address: str | None,
    name: str | None,
    follow: bool,
    wheel: Path | None,
    no_ship: bool,
    dry_run: bool,
    as_json: bool,
    arguments: tuple[str, ...],
    **kube: Any,
) -> None:
    """Run a command of fsl-dist as a job that outlives this one.

    With --follow its log goes to stderr and its result to stdout, and the exit code is the job's own; Ctrl-C leaves it running. The
    command and its --config are checked before anything is sent; the file's content travels with the job.
    """
    _refuse_foreign_options(to, address=address, wheel=wheel, no_ship=no_ship, dry_run=dry_run, **kube)
    from cluster.job_command import find_local_paths, name_job, read_command, resolve_command

    is_elsewhere = to != "local"
    command = read_command(context.find_root().command, arguments)  # type: ignore[arg-type]  # fsl-dist is a group
    command, config = resolve_command(command, is_elsewhere=is_elsewhere)
    job = Job(name=name or name_job(command), arguments=command.arguments, config=config)
    if is_elsewhere and (paths := find_local_paths(command, config)):
        click.echo(
            f"warning: {', '.join(paths)}: relative paths are looked up where the job runs, and nothing there is sent from here (name "
            "storage that all nodes see, by absolute paths or URLs)",
            err=True,
        )
    options = _kube_options(kube) if to == "kuberay" else None
    if dry_run:
        from cluster.kuberay_render import render_yaml

        click.echo(render_yaml(job, options), nl=False)
        return
    place = _open_place(to, address=address, kube=options, wheel=wheel, ships=not no_ship)
    place.submit(job)
    back = _way_back(job.name, to, address, kube.get("namespace"))
    if not follow:
        result = {"name": job.name, "to": to, "command": " ".join(("fsl-dist", *job.arguments))}
        emit(result, as_json, f"{job.name} is submitted\nnext: {back}")
        return
    click.echo(f"{job.name} is submitted", err=True)
    _follow(place, job.name, back)


@click.group()
def job() -> None:
    """Jobs that were submitted: how they stand, what they wrote, their end.

    \b
    Example:
      fsl-dist job list --to ray
      fsl-dist job logs train-20260102-030405-9f1c --follow --to ray
    """


@job.command(epilog="Example: fsl-dist job status first --to ray --json")
@_NAME
@_on_place
@_JSON
def status(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """How a job stands, and its result once it succeeded."""
    found = _open_place(to, address=address, kube=_kube_of(to, namespace, address)).status(name)
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
    "--follow", is_flag=True, help="Go on until it ends, as submit does: log on stderr, result on stdout."
)
@_on_place
@_JSON
def logs(name: str, follow: bool, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """What a job wrote so far, on stdout; with --follow, come back to it: log on stderr, result on stdout, its exit code."""
    place = _open_place(to, address=address, kube=_kube_of(to, namespace, address))
    if follow:
        _follow(place, name, _way_back(name, to, address, namespace))
    text = "".join(place.logs(name, follow=False))
    if as_json:
        emit({"name": name, "log": text}, True, "")
    else:
        click.echo(text, nl=False)


@job.command(epilog="Example: fsl-dist job stop first --to ray")
@_NAME
@_on_place
@_JSON
def stop(name: str, to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """End a job; what it has stored stays, and the same command goes on with it."""
    place = _open_place(to, address=address, kube=_kube_of(to, namespace, address))
    before = place.status(name)
    place.stop(name)
    found = place.status(name)
    said = f"{name} had ended already: {found.state}" if before.is_over else f"{name}: {found.state}"
    emit(dataclasses.asdict(found), as_json, said)


@job.command(name="list", epilog="Example: fsl-dist job list --to ray")
@_on_place
@_JSON
def list_jobs(to: str, address: str | None, namespace: str | None, as_json: bool) -> None:
    """All jobs that the place knows of, the newest first."""
    found = _open_place(to, address=address, kube=_kube_of(to, namespace, address)).list()
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
    """What a job itself runs, on the machine it was sent to: the command, resuming, with its result in the log's last line."""
    from cluster.job_entrypoint import run_job
    from index.errors import FslDistError
    from index.storage import write_atomic

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


def _follow(place: JobPlace, name: str, back: str) -> NoReturn:
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
        click.echo(f"{name} runs on; come back to it: {back}", err=True)
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


def _open_place(
    to: str, *, address: str | None, kube: "KubeOptions | None", wheel: Path | None = None, ships: bool = True
) -> JobPlace:
    if to == "local":
        from cluster.local_jobs import LocalPlace

        return LocalPlace()
    if to == "ray":
        from cluster.ray_jobs import RayPlace

        return RayPlace(address or "", wheel=wheel, ships=ships)
    from cluster.kuberay import KubeRayPlace

    return KubeRayPlace(kube)


def _kube_of(to: str, namespace: str | None, address: str | None) -> "KubeOptions | None":
    """The options of a place that a job is looked up in."""
    _refuse_foreign_options(to, address=address, namespace=namespace)
    return _kube_options({"namespace": namespace}) if to == "kuberay" else None


def _kube_options(given: dict[str, Any]) -> "KubeOptions":
    from cluster.kuberay_render import KubeOptions

    return KubeOptions(**{name: value for name, value in given.items() if value is not None})


def _refuse_foreign_options(to: str, **given: Any) -> None:
    """RequestError for an option of another place than `to`."""
    of_ray = ("address", "wheel", "no_ship")
    for name, value in given.items():
        owner = "ray" if name in of_ray else "kuberay"
        if value not in (None, False) and to != owner:
            raise RequestError(f"--{name.replace('_', '-')} goes with --to {owner}; this is --to {to}")
    if given.get("wheel") is not None and given.get("no_ship"):
        raise RequestError("--wheel names what is sent, and --no-ship sends nothing; give one of them")


def _way_back(name: str, to: str, address: str | None, namespace: str | None) -> str:
    where = f" --address {address}" if address else ""
    where += f" --namespace {namespace}" if namespace else ""
    return f"fsl-dist job logs {name} --follow --to {to}{where}"


def _shorten(command: str) -> str:
    return command if len(command) <= 60 else command[:57] + "..."
