"""Commands of a run: doctor, demo, train, embed, evaluate."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cluster.commands.capacity_option import CAPACITY
from cluster.commands.messages import in_options
from cluster.commands.output import align_columns, emit
from fsl_dist.progress import progress_printer
from index.base.errors import RequestError

if TYPE_CHECKING:
    from fsl_dist.training.launch import TrainingSummary
    from index import ShardedIndex


class StepName(click.ParamType):
    """A checkpoint by its name or its number: step-56, step-00000056 or 56."""

    name = "step"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of steps."""
        digits = str(value).removeprefix("step-")
        if not digits.isdecimal():
            self.fail(f"'{value}' is not a checkpoint (step-56 is the one after 56 steps)", param, ctx)
        return int(digits)


JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")


@click.command(epilog="Example: fsl-dist doctor runs/first --json")
@click.argument("path", required=False, metavar="[RUN|DATASET|INDEX|SWEEP]")
@click.option(
    "--write-checksums",
    is_flag=True,
    help="Give sound files that have no checksum one: those of earlier versions, and those you edited.",
)
@JSON
def doctor(path: str | None, write_checksums: bool, as_json: bool) -> None:
    """Check a run, data set, index or sweep as a whole; exit 1 where something is damaged.

    Without a folder: what this machine can do (versions, GPUs, decoders, Ray).
    """
    if path is not None:
        import fsl_dist

        diagnosis = fsl_dist.doctor(path, write_checksums=write_checksums)
        context = click.get_current_context()
        words = partial(in_options, root=context.find_root().command, command=context.command)
        told = tuple(
            dataclasses.replace(finding, problem=words(finding.problem), repair=words(finding.repair))
            for finding in diagnosis.damaged
        )
        diagnosis = dataclasses.replace(diagnosis, damaged=told)
        emit(diagnosis.to_json(), as_json, words(str(diagnosis)))
        raise SystemExit(0 if diagnosis.is_sound else 1)
    if write_checksums:
        raise RequestError("write_checksums=True needs a folder")
    from cluster.commands.doctor import examine

    findings = examine()
    rows = [["what", "found"], *([name, str(value)] for name, value in findings.items())]
    emit(findings, as_json, "\n".join(f"{name:<24}{value}" for name, value in rows))


@click.command(epilog="Example: fsl-dist demo --dir /tmp/digits --workers 2")
@click.option(
    "--dir", "folder", type=click.Path(path_type=Path), default=None, help="Folder for all results."
)
@click.option("--workers", default=2, show_default=True, help="Ray Train workers.")
@JSON
def demo(folder: Path | None, workers: int, as_json: bool) -> None:
    """The main job end to end on real handwritten digits: pack, train, index, evaluate."""
    from cluster.commands.demo import run_demo

    result, text = run_demo(folder, workers, show=progress_printer())
    emit(result, as_json, text)


