"""The verb group `bench`: how fast this machine is, beside what one would otherwise use, and for plans."""

from collections.abc import Callable
from pathlib import Path

import click

from cluster.bench.run import BENCHMARKS
from cluster.output import emit
from index.errors import RequestError

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")

_ABOUT = {
    "stream": "Reading and decoding photographs: scans, episodes and random batches beside DALI, webdataset and DataLoader.",
    "episodes": "Episodes over a million catalogue rows: start, memory and speed beside loose files and one tar a class.",
    "train": "Training steps beside a bare PyTorch loop, waiting for images, clustering beside scikit-learn.",
    "workers": "Two workers beside one on the same steps, and beside two runs apart.",
    "start": "From the command to the first training step on Ray, beside a TorchTrainer that does nothing.",
    "mining": "Deep kNN mined in the whole data set beside mined in the batch, at equal images seen.",
    "evaluate": "kNN scores over many K_p and prototype scores of many draws beside scikit-learn and plain torch.",
}


@click.group()
def bench() -> None:
    """Measure what this machine does. Leave it alone meanwhile.

    \b
    Example:
      fsl-dist bench stream --out results
      fsl-dist bench rates --config experiments/omniglot/pcn.yaml --out rates.yaml
      fsl-dist plan --config experiments/omniglot/pcn.yaml --rates rates.yaml --workers 8
    """


def _benchmark(name: str) -> Callable[..., None]:
    """The verb of one benchmark."""

    @bench.command(
        name=name, help=_ABOUT[name], epilog=f"Example: fsl-dist bench {name} --rounds 5 --out results"
    )
    @click.option("--smoke", is_flag=True, help="Small: ratios mean something, times do not.")
    @click.option(
        "--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Counted rounds, in turn."
    )
    @click.option(
        "--out", type=click.Path(path_type=Path), help=f"A folder that gets {name}.json and {name}.md."
    )
    @JSON
    def verb(smoke: bool, rounds: int, out: Path | None, as_json: bool, dataset: Path | None = None) -> None:
        if out is not None and not out.is_dir():
            raise RequestError(f"--out {out}: there is no such folder (mkdir {out})")
        from cluster.bench.report import to_json, to_markdown
        from cluster.bench.run import run_benchmark

        report = run_benchmark(name, is_smoke=smoke, rounds=rounds, dataset=dataset, out=out)
        emit(to_json(report), as_json, to_markdown(report))

    return verb


_DATASET = click.option(
    "--dataset", type=click.Path(path_type=Path), help="A packed data set in place of the made one."
)

# The others' sizes are what they are about.
_ON_A_DATASET = ("stream", "train", "workers", "start", "mining")

for _name in BENCHMARKS:
    _verb = _benchmark(_name)
    if _name in _ON_A_DATASET:
        _DATASET(_verb)


@bench.command(
    epilog="Example: fsl-dist bench rates --config experiments/own-images.yaml --out rates.yaml data.dataset=data/mine"
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The run's YAML file; key=value goes over it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="RATES.yaml, or RATES.json; is replaced."
)
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def rates(config_path: Path | None, out: Path, as_json: bool, overrides: tuple[str, ...]) -> None:
    """How fast this machine loads, trains, embeds, indexes and searches for one run's configuration; `plan` reads it.

    One process, for about a minute; only temporary files beside OUT. Leave the machine alone meanwhile.
    """
    from fsl_dist.config import load_config

    config = load_config(config_path, overrides)
    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: the folder {out.parent} does not exist")
    from cluster.bench.machine_rates import measure_rates
    from cluster.rates import render_rates
    from index import gate
    from index.storage import write_atomic

    measured = measure_rates(config)
    text = render_rates(measured, as_json=out.suffix == ".json")
    write_atomic(out, text.encode())
    emit({"out": str(out), "rates": gate.dump(measured)}, as_json, f"{text}written to {out}")
