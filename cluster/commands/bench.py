"""The command group `bench`: how fast this machine is, for `plan`."""

from pathlib import Path

import click

from cluster.commands.output import emit
from index.base.errors import RequestError

JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")


@click.group()
def bench() -> None:
    """Measure this machine, for `fsl-dist plan`. Do not use it for anything else meanwhile.

    \b
    Example:
      fsl-dist bench rates --config omniglot/pcn --out rates.yaml
      fsl-dist plan --config omniglot/pcn --rates rates.yaml --workers 8
    """


@bench.command(
    epilog="Example: fsl-dist bench rates --config own-images --out rates.yaml data.dataset=data/mine"
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="The run's YAML file; key=value overrides it.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="RATES.yaml, or RATES.json; is replaced."
)
@JSON
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]…")
def rates(config_path: Path | None, out: Path, as_json: bool, overrides: tuple[str, ...]) -> None:
    """Measure how fast this machine loads, trains, embeds, indexes and searches for a run's configuration;
    `plan` reads it.

    One process, for about a minute; only temporary files next to OUT. Do not use the machine for anything else
    meanwhile.
    """
    from fsl_dist.config import load_config

    config = load_config(config_path, overrides)
    if not out.parent.is_dir():
        raise RequestError(f"--out {out}: the folder {out.parent} does not exist")
    from cluster.planning.machine_rates import measure_rates
    from cluster.planning.rates import render_rates
    from index.base.files import write_atomic
    from index.base.settings import dump

    measured = measure_rates(config)
    text = render_rates(measured, as_json=out.suffix == ".json")
    write_atomic(out, text.encode())
    emit({"out": str(out), "rates": dump(measured)}, as_json, f"{text}written to {out}")
