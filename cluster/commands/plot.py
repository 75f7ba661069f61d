"""The command group `plot`: pictures of trained runs."""

import dataclasses
from pathlib import Path
from typing import Literal

import click

from cluster.commands.output import align_columns, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
RUN = click.argument("run", type=click.Path(path_type=Path))
RUNS = click.argument("runs", metavar="RUN…", type=click.Path(path_type=Path), nargs=-1, required=True)
OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="A .png file.")
PROTOCOLS = click.option(
    "--protocols",
    default="",
    help="knn, prototypes or fine_tune, one per run, separated by commas.  [default: prototypes for pcn, else knn]",
)
EVALUATION = click.argument("overrides", nargs=-1, metavar="[evaluation.KEY=VALUE]…")


@click.group()
def plot() -> None:
    """Draw pictures of trained runs, as PNG.

    \b
    Example:
      fsl-dist plot prototypes runs/omniglot-pcn --out prototypes.png
    """


@plot.command(epilog="Example: fsl-dist plot tsne runs/triplet runs/deep-knn --out train.png --split train")
@RUNS
@OUT
@click.option(
    "--split",
    type=click.Choice(["train", "val", "test", "novel"]),
    help="Split of the images.  [default: the queries of evaluate: test, else val]",
)
@click.option(
    "--images",
    type=click.IntRange(min=2),
    default=5000,
    show_default=True,
    help="Images at most, drawn by run.seed.",
)
@JSON
def tsne(runs: tuple[Path, ...], out: Path, split: str | None, images: int, as_json: bool) -> None:
    """Plot runs' embeddings in two dimensions by t-SNE: a panel per run, a dot per image, a colour per class."""
    from fsl_dist.plots.tsne import plot_runs

    drawn = plot_runs(runs, out, split=split, max_images=images)
    lines = [
        f"{panel.run}: {panel.num_images} images of {panel.num_classes} classes ({panel.split})"
        for panel in drawn.panels
    ]
    emit(dataclasses.asdict(drawn), as_json, "\n".join([str(drawn.out), *lines]))


