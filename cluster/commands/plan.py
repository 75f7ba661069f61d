"""The command `plan`: time and resources of a run on many machines."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import align_columns, emit
from index.base.errors import RequestError

if TYPE_CHECKING:
    from cluster.planning.fleet import Fleet
    from cluster.planning.plan import Plan
    from fsl_dist.config import RunConfig

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")

_ROWS = (
    ("steps", "steps per epoch"),
    ("step_images", "images per step"),
    ("busy_processes", "training processes with images"),
    ("load_s", "  loading, per step"),
    ("compute_s", "  computing, per step"),
    ("network_s", "  gradients over the network, per step"),
    ("storage_s", "  storage, per step"),
    ("cores_s", "  CPU cores, per step"),
    ("step_s", "step"),
    ("refresh_embed_s", "  embedding, a refresh"),
    ("refresh_write_s", "  writing the index, a refresh"),
    ("refresh_publish_s", "  publishing the index, a refresh"),
    ("refresh_open_s", "  opening the index, a refresh"),
    ("refresh_search_s", "  searching, a refresh"),
    ("refresh_kmeans_s", "  k-means, a refresh"),
    ("refresh_s", "refresh"),
    ("refreshes", "refreshes per epoch"),
    ("epoch_s", "epoch"),
    ("images_per_second", "images per second"),
    ("network_gbit_needed", "network per machine, Gbit/s, for a tenth of a step"),
    ("storage_mb_s_needed", "storage, MB/s, for all machines together"),
    ("index_disk_gb", "index on disk, GB"),
    ("index_shard_memory_gb", "index in memory, GB a shard"),
    ("machine_memory_gb", "memory a machine for ids and mining, GB"),
)


@click.command(
    epilog="Example: fsl-dist plan --config own-images --rates rates.yaml --workers 64 --gpus-per-worker 8"
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The run's YAML file; key=value overrides it.",
)
@click.option(
    "--rates",
    "rates_path",
    type=click.Path(path_type=Path),
    required=True,
    help="Rates of one machine, measured by `fsl-dist bench rates`.",
)
@click.option("--workers", default=1, show_default=True, help="Machines, each like the one of the rates.")
@click.option("--gpus-per-worker", default=0, show_default=True, help="GPUs of each; 0 trains on the CPU.")
@click.option(
    "--processes-per-worker",
    default=0,
    help="Training processes per worker.  [default: one per GPU, else one]",
)
@click.option("--images", type=int, help="Training images.  [default: those of data.dataset]")
@click.option("--classes", type=int, help="Number of their classes; with --images.")
@click.option(
    "--network-gbit", type=float, help="Network link per machine.  [default: measured between two processes]"
)
@click.option(
    "--storage-mb-s",
    type=float,
    help="Storage bandwidth of all machines together.  [default: each as fast as the measured one]",
)
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def plan(
    config_path: Path | None,
    rates_path: Path,
    workers: int,
    gpus_per_worker: int,
    processes_per_worker: int,
    images: int | None,
    classes: int | None,
    network_gbit: float | None,
    storage_mb_s: float | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Estimate a run on many machines: time, network, storage, memory, and the bottleneck.

    An epoch is without validation, checkpoints and start-up.
    """
    from fsl_dist.config import load_config

    config = load_config(config_path, overrides)
    from cluster.planning.fleet import Fleet
    from cluster.planning.plan import WAYS_OUT, plan_run
    from cluster.planning.rates import read_rates

    rates = read_rates(rates_path)
    fleet = Fleet(
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        processes_per_worker=processes_per_worker,
        network_gbit=network_gbit,
        storage_mb_s=storage_mb_s,
    )
    num_images, num_classes = count_images(config, images, classes)
    planned = plan_run(
        config, rates, fleet, num_images=num_images, classes=num_classes, place=str(rates_path)
    )
    result = {
        "workers": workers,
        "gpus_per_worker": gpus_per_worker,
        "processes": fleet.processes,
        "images": num_images,
        "classes": num_classes,
        "rates": str(rates_path),
        "figures": planned.figures,
        "basis": planned.basis,
        "epoch_parts_s": planned.parts,
        "bottleneck": planned.bottleneck,
        "way_out": WAYS_OUT[planned.bottleneck],
    }
    emit(result, as_json, _describe(planned, fleet, num_images, num_classes, rates_path, rates.date))


def count_images(config: "RunConfig", images: int | None, classes: int | None) -> tuple[int, int]:
    """Training images and classes: the given numbers, otherwise those of the data set."""
    if (images is None) != (classes is None):
        raise RequestError(
            f"--images={images} and --classes={classes} go together; one was left out (without both, data.dataset "
            "is counted)"
        )
    if images is None or classes is None:
        from fsl_dist.data.catalogue import Catalogue
        from fsl_dist.training.splits import split_run

        if not config.data.dataset:
            raise RequestError(
                "data.dataset is empty, so there is nothing to count (data.dataset=DIR, or --images N --classes C)"
            )
        train = split_run(Catalogue.open(config.data.dataset, config.data.version or None), config).train
        return len(train), train.num_classes
    for name, value, least in (("images", images, 2), ("classes", classes, 1)):
        if value < least:
            raise RequestError(f"--{name}={value} must be at least {least}")
    if classes > images:
        raise RequestError(f"--classes={classes} is above --images={images}; a class has an image at least")
    return images, classes


def _describe(
    planned: "Plan", fleet: "Fleet", num_images: int, classes: int, rates_path: Path, date: str
) -> str:
    from cluster.planning.plan import WAYS_OUT

    figures = planned.figures
    rows = [["of one epoch", "figure", "basis"]]
    for name, label in _ROWS:
        if name in figures:
            value = (_duration if name.endswith("_s") else _number)(figures[name])
            if name == "busy_processes":
                value += f" of {figures['processes']:,.0f}"
            rows.append([label, value, planned.basis[name]])
    what = "on the CPU" if not fleet.gpus_per_worker else f"of {fleet.gpus_per_worker} GPUs"
    machines = f"{fleet.workers} machine{'s' if fleet.workers > 1 else ''} {what}"
    total = sum(planned.parts.values())
    shares = sorted(planned.parts.items(), key=lambda part: -part[1])
    spent = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds / total >= 0.005)
    return (
        f"{machines}, {fleet.processes} training process{'es' if fleet.processes > 1 else ''}; {num_images:,} "
        "images of "
        f"{classes:,} classes; rates of {date} from {rates_path}\n{align_columns(rows)}\n"
        f"the epoch goes to: {spent}\n"
        f"first bottleneck: {planned.bottleneck} ({WAYS_OUT[planned.bottleneck]})"
    )


def _number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def _duration(seconds: float) -> str:
    """Format seconds in a suitable unit."""
    for unit, size, least in (("years", 31_557_600, 2), ("days", 86_400, 2), ("h", 3_600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:.3g} ms"
