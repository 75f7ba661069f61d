"""The commands `fsl-dist choose-head`, `add-class` and `remove-class`,
which change the predictions of a trained run."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster.commands.output import align_columns, emit

if TYPE_CHECKING:
    from fsl_dist.heads import Choice

RUN = click.argument("run", type=click.Path(path_type=Path))
JSON = click.option("--json", "as_json", is_flag=True, help="Print exactly one JSON object on stdout.")


@click.command()
@RUN
@click.option(
    "--metric",
    type=click.Choice(["mcr", "acc"]),
    default="mcr",
    show_default=True,
    help="Criterion for the best head: mean class recall or accuracy.",
)
@JSON
def choose_head(run: Path, metric: str, as_json: bool) -> None:
    """Score every classifier head on the validation images of RUN and write the best one to RUN/head.json.

    A head maps embeddings to classes: the network's softmax, a vote of the nearest training images, class means,
    logistic regression, or LMNN. `predict` and `explain` use this head; `evaluate --protocol head` scores it on the
    test images.

    \b
    Example:
      fsl-dist choose-head runs/skin
      fsl-dist choose-head runs/skin --metric acc --json
    """
    import fsl_dist

    opened = fsl_dist.open_run(run)
    choice = opened.choose_head("acc" if metric == "acc" else "mcr")
    emit(choice.to_json(), as_json, _describe(run, choice))


def _describe(run: Path, choice: "Choice") -> str:
    rows = [["head", "acc %", "mcr %", "95 % of mcr", "ece %", "s", ""]]
    for place, one in enumerate(choice.candidates):
        score = one.score
        low, high = score.mcr_interval
        note = "best" if place == choice.best else "equal" if place in choice.equal else ""
        rows.append(
            [
                one.config.name,
                f"{score.acc * 100:.1f}",
                f"{score.mcr * 100:.1f}",
                f"{low * 100:.1f} to {high * 100:.1f}",
                f"{score.ece * 100:.1f}",
                f"{one.seconds:.1f}",
                note,
            ]
        )
    return (
        f"{align_columns(rows)}\n{choice.candidates[0].score.n} validation images; equal: within noise of the best\n"
        f"{run / 'head.json'}: {choice.config.name}\nnext: fsl-dist evaluate {run} --protocol head"
    )


@click.command()
@RUN
@click.argument("name")
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="IMAGE...")
@JSON
def add_class(run: Path, name: str, images: tuple[Path, ...], as_json: bool) -> None:
    """Add the class NAME to RUN by a few images, without training.

    Its embeddings are stored in RUN, and `predict` and `explain` include the class from then on. An unreadable image
    is an error, and nothing is added.

    \b
    Example:
      fsl-dist add-class runs/skin "blue nevus" a.jpg b.jpg c.jpg
    """
    import fsl_dist

    opened = fsl_dist.open_run(run)
    added = opened.add_class(name, images)
    result = {"run": str(run), "name": added.name, "images": list(added.images), "classes": opened.classes}
    emit(result, as_json, f"{run}: added class {added.name} of {len(added.images)} images")


@click.command()
@RUN
@click.argument("name")
@JSON
def remove_class(run: Path, name: str, as_json: bool) -> None:
    """Remove the class NAME that `add-class` added to RUN.

    \b
    Example:
      fsl-dist remove-class runs/skin "blue nevus"
    """
    import fsl_dist

    classes = fsl_dist.open_run(run).remove_class(name)
    emit({"run": str(run), "name": name, "classes": classes}, as_json, f"{run}: removed class {name}")
