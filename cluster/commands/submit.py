"""The command `fsl-dist submit`: a command that runs elsewhere, the same on this machine, on Ray and on Kubernetes."""

import time
from pathlib import Path
from typing import Any

import click

from cluster.commands.durations import Duration
from cluster.commands.job import JSON, follow_job
from cluster.commands.output import emit
from cluster.jobs.job import Job
from cluster.jobs.options import (
    kube_options,
    on_followed,
    on_place,
    open_place,
    refuse_foreign_options,
    way_back,
)


@click.command(
    context_settings={"allow_interspersed_args": False},
    epilog="Example: fsl-dist submit --to ray --name first -- train --config omniglot/pcn workers.num=4",
)
@on_place
@click.option("--name", help="Job name; must be unique. Default: command and timestamp.")
@click.option(
    "--follow/--detach",
    default=True,
    show_default=True,
    help="Show its log and wait for it, or return at once.",
)
@on_followed
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
@click.option(
    "--deadline", type=Duration(), help="kuberay: maximum duration of all tries together, such as 24h."
)
@click.option("--service-account", help="kuberay: ServiceAccount of the pods.")
@click.option("--pull-secret", help="kuberay: the Secret of the image's registry.")
@click.option("--operator-namespace", help="kuberay: where KubeRay's operator runs.")
@click.option(
    "--pod-template",
    help="kuberay: YAML file merged into the pods: node selector, tolerations, spread, labels, volumes.",
)
@click.option("--dry-run", is_flag=True, help="kuberay: print the manifests, and touch no cluster.")
@JSON
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND…", type=click.UNPROCESSED)
@click.pass_context
def submit(
    context: click.Context,
    /,
    to: str,
    address: str | None,
    name: str | None,
    follow: bool,
    wait_s: float | None,
    api_timeout_s: float,
    wheel: Path | None,
    no_ship: bool,
    dry_run: bool,
    as_json: bool,
    arguments: tuple[str, ...],
    **kube: Any,
) -> None:
    """Run a command of fsl-dist as a job that outlives this command.

    With --follow its log goes to stderr and its result to stdout, and the exit code is the job's own; Ctrl-C leaves
    it running. The command and its --config are checked before anything is sent; the file's content is sent with the
    job.
    """
    refuse_foreign_options(to, address=address, wheel=wheel, no_ship=no_ship, dry_run=dry_run, **kube)
    from cluster.jobs.capacity import check_demand, find_demand
    from cluster.jobs.command import find_local_paths, name_job, read_command, resolve_command

    is_elsewhere = to != "local"
    command = read_command(context.find_root().command, arguments)  # type: ignore[arg-type]  # fsl-dist is a group
    command, config = resolve_command(command, is_elsewhere=is_elsewhere)
    job = Job(name=name or name_job(command), arguments=command.arguments, config=config)
    if is_elsewhere and (paths := find_local_paths(command, config)):
        click.echo(
            f"warning: {', '.join(paths)}: relative paths are resolved where the job runs, and no local files are "
            "sent there (use storage that all nodes see, by absolute paths or URLs)",
            err=True,
        )
    options = kube_options(kube) if to == "kuberay" else None
    if options is not None:
        from cluster.jobs.kuberay.outputs import check_outputs
        from cluster.jobs.kuberay.rendering import machines, render, render_yaml

        where = f"the job with workers={options.workers}"
        way_out = "more workers=, cpus_per_worker= or gpus_per_worker=, or a smaller command"
        check_demand(find_demand(command), machines(job, options), where, way_out)
        check_outputs(command, render(job, options), options)
        if dry_run:
            click.echo(render_yaml(job, options, now_s=time.time()), nl=False)
            return
    place = open_place(
        to, address=address, kube=options, wheel=wheel, ships=not no_ship, timeout_s=api_timeout_s
    )
    if to == "ray" and (demand := find_demand(command)):
        from cluster.jobs.ray import RayPlace

        assert isinstance(place, RayPlace)
        # A head that has just started does not know its own node yet.
        if there := place.machines():
            way_out = "a larger cluster, or a smaller command"
            check_demand(demand, there, f"the Ray cluster at {place.address}", way_out)
    place.submit(job)
    back = way_back(job.name, to, address, kube.get("namespace"))
    if not follow:
        result = {"name": job.name, "to": to, "command": " ".join(("fsl-dist", *job.arguments))}
        emit(result, as_json, f"{job.name} is submitted\nnext: {back}")
        return
    click.echo(f"{job.name} is submitted", err=True)
    follow_job(place, job.name, back, wait_s=wait_s)