@click.command(epilog="Example: fsl-dist train --config omniglot/pcn workers.num=2")
@click.option("--config", help="Name of a shipped configuration, or a YAML file; key=value overrides it.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue from the last checkpoint in run.dir; without --config, with the settings of its start.",
)
@click.option(
    "--from",
    "from_step",
    type=StepName(),
    metavar="step-N",
    help="With --resume: the checkpoint to continue from, instead of the last; later ones are removed.",
)
@CAPACITY
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def train(
    config: str | None, resume: bool, from_step: int | None, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Train one run: the folder run.dir gets checkpoints, metrics and TensorBoard files.

    Ctrl-C and SIGTERM finish the step under way and write a checkpoint, from which --resume continues.
    """
    import fsl_dist

    run = fsl_dist.train(
        config, settings=overrides, resume=resume, from_step=from_step, progress=progress_printer()
    )
    summary = run.summary
    assert summary is not None
    emit(dataclasses.asdict(summary), as_json, _describe_training(summary))


def _describe_training(summary: "TrainingSummary") -> str:
    """The end of a run, its best checkpoint, and the next command; a warning last."""
    loss = "" if summary.loss is None else f", loss {summary.loss:.4f}"
    best, kept = "", "last"
    if summary.best_value is not None:
        kept = "best"
        best = f", best {summary.stop_metric} {summary.best_value:.4f}"
        if summary.start_value is not None:
            best += f" (start {summary.start_value:.4f})"
    lines = [
        f"{summary.run}: {summary.epochs} epochs, {summary.steps} steps, {summary.images_seen} images{loss}{best} "
        f"in {summary.seconds:.0f} s",
        f"{kept} checkpoint: {summary.checkpoint}",
        f"next: fsl-dist evaluate {summary.run}",
    ]
    if summary.warning:
        lines.append(f"warning: {summary.warning}")
    elif summary.best_value is None and summary.steps > 0:
        lines.append("not validated (training.patience=0): nothing was compared with the start")
    return "\n".join(lines)


@click.command(epilog="Example: fsl-dist embed runs/omniglot-pcn data/omniglot --out omniglot.npy")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), default=None, help="A .npy file; RUN/embeddings.npy by default."
)
@JSON
def embed(run: Path, dataset: Path, out: Path | None, as_json: bool) -> None:
    """Embed every sample of DATASET: float32 [num_samples, dim], row = sample id, for data.features or index build."""
    import fsl_dist

    out = out or run / "embeddings.npy"
    num_samples, dim = fsl_dist.open_run(run).embed(fsl_dist.open_data(dataset), out=out).shape
    result = {
        "run": str(run),
        "dataset": str(dataset),
        "out": str(out),
        "num_samples": num_samples,
        "dim": dim,
    }
    emit(result, as_json, f"{out}: {num_samples} embeddings of {dim} numbers")


@click.command(epilog="Example: fsl-dist evaluate runs/omniglot-pcn evaluation.novel_shots=10 --json")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--protocol",
    help="knn, prototypes, softmax, retrieval, maps, kmeans, spectral, few_shot_knn, fine_tune or head, or a metric of another "
    "distribution. The default depends on the method.",
)
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="The training images' embeddings, by `index build RUN DATASET INDEX`; without it they are made under RUN.",
)
@click.option(
    "--index-actors",
    type=click.IntRange(min=1),
    help="Search INDEX in so many Ray actors, each with some of its shards; in this process by default.",
)
@JSON
@click.argument("overrides", nargs=-1, metavar="[evaluation.KEY=VALUE]…")
def evaluate(
    run: Path,
    protocol: str | None,
    index: Path | None,
    index_actors: int | None,
    as_json: bool,
    overrides: tuple[str, ...],
) -> None:
    """Score a run's best checkpoint: kNN, and novel classes if there are any, compared with the scores of its start.

    Novel classes are scored over draws of a few images: by prototypes (pcn), by the vote of neighbours
    (few_shot_knn), or by a classifier that is retrained for each draw (fine_tune, of cross_entropy). As evidence for
    a decision, retrieved images are scored by AUC, by the share of the query's group, and by the overlap of
    activation maps with the query's mask (retrieval; only the last: maps). Test images of classes that were not
    trained on are clustered (kmeans, spectral), in several runs.
    """
    import fsl_dist

    opened = fsl_dist.open_run(run)
    with _as_actors(index, index_actors) as gallery:
        report = opened.evaluate(protocol, index=gallery, settings=overrides)
    emit(report.to_json(), as_json, _describe(report.to_json()))


@contextmanager
def _as_actors(index: Path | None, actors: int | None) -> Iterator["ShardedIndex | Path | None"]:
    """The index as Ray actors, if a number of actors is set."""
    if actors is None:
        yield index
    elif index is None:
        raise RequestError("--index-actors needs --index, the index to serve")
    else:
        from fsl_dist.training.ray.session import ray_session
        from index import open_ray_index

        with ray_session(actors), open_ray_index(index, num_actors=actors) as gallery:
            yield gallery


def _describe(report: dict) -> str:
    starts = report["start"]
    rows = [["metric", "value %", *(["start %"] if starts else []), "± std", "repeats"]]
    for name, value in report["metrics"].items():
        start = [_show_score(name, starts[name]) if name in starts else ""] if starts else []
        repeats = [f"{value['std'] * 100:.2f}", str(value["n"])] if isinstance(value, dict) else ["", ""]
        rows.append([name, _show_score(name, value), *start, *repeats])
    split = report["split"] or "novel classes only"
    return f"{report['run']} on {report['dataset']} (queries: {split})\n{align_columns(rows)}"


def _show_score(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['mean'] * 100:.2f}"
    if name.startswith("rel@"):  # a number of images
        return f"{value:.2f} of {name.removeprefix('rel@')}"
    return f"{value * 100:.2f}"
