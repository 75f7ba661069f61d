"""A table's figures that are drawn from its runs rather than from its scores."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fsl_dist.config import load_evaluation
from tune.tables.planned import RowResult
from tune.tables.processes import run_alone
from tune.tables.tables import Picture, Table


def draw_pictures(
    table: Table, results: list[RowResult], stem: Path, show: Callable[[str], None] = lambda line: None
) -> list[tuple[Path, str]]:
    """Draw the table's pictures as STEM-NAME.png; return each file with its command.

    Pictures of rows without measurements are left out. Raises FslDistError if a picture cannot be drawn.
    """
    first_run = {
        result.row.name: result.runs[0].folder for result in results if result.runs and not result.problem
    }
    drawn = []
    for picture in table.pictures:
        if not all(name in first_run for name in picture.rows):
            continue
        out = stem.with_name(f"{stem.name}-{picture.name}.png")
        show(f"drawing {out}")
        runs = [first_run[name] for name in picture.rows]
        run_alone(draw_picture, picture, runs, out, log=stem.parent / "commands.log")
        drawn.append((out, command_of(picture, runs, out)))
    return drawn


def command_of(picture: Picture, runs: Sequence[Path], out: Path) -> str:
    """The command that draws it."""
    options = [
        *(["--metric", picture.metric] if picture.metric else []),
        *(["--split", picture.split] if picture.split else []),
        *(["--protocols", ",".join(picture.protocols)] if picture.protocols else []),
        *picture.evaluate,
    ]
    return f"fsl-dist plot {' '.join([picture.plot, *map(str, runs), *options, '--out', str(out)])}"


def draw_picture(picture: Picture, runs: Sequence[Path], out: Path) -> None:
    """Draw one picture of trained runs to `out`, a PNG."""
    from fsl_dist.plots.comparison import plot_comparison
    from fsl_dist.plots.curves import plot_curves
    from fsl_dist.plots.query_picture import plot_queries
    from fsl_dist.plots.retrieval_picture import plot_maps, plot_retrieval
    from fsl_dist.plots.tsne import plot_runs

    print(command_of(picture, runs, out), file=sys.stderr, flush=True)
    match picture.plot:
        case "curves":
            plot_curves(runs, out, metric=picture.metric)
        case "tsne":
            plot_runs(runs, out, split=picture.split or None)
        case "retrieval":
            plot_retrieval(runs, out)
        case "maps":
            plot_maps(runs[0], out)
        case "queries":
            settings = [load_evaluation(run, picture.evaluate) for run in runs]
            plot_queries(runs, out, protocols=picture.protocols, settings=settings)
        case "comparison":
            settings = [load_evaluation(run, picture.evaluate) for run in runs]
            plot_comparison(runs[0], runs[1], out, settings=settings, protocols=picture.protocols or ("", ""))