@plot.command(
    epilog="Example: fsl-dist plot prototypes runs/omniglot-pcn --out p.png --classes Greek,Tagalog"
)
@RUN
@OUT
@click.option(
    "--classes",
    default="",
    help="Names with commas between them.  [default: the 4 largest base and the 2 largest novel classes]",
)
@click.option("--draw", default=0, show_default=True, help="Which of evaluate's draws of novel images.")
@JSON
@EVALUATION
def prototypes(
    run: Path, out: Path, classes: str, draw: int, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Show the prototypes of a pcn run, and how test images are assigned to them.

    A panel per class: the nearest training image of each prototype (nearest support image, for a novel class), then
    test images, predicted correctly (green) or as another class (red). The bars under a test image are its
    responsibilities over the prototypes of the predicted class, in percent, with their images below.
    """
    from fsl_dist.config import load_evaluation

    settings = load_evaluation(run, overrides)
    from fsl_dist.plots.prototype_picture import plot_prototypes

    drawn = plot_prototypes(run, out, classes=_split(classes), draw=draw, settings=settings)
    shown = ", ".join(example.name for example in drawn.classes)
    emit(dataclasses.asdict(drawn), as_json, f"{drawn.out}: prototypes of {shown}")


@plot.command(epilog="Example: fsl-dist plot queries runs/omniglot-pn runs/omniglot-pcn --out queries.png")
@click.argument("arguments", nargs=-1, required=True, metavar="RUN… [evaluation.KEY=VALUE]…")
@OUT
@PROTOCOLS
@click.option("--classes", default="", help="Names with commas between them.  [default: any]")
@click.option("--draw", default=0, show_default=True, help="Which of evaluate's draws of novel images.")
@JSON
def queries(
    arguments: tuple[str, ...], out: Path, protocols: str, classes: str, draw: int, as_json: bool
) -> None:
    """Show test images with their predictions by several runs, green if correct.

    One column per image, one row per run. Below each prediction is an image that represents it: that of the prototype
    (pcn), or the nearest neighbour of the class (knn). Images on which the runs differ come first.
    """
    from fsl_dist.config import load_evaluation

    overrides = [argument for argument in arguments if argument.startswith("evaluation.")]
    runs = [Path(argument) for argument in arguments if argument not in overrides]
    settings = [load_evaluation(run, overrides) for run in runs]
    from fsl_dist.plots.query_picture import plot_queries

    drawn = plot_queries(
        runs, out, protocols=_split(protocols), settings=settings, classes=_split(classes), draw=draw
    )
    rows = [["image of", *drawn.runs]]
    rows += [
        [query.name, *(answer.predicted + " (right)" * answer.is_right for answer in query.answers)]
        for query in drawn.queries
    ]
    emit(dataclasses.asdict(drawn), as_json, f"{drawn.out}\n{align_columns(rows)}")


@plot.command(
    epilog="Example: fsl-dist plot comparison runs/omniglot-pn runs/omniglot-pcn --out compared.png"
)
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@OUT
@PROTOCOLS
@JSON
@EVALUATION
def comparison(
    run_a: Path, run_b: Path, out: Path, protocols: str, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Compare two runs class by class: a dot per class, the accuracy of RUN_A to the right, that of RUN_B upwards.

    Each run is scored by its own protocol: prototypes for pcn, over all draws; the vote of the nearest training
    images for others; --protocols selects others. The area of a dot is the number of training images of the class.
    """
    from fsl_dist.config import load_evaluation

    settings = [load_evaluation(run, overrides) for run in (run_a, run_b)]
    from fsl_dist.plots.comparison import plot_comparison

    drawn = plot_comparison(run_a, run_b, out, settings=settings, protocols=_split(protocols) or ("", ""))
    rows = [["class", "", "training images", "A %", "B %"]]
    for of_class in drawn.classes:
        kind = "novel" if of_class.is_novel else "base"
        accuracies = [f"{value * 100:.1f}" for value in (of_class.accuracy_a, of_class.accuracy_b)]
        rows.append([of_class.name, kind, str(of_class.train_images), *accuracies])
    left_out = f"\nscored by one run only: {', '.join(drawn.left_out)}" if drawn.left_out else ""
    emit(
        dataclasses.asdict(drawn),
        as_json,
        f"{drawn.out}: A {run_a} by {drawn.protocol_a}, B {run_b} by {drawn.protocol_b}\n{align_columns(rows)}{left_out}",
    )


@plot.command(epilog="Example: fsl-dist plot curves runs/deep-knn runs/triplet --out curves.png --x images")
@RUNS
@OUT
@click.option("--metric", default="eval/knn/train_acc@5", show_default=True, help="As in metrics.jsonl.")
@click.option(
    "--x",
    type=click.Choice(["epoch", "images"]),
    default="epoch",
    show_default=True,
    help="Epochs, with the mean over each; or images seen, line by line.",
)
@JSON
def curves(
    runs: tuple[Path, ...], out: Path, metric: str, x: Literal["epoch", "images"], as_json: bool
) -> None:
    """Plot a logged metric of one or more runs over epochs or images seen, a curve per run."""
    from fsl_dist.plots.curves import plot_curves

    drawn = plot_curves(runs, out, metric=metric, x=x)
    last = "\n".join(f"{curve.name}: {len(curve.values)} points" for curve in drawn.curves)
    emit(dataclasses.asdict(drawn), as_json, f"{drawn.out}: {drawn.metric} by {drawn.x}\n{last}")


@plot.command(
    epilog="Example: fsl-dist plot retrieval runs/disease runs/hierarchical --out r.png --query mel/ISIC_0028579"
)
@RUNS
@OUT
@click.option(
    "--query",
    default="",
    metavar="KEY",
    help="An image of the data set: its key or sample id.  [default: the middle one of evaluate's queries]",
)
@click.option(
    "--k", type=click.IntRange(min=1), default=5, show_default=True, help="Training images per run."
)
@JSON
def retrieval(runs: tuple[Path, ...], out: Path, query: str, k: int, as_json: bool) -> None:
    """Show the training images nearest to one image by several runs, a row per run.

    Results of the query's class have a blue frame, others an orange one; below each is its class and group.
    """
    from fsl_dist.plots.retrieval_picture import plot_retrieval

    drawn = plot_retrieval(runs, out, query=query, k=k)
    rows = [
        f"{system.name}: {', '.join(result.label for result in system.results)}" for system in drawn.systems
    ]
    head = f"{drawn.out}: {drawn.query.key} ({drawn.query.label})"
    emit(dataclasses.asdict(drawn), as_json, "\n".join([head, *rows]))


@plot.command(epilog="Example: fsl-dist plot maps runs/hierarchical --out maps.png --pairs 9")
@RUN
@OUT
@click.option(
    "--query",
    "queries",
    multiple=True,
    metavar="KEY",
    help="An image of the data set: its key or sample id; may be repeated.  [default: --pairs of evaluate's queries]",
)
@click.option(
    "--pairs", type=click.IntRange(min=1), default=6, show_default=True, help="Queries, spread over classes."
)
@JSON
def maps(run: Path, out: Path, queries: tuple[str, ...], pairs: int, as_json: bool) -> None:
    """Show queries with their nearest training images and both activation maps, in blocks of four.

    Above the query and its map, below the result and its map. Colour marks the regions that cause the distance
    between the two.
    """
    from fsl_dist.plots.retrieval_picture import plot_maps

    drawn = plot_maps(run, out, queries=queries, pairs=pairs)
    lines = [f"{query.key} ({query.label}): {result.key} ({result.label})" for query, result in drawn.pairs]
    emit(dataclasses.asdict(drawn), as_json, "\n".join([f"{drawn.out}: {len(drawn.pairs)} pairs", *lines]))


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]
