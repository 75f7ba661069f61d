"""A trial's scores over the evaluation grid as tables: a row a combination, a column a score."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tune.records import Cell
from tune.space import Value, show_value

Score = float | dict
"""a fraction, or {"mean", "std", "n"}"""

# The settings in a score's name: knn/mcr@5, mca/base;dtau=3, mca/base;k_p=3, auc@10. recall@5/base contains none.
_NAMED = (
    (re.compile(r"^(knn/\w+)@(\d+)$"), "k_p"),
    (re.compile(r"^(auc|rel)@(\d+)$"), "k"),
    (re.compile(r"^(.+);k_p=(\d+)$"), "k_p"),
    (re.compile(r"^(.+);dtau=(.+)$"), "delta_tau"),
)
_HEADLINES = (
    "mca/base_novel",
    "mca/base",
    "mca/novel",
    "knn/acc",
    "knn/mcr",
    "kmeans/ca",
    "spectral/ca",
    "auc",
    "softmax/mcr",
)


@dataclass(frozen=True, slots=True)
class Measured:
    """One score under one combination of the grid."""

    score: str
    """its name without the grid's values"""
    at: dict[str, Value]
    """setting → value"""
    value: Score


def flatten(cells: Sequence[Cell]) -> list[Measured]:
    """Every score of a trial with all of its settings; Δτ 0, which no name contains, is added if others have one."""
    found = []
    for cell in cells:
        shifted = {name.partition(";dtau=")[0] for name in cell.metrics if ";dtau=" in name}
        for name, value in cell.metrics.items():
            score, at = name, dict(cell.settings)
            for pattern, setting in _NAMED:
                if match := pattern.match(score):
                    score = match.group(1)
                    at[setting] = float(match.group(2)) if setting == "delta_tau" else int(match.group(2))
            if "delta_tau" not in at and name in shifted:
                at["delta_tau"] = 0.0
            found.append(Measured(score, at, value))
    return found


def headline(cells: Sequence[Cell], k_p: int) -> dict[str, Score]:
    """The few scores in a list of trials: those of the first combination, with Δτ 0 and this K_p if they exist."""
    if not cells:
        return {}
    names = {
        score: next((n for n in (score, f"{score}@{k_p}", f"{score}@10") if n in cells[0].metrics), "")
        for score in _HEADLINES
    }
    shown = {name: cells[0].metrics[name] for name in names.values() if name}
    return dict(list((shown or cells[0].metrics).items())[:4])


def grid_tables(cells: Sequence[Cell], others: Sequence[Sequence[Cell]] = ()) -> list[list[list[str]]]:
    """Tables of text, header first, one for the main scores that depend on the same settings;
    percent, ± over repetitions.

    others: scores of other trials; a setting that changes a score of any of them is shown.
    """
    measured = flatten(cells)
    everywhere = [measured, *map(flatten, others)]
    scores = list(dict.fromkeys(one.score for one in measured))
    by_settings: dict[tuple[str, ...], list[str]] = {}
    for score in [score for score in scores if score in _HEADLINES] or scores[:4]:
        own = [[one for one in trial if one.score == score] for trial in everywhere]
        by_settings.setdefault(_settings_that_matter(own), []).append(score)
    tables = []
    for settings, shown in by_settings.items():
        rows: dict[tuple, dict[str, str]] = {}
        for one in measured:
            if one.score in shown:
                at = tuple(one.at.get(setting, "") for setting in settings)
                rows.setdefault(at, {})[one.score] = show_score(one.value)
        head = [*settings, *(f"{score} %" for score in shown)]
        if settings:
            ordered = sorted(rows.items(), key=lambda row: [(isinstance(v, str), v) for v in row[0]])
        else:
            ordered = list(rows.items())
        body = [[*map(show_value, at), *(found.get(score, "") for score in shown)] for at, found in ordered]
        tables.append([head, *body])
    return tables


def show_score(value: Score) -> str:
    """A fraction in percent, with its deviation if it was repeated."""
    if isinstance(value, dict):
        return f"{100 * value['mean']:.1f} ± {100 * value['std']:.1f}"
    return f"{100 * value:.1f}"


def _settings_that_matter(trials: Sequence[Sequence[Measured]]) -> tuple[str, ...]:
    """Settings between whose values one score differs, in any trial."""
    settings = dict.fromkeys(name for trial in trials for one in trial for name in one.at)
    return tuple(setting for setting in settings if any(_differs(trial, setting) for trial in trials))


def _differs(own: Sequence[Measured], setting: str) -> bool:
    seen: dict[tuple, Score] = {}
    for one in own:
        rest = tuple(sorted((key, str(value)) for key, value in one.at.items() if key != setting))
        if seen.setdefault(rest, one.value) != one.value:
            return True
    return False
