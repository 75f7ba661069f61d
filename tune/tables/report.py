"""A measured table next to the paper's figures: Markdown, CSV, and a plot."""

import csv
import io
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from index.base.files import write_atomic
from tune.tables.planned import RowResult
from tune.tables.tables import Column, Table


def summarise(scores: list[Any], scale: float = 100.0) -> tuple[float, float, int] | None:
    """(mean, standard deviation, count) times `scale`, over seeds; over draws, if there is one seed with draws.

    The deviation is that of the whole set (ddof 0), NaN for a single value.
    """
    if not scores:
        return None
    if len(scores) == 1 and isinstance(scores[0], dict):
        only = scores[0]
        return scale * only["mean"], scale * only["std"], only["n"]
    values = [scale * (score["mean"] if isinstance(score, dict) else score) for score in scores]
    return statistics.fmean(values), statistics.pstdev(values) if len(values) > 1 else math.nan, len(values)


def scale_of(column: Column) -> float:
    """The factor of a column's scores: 100 converts fractions to percent."""
    return 1.0 if column.is_count else 100.0


def show_score(scores: list[Any], column: Column) -> str:
    """A score as text: "47.5 ± 1.1"; counts with three decimals, as CHAI has them."""
    found = summarise(scores, scale_of(column))
    if found is None:
        return "—"
    mean, deviation, _ = found
    digits = 3 if column.is_count else 1
    return f"{mean:.{digits}f}" if math.isnan(deviation) else f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def render_markdown(
    table: Table,
    results: list[RowResult],
    *,
    family: str,
    seeds: int,
    pictures: Sequence[tuple[Path, str]] = (),
) -> str:
    """The table with the paper's figures in brackets, its footnotes, and the command of every row and picture.

    pictures: files with the commands that drew them.
    """
    lines = [
        f"### {table.title}",
        "",
        f"Here: {family}, {seeds} seed{'s' * (seeds > 1)}",
    ]
    if table.paper_data:
        lines[-1] += f"; in brackets the paper's, on {table.paper_data}"
    lines[-1] += f". Percent, mean ± standard deviation over {'seeds' if seeds > 1 else 'draws'}."
    lines += ["", "| | " + " | ".join(column.title for column in table.columns) + " |"]
    lines.append("| --- |" + " --- |" * len(table.columns))
    for result in results:
        papers = result.row.paper or ("",) * len(table.columns)
        cells = [
            f"{show_score(scores, column)} ({paper})" if paper else show_score(scores, column)
            for column, scores, paper in zip(table.columns, result.scores, papers, strict=True)
        ]
        lines.append(f"| {result.row.name} | " + " | ".join(cells) + " |")
    lines += ["", *(f"- {note}" for note in table.notes)]
    lines += [f"- {result.row.name}: not measured; {result.problem}" for result in results if result.problem]
    lines += ["", "```", *commands_of(results), *(command for _, command in pictures), "```", ""]
    return "\n".join(lines)


def commands_of(results: list[RowResult]) -> list[str]:
    """Every command behind the first seed of each row, once."""
    commands: dict[str, None] = {}
    for result in results:
        commands.update(dict.fromkeys(result.commands))
        for run in result.runs[:1]:
            for planned in (run.after, run):
                if planned is not None:
                    commands[planned.command()] = None
            for cell in result.cells:
                if cell is not None:
                    commands[cell.command(run.folder)] = None
    return list(commands)


def render_csv(table: Table, results: list[RowResult]) -> str:
    """One line per score: row, column, metric, mean, std and count of the measurement (percent, or a number),
    and the paper's figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "mean", "std", "count", "paper"])
    for result in results:
        papers = result.row.paper or ("",) * len(table.columns)
        for column, cell, scores, paper in zip(
            table.columns, result.cells, result.scores, papers, strict=True
        ):
            mean, deviation, count = summarise(scores, scale_of(column)) or ("", "", 0)
            metric = cell.metric if cell else ""
            writer.writerow([result.row.name, column.title, metric, mean, deviation, count, paper])
    return buffer.getvalue()


def draw(table: Table, results: list[RowResult], path: Path) -> None:
    """Write a plot: a curve for each of `Row.curve` over `Row.x`, or bars, next to the paper's figures."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(table.columns), figsize=(4.2 * len(table.columns), 3.6), squeeze=False, layout="constrained"
    )
    for number, column in enumerate(table.columns):
        axis = axes[0][number]
        (_draw_curves if table.x_title else _draw_bars)(axis, results, number, scale_of(column))
        axis.set_title(column.title, fontsize=10)
        axis.set_ylabel("number" if column.is_count else "%")
        if table.x_title:
            axis.set_xlabel(table.x_title)
    axes[0][-1].legend(fontsize=8)
    figure.suptitle(table.title, fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    write_atomic(path, buffer.getvalue())


def _draw_curves(axis: Any, results: list[RowResult], number: int, scale: float) -> None:
    for curve in dict.fromkeys(result.row.curve for result in results):
        points = [
            (result.row.x, *summary[:2])
            for result in results
            if result.row.curve == curve
            and result.row.x is not None
            and (summary := summarise(result.scores[number], scale))
        ]
        if points:
            x, mean, deviation = zip(*points, strict=True)
            spread = [0.0 if math.isnan(value) else value for value in deviation]
            axis.errorbar(x, mean, spread, marker="o", capsize=3, label=curve)


def _draw_bars(axis: Any, results: list[RowResult], number: int, scale: float) -> None:
    for offset, label, colour in ((-0.2, "here", "#0072b2"), (0.2, "paper", "#e69f00")):
        for place, result in enumerate(results):
            paper = result.row.paper[number] if result.row.paper else ""
            summary = summarise(result.scores[number], scale) if label == "here" else _read_paper(paper)
            if summary is not None:
                error = None if math.isnan(summary[1]) else summary[1]
                axis.bar(place + offset, summary[0], 0.4, yerr=error, color=colour, capsize=3)
        axis.bar(0, 0, color=colour, label=label)
    axis.set_xticks(
        range(len(results)), [result.row.name for result in results], rotation=40, ha="right", fontsize=8
    )


def _read_paper(text: str) -> tuple[float, float, int] | None:
    """Mean and deviation of "47.79 ± 0.71"; footnote marks are ignored."""
    mean, _, deviation = text.strip("¹²³* ").partition("±")
    return (float(mean), float(deviation) if deviation else math.nan, 1) if mean.strip() else None
