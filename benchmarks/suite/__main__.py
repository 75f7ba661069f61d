"""`python -m benchmarks.suite NAME`: run one benchmark and print its tables."""

from collections.abc import Callable
from pathlib import Path

import click

from benchmarks.practice.command import practice
from benchmarks.suite.run import BENCHMARKS, run_benchmark
from benchmarks.vectors import SETS

_ABOUT = {
    "stream": "Reading and decoding photographs: scans, episodes and random batches, compared with DALI, webdataset and DataLoader.",
    "episodes": "Episodes over a million catalogue rows: start, memory and speed, compared with loose files and one tar per class.",
    "train": "Training steps compared with a bare PyTorch loop, waiting for images, clustering compared with scikit-learn.",
    "workers": "Two workers compared with one on the same steps, and with two independent runs.",
    "start": "From the command to the first training step on Ray, compared with a TorchTrainer that does nothing.",
    "mining": "Deep kNN's neighbours in a memory of all embeddings, and decoded, next to neighbours in the batch.",
    "index": "Search for the nearest vectors, compared with FAISS used directly, hnswlib and usearch.",
    "evaluate": "kNN scores over many K_p and prototype scores of many draws, compared with scikit-learn and plain torch.",
}
_DATASET = click.option(
    "--dataset", type=click.Path(path_type=Path), help="A packed data set in place of the made one."
)
_VECTORS = click.option(
    "--vectors",
    type=(click.Choice(SETS), click.IntRange(min=1000)),
    multiple=True,
    metavar="NAME NUM",
    help="A set of benchmarks.vectors and its size; repeat for several.",
)
# The others' sizes are what they are about.
_ON_A_DATASET = ("stream", "train", "workers", "start", "mining")


@click.group()
def main() -> None:
    """Measure fsl-dist against its peers. Leave the machine alone meanwhile.

    \b
    Example:
      python -m benchmarks.suite stream --rounds 5 --out benchmarks/results
    """


def _benchmark(name: str) -> Callable[..., None]:
    """The command of one benchmark."""

    @main.command(name=name, help=_ABOUT[name])
    @click.option("--smoke", is_flag=True, help="Small: ratios mean something, times do not.")
    @click.option(
        "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Counted rounds, in turn."
    )
    @click.option(
        "--out",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help=f"A folder that gets {name}.json and {name}.md.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
    def command(
        smoke: bool,
        rounds: int,
        out: Path | None,
        as_json: bool,
        dataset: Path | None = None,
        vectors: tuple[tuple[str, int], ...] = (),
    ) -> None:
        from benchmarks.suite.report import to_json, to_markdown
        from cluster.commands.output import emit

        report = run_benchmark(name, is_smoke=smoke, rounds=rounds, dataset=dataset, out=out, vectors=vectors)
        emit(to_json(report), as_json, to_markdown(report))

    return command


main.add_command(practice)
for _name in BENCHMARKS:
    _command = _benchmark(_name)
    if _name in _ON_A_DATASET:
        _DATASET(_command)
    if _name == "index":
        _VECTORS(_command)

if __name__ == "__main__":
    main()
