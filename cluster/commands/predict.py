"""The command `fsl-dist predict`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import emit

if TYPE_CHECKING:
    from fsl_dist.predicting import PredictionReport


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--support", type=click.Path(path_type=Path), metavar="DIR", help="DIR/CLASS/IMAGE: novel classes."
)
@click.option("--k", type=click.IntRange(min=1), default=5, show_default=True, help="Classes an image.")
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
def predict(run: Path, images: tuple[Path, ...], support: Path | None, k: int, as_json: bool) -> None:
    """Predict the best classes of each IMAGE with their scores, by the best checkpoint of RUN.

    Scores are calibrated probabilities of the run's head (`choose-head`); without one, probabilities (pcn) or shares
    of the nearest training images' votes (other methods). Class folders in DIR become novel classes in addition to
    those of training, without any training; so do those of `add-class`. An unreadable image is listed and left out:
    exit 1.

    \b
    Example:
      fsl-dist predict runs/omniglot-pcn a.png b.png
      fsl-dist predict runs/omniglot-pcn a.png --support my_novel_classes --k 3 --json
    """
    import fsl_dist

    report = fsl_dist.open_run(run).predict(images, support=support, k=k)
    emit(report.to_json(), as_json, _describe(report))
    for failed in report.failed:
        click.echo(f"error: {failed.image} {failed.reason}", err=True)
    if report.failed:
        raise SystemExit(1)


def _describe(report: "PredictionReport") -> str:
    lines = [f"head: {report.head}"] if report.head else []
    for prediction in report.predictions:
        lines.append(prediction.image)
        for scored in prediction.classes:
            novel = "  (novel)" if scored.is_novel else ""
            lines.append(f"  {scored.score:.4f}  {scored.name}{novel}")
    return "\n".join(lines)
