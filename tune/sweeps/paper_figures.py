"""The papers' figures that a sweep happens to cover: PCN Figs. 3 to 5, deep kNN Table S3, deep clustering Fig. 3."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tune.document import Block, Heading, Picture, Table, Text
from tune.records import Cell, Trial
from tune.space import Knob, Value, show_value
from tune.sweeps.evaluation_tables import Measured, flatten, show_score
from tune.sweeps.plots import Curve, plot_curves

_LEAST = 3
"""with fewer values of a setting than this, there is no curve"""
_CLUSTERING = ("spectral/ari", "spectral/ami", "kmeans/ari", "kmeans/ca")
_FEW_SHOT = ("mca/base_novel", "mca/base", "mca/novel")


@dataclass(frozen=True, slots=True)
class _OverGrid:
    """A figure over an evaluation setting: a curve a trial."""

    name: str
    title: str
    setting: str
    words: str


_OVER_GRID = (
    _OverGrid("delta-tau", "Temperature at test time, as PCN Fig. 5", "delta_tau", "Δτ"),
    _OverGrid("shots", "Support images of a novel class, as PCN Fig. 3", "novel_shots", "novel_shots"),
    _OverGrid("novel-classes", "Novel classes, as PCN Fig. 4", "novel_classes", "novel_classes"),
)


@dataclass(slots=True)
class _Cell:
    """The results of the trials with one K and one M."""

    validated: list[float] = field(default_factory=list)
    tested: list[float] = field(default_factory=list)


def paper_figures(
    trials: Sequence[Trial],
    space: Mapping[str, Knob],
    scores: Mapping[int, Sequence[Cell]],
    metric: str,
    shown: Sequence[tuple[Trial, str]],
) -> list[Block]:
    """Headings, plots and tables of the figures for which the trials have data; empty if there are none.

    scores: of each trial, by its number. shown: the trials whose evaluation grid is plotted, with their names.
    """
    blocks: list[Block] = []
    for figure in _OVER_GRID:
        panels = {
            score: [
                curve
                for trial, words in shown
                if (curve := _over_grid(scores[trial.number], score, figure.setting, words))
            ]
            for score in _FEW_SHOT
        }
        if any(panels.values()):
            picture = plot_curves({name: curves for name, curves in panels.items() if curves}, figure.words)
            blocks += [Heading(figure.title, 3), Picture(figure.name, picture, figure.title)]
            held = _held_still([scores[trial.number] for trial, _ in shown], figure.setting)
            if held:
                blocks.append(Text(f"With {', '.join(f'{k}={show_value(v)}' for k, v in held.items())}."))
    blocks += _over_weight(trials, scores)
    blocks += _neighbours(trials, space, scores, metric)
    return [Heading("The papers' figures"), *blocks] if blocks else []


def _held_still(trials: Sequence[Sequence[Cell]], setting: str) -> dict[str, Value]:
    """The fixed values of the other settings of the grid while one is varied: each trial's first value, Δτ at 0."""
    held: dict[str, Value] = {}
    for one in (one for cells in trials for one in flatten(cells) if one.score in _FEW_SHOT):
        for name, value in one.at.items():
            if name != setting:
                held.setdefault(name, 0.0 if name == "delta_tau" else value)
    return held


def _over_grid(cells: Sequence[Cell], score: str, setting: str, words: str) -> Curve | None:
    """One trial's score over a setting of the grid, with the others fixed."""
    held = _held_still([cells], setting)
    points = sorted(
        (_number(one.at[setting]), *_mean_and_spread(one))
        for one in flatten(cells)
        if one.score == score
        and setting in one.at
        and all(one.at.get(name, value) == value for name, value in held.items())
    )
    return Curve(words, points) if len(points) >= _LEAST else None


def _over_weight(trials: Sequence[Trial], scores: Mapping[int, Sequence[Cell]]) -> list[Block]:
    """Deep clustering Fig. 3: test scores over the weight of the scatter loss,
    a curve for each of the other knobs' values."""
    key = "method.scatter_weight"
    curves: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    for trial in trials:
        if key not in trial.point:
            continue
        others = ", ".join(
            f"{name.partition('.')[2]} {show_value(value)}"
            for name, value in trial.point.items()
            if name != key
        )
        for one in flatten(scores[trial.number]):
            if one.score in _CLUSTERING:
                point = (_number(trial.point[key]), *_mean_and_spread(one))
                curves.setdefault(one.score, {}).setdefault(others, []).append(point)
    panels = {
        score: [
            Curve(others, sorted(points))
            for others, points in found.items()
            if _num_different(points) >= _LEAST
        ]
        for score, found in curves.items()
    }
    panels = {score: found for score, found in panels.items() if found}
    if not panels:
        return []
    title = "The share of the scatter loss, as deep clustering Fig. 3"
    return [Heading(title, 3), Picture("scatter-weight", plot_curves(panels, key), title)]


def _neighbours(
    trials: Sequence[Trial], space: Mapping[str, Knob], scores: Mapping[int, Sequence[Cell]], metric: str
) -> list[Block]:
    """Deep kNN Table S3: the results with K neighbours of the same class and M of others, the best trial of each."""
    same, other = "method.k_same", "method.m_other"
    cells: dict[tuple[Value, Value], _Cell] = {}
    for trial in trials:
        if not (trial.is_scored and trial.result and {same, other} <= trial.point.keys()):
            continue
        cell = cells.setdefault((trial.point[same], trial.point[other]), _Cell())
        cell.validated.append(trial.result.value or 0.0)
        named = {name: value for part in scores[trial.number] for name, value in part.metrics.items()}
        if metric in named:
            value = named[metric]
            cell.tested.append(value["mean"] if isinstance(value, dict) else value)
    rows = sorted({k for k, _ in cells}, key=_number)
    columns = sorted({m for _, m in cells}, key=_number)
    if len(rows) < 2 or len(columns) < 2:
        return []
    blocks: list[Block] = [
        Heading("Neighbours of the same class (K) and of others (M), as deep kNN Table S3", 3),
        Text(
            f"{metric}, %: the best trial of each cell, with their number in brackets; they differ in the other "
            "settings of the "
            f"space{'' if len(space) == 2 else ' (' + ', '.join(key for key in space if key not in (same, other)) + ')'}."
        ),
    ]
    for words, kind in (("validation", "validated"), ("scored images", "tested")):
        table = [[f"{words}: K \\ M", *map(show_value, columns)]]
        for k in rows:
            found = [getattr(cells[k, m], kind) if (k, m) in cells else [] for m in columns]
            table.append(
                [
                    show_value(k),
                    *(f"{show_score(max(values))} ({len(values)})" if values else "" for values in found),
                ]
            )
        if any(cell for line in table[1:] for cell in line[1:]):
            blocks.append(Table(table))
    return blocks


def _mean_and_spread(one: Measured) -> tuple[float, float]:
    """Percent."""
    if isinstance(one.value, dict):
        return 100 * one.value["mean"], 100 * one.value["std"]
    return 100 * one.value, 0.0


def _number(value: Value) -> float:
    assert isinstance(value, int | float)
    return float(value)


def _num_different(points: Sequence[tuple[float, float, float]]) -> int:
    return len({x for x, _, _ in points})
