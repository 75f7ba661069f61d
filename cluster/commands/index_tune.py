"""The command `fsl-dist index tune`."""

import sys
from pathlib import Path

import click

from cluster.commands.output import align_columns, emit


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.option(
    "--recall", type=float, default=0.95, show_default=True, help="Share of true neighbours, 0 to 1."
)
@click.option("--k", type=click.IntRange(min=1), default=10, show_default=True, help="Neighbours a query.")
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Number of the index's vectors that are used as queries.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def tune(index: Path, recall: float, k: int, sample: int, as_json: bool) -> None:
    """Find the cheapest search parameters of INDEX that reach a recall, and store them in it.

    The recall is measured against the exact neighbours of some of its own vectors. If even the largest parameters do
    not reach it, the best ones are stored and the exit code is 1. A flat index has nothing to tune.

    \b
    Example:
      fsl-dist index tune my-index --recall 0.95 --k 10
    """
    from index.search import open_index
    from index.tune import store
    from index.tune import tune as tune_index

    # Vectors that were added later are all compared, for any parameters.
    opened = open_index(index, changes=False)
    if not opened.parameters:
        emit(
            {"index": str(opened.path), "kind": "flat", "parameters": {}, "recall": 1.0, "reached": True},
            as_json,
            f"{opened.path} is flat: it finds the true neighbours and has nothing to tune",
        )
        return
    tuning = tune_index(opened, recall, k, sample)
    chosen = tuning.chosen
    store(opened, chosen.parameters)
    names = list(chosen.parameters)
    rows = [[*names, f"recall@{k}", "ms a query", ""]]
    for trial in sorted(tuning.trials, key=lambda t: [t.parameters[name] for name in reversed(names)]):
        numbers = [str(trial.parameters[name]) for name in names]
        stored = "stored" if trial is chosen else ""
        rows.append([*numbers, f"{trial.recall:.4f}", f"{1e3 * trial.seconds:.3f}", stored])
    lines = [align_columns(rows)]
    if not tuning.is_reached:
        lines.append(
            f"recall@{k} {recall:g} is not reached; the best is {chosen.recall:.4f} (build it with larger pq_m, "
            "hnsw_m or ef_construction, or kind=flat)"
        )
    emit(
        {
            "index": str(opened.path),
            "kind": opened.manifest.kind,
            "k": k,
            "parameters": chosen.parameters,
            "recall": chosen.recall,
            "seconds_a_query": chosen.seconds,
            "reached": tuning.is_reached,
            "trials": [
                {"parameters": t.parameters, "recall": t.recall, "seconds_a_query": t.seconds}
                for t in tuning.trials
            ],
        },
        as_json,
        "\n".join(lines),
    )
    if not tuning.is_reached:
        sys.exit(1)
