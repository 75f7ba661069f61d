"""Commands on frozen features: baseline."""

import dataclasses
from pathlib import Path

import click

from cluster.commands.output import align_columns, emit

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")


@click.command(epilog="Example: fsl-dist baseline lmnn data/skin --features skin.npy --pca 64")
@click.argument("baseline", type=click.Choice(["knn", "nca", "lmnn"]), metavar="knn|nca|lmnn")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    required=True,
    help="A .npy file of `fsl-dist embed`: float32 [num_samples, dim], row = sample id.",
)
@click.option(
    "--pca",
    type=int,
    help="Number of principal components, 0: the features as they are.  [default: 0 for knn, else 64]",
)
@JSON
@click.argument("overrides", nargs=-1, metavar="[evaluation.k_p=[…]]")
def baseline(
    baseline: str, dataset: Path, features: Path, pca: int | None, as_json: bool, overrides: tuple[str, ...]
) -> None:
    """Fit a classifier without a network on frozen features of DATASET's train split, and score it by kNN.

    knn compares the features as they are; nca and lmnn first learn a linear map of them.
    """
    from fsl_dist.config import load_config
    from fsl_dist.errors import ConfigError

    for key in (override.partition("=")[0] for override in overrides):
        if key != "evaluation.k_p":
            raise ConfigError(f"{key} plays no part in a baseline; evaluation.k_p alone does")
    config = load_config(None, overrides)
    data = dataclasses.replace(config.data, dataset=str(dataset), features=str(features))
    from fsl_dist.evaluation.baselines import evaluate_baseline

    report = evaluate_baseline(
        baseline,  # type: ignore[arg-type]  # click has checked the choice
        dataclasses.replace(config, data=data),
        pca=pca,
    )
    rows = [["metric", "value %"], *([name, f"{value * 100:.2f}"] for name, value in report.metrics.items())]
    head = f"{report.baseline} in {report.dim} dimensions of {report.features}, fitted in {report.fit_s} s"
    emit(
        dataclasses.asdict(report),
        as_json,
        f"{head}\non {report.dataset} (queries: {report.split})\n{align_columns(rows)}",
    )
