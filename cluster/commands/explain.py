"""The command `fsl-dist explain`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import emit

if TYPE_CHECKING:
    from fsl_dist.plots.explaining import ExplainReport


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for index.html and a PNG an image.",
)
@click.option(
    "--k", type=click.IntRange(min=1), default=5, show_default=True, help="Training images per image."
)
@click.option("--maps/--no-maps", default=True, show_default=True, help="Activation maps over each pair.")
@click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")
def explain(run: Path, images: tuple[Path, ...], out: Path, k: int, maps: bool, as_json: bool) -> None:
    """Explain predictions: the training images nearest to each IMAGE, their vote, and activation maps of each distance.

    DIR/index.html is self-contained. An activation map colours the regions of an image that cause its distance to the
    other image of the pair; it needs a network whose embedding is the mean of feature maps. An unreadable image is
    listed and left out: exit 1.

    \b
    Example:
      fsl-dist explain runs/skin a.jpg b.jpg --out why
      fsl-dist explain runs/omniglot-pcn a.png --out why --k 10 --no-maps
    """
    import fsl_dist

    report = fsl_dist.open_run(run).explain(images, out=out, k=k, maps=maps)
    emit(report.to_json(), as_json, _describe(report))
    for failed in report.failed:
        click.echo(f"error: {failed.image} {failed.reason}", err=True)
    if report.failed:
        raise SystemExit(1)


def _describe(report: "ExplainReport") -> str:
    lines = [report.page] if report.page else []
    for explanation in report.explanations:
        k = len(explanation.neighbours)
        said = ", ".join(f"{vote.name} {vote.count} of {k}" for vote in explanation.votes)
        lines.append(f"{explanation.image}: {said}")
        if explanation.answer is not None:
            disputed = "; the vote disagrees" if explanation.is_disputed else ""
            lines.append(f"  answer: {explanation.answer.name} {explanation.answer.score:.4f}{disputed}")
        for neighbour in explanation.neighbours:
            group = f"  ({neighbour.group})" if neighbour.group else ""
            measure = "" if neighbour.measure == "distance" else f"{neighbour.measure} "
            lines.append(f"  {measure}{neighbour.distance:.4f}  {neighbour.label}{group}  {neighbour.key}")
    return "\n".join(lines)
