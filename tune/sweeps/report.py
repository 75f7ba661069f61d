"""A sweep's report: best trials compared with the base, the effect of each knob, the evaluation grid,
the time spent."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fsl_dist.config import render_config
from index.base.files import write_atomic
from tune.document import Block, Code, Heading, Picture, Table, Text, render_html, render_markdown
from tune.plan import best_of
from tune.records import Cell, Session, SweepFolder, Trial, read_evaluation, read_split
from tune.space import show_value
from tune.sweep_file import load_stored
from tune.sweep_settings import SweepSettings
from tune.sweeps.certainty import Certainty, judge_certainty
from tune.sweeps.config import SweepConfig
from tune.sweeps.evaluation_tables import flatten, grid_tables, headline, show_score
from tune.sweeps.importance import LEAST_TRIALS, knob_importance
from tune.sweeps.paper_figures import paper_figures
from tune.sweeps.plots import plot_knobs, plot_reports

_SHOWN = 10
"""trials in the list of the best"""


@dataclass(frozen=True, slots=True)
class WrittenReport:
    """The report on a sweep."""

    files: tuple[Path, ...]
    metric: str
    best_trial: int | None
    best_value: float | None
    base_value: float | None
    importance: dict[str, float]
    """share of each knob in the variation of the metric; empty with too few trials"""
    text: str
    """the report as Markdown"""
    num_validation_images: int | None = None
    """number of images on which trials are compared; None if unknown, and for indexes"""
    standard_errors: Mapping[int, float] = field(default_factory=dict)
    """standard error of each trial's value, by the trial's number"""
    within_one_standard_error: tuple[int, ...] = ()
    """other trials within one standard error of the best"""
    warning: str = ""
    """one line where the validation images are too few to choose by"""

    def to_json(self) -> dict:
        """The facts as plain values."""
        return {
            "files": [str(path) for path in self.files],
            "metric": self.metric,
            "best_trial": self.best_trial,
            "best_value": self.best_value,
            "base_value": self.base_value,
            "importance": self.importance,
            "num_validation_images": self.num_validation_images,
            "standard_errors": {f"{number:04d}": error for number, error in self.standard_errors.items()},
            "within_one_standard_error": list(self.within_one_standard_error),
            "warning": self.warning,
        }


def write_report(folder: Path) -> WrittenReport:
    """Write report.md with pictures/, report.html, trials.csv, evaluation.csv and best.yaml into a sweep's folder.

    A running sweep can be reported too. Raises ConfigError for a folder that is not a sweep.
    """
    config = load_stored(folder)
    assert isinstance(config, SweepConfig)  # index sweeps have another report
    files = SweepFolder(folder)
    trials = files.trials()
    best, metric = best_of(trials, config.mode), config.trial_base().stop_metric
    base = next((trial for trial in trials if not trial.point and trial.is_scored), None)
    importance = knob_importance(trials, config.space) if config.space else {}
    certainty = judge_certainty(trials, best, metric)
    scores = {trial.number: list(read_evaluation(trial.folder)) for trial in trials}
    named = ((best, "the best by validation"), (base if base is not best else None, "the base"))
    shown = [(trial, f"trial {trial.number:04d}, {words}") for trial, words in named if trial is not None]
    blocks = [
        *_head(config, trials, metric, certainty),
        *_best_trials(config, trials, scores, best, base, certainty),
        *(knob_blocks(config, trials, importance, metric, certainty) if config.space else []),
        *_learning(trials, files, metric, best, certainty),
        *_evaluation(scores, shown),
        *paper_figures(trials, config.space, scores, metric, shown),
        *_time(trials, files.sessions()),
        *_left_out(trials),
    ]
    text = render_markdown(blocks, "pictures")
    written = [
        _write(folder / "report.md", text),
        _write(folder / "report.html", render_html(blocks, f"Sweep {folder.name}")),
        _write(folder / "trials.csv", render_trials(config, trials, scores, certainty)),
        _write(folder / "evaluation.csv", render_evaluation(scores)),
    ]
    for block in blocks:
        if isinstance(block, Picture):
            written.append(folder / "pictures" / f"{block.name}.png")
            write_atomic(written[-1], block.png)
    if best is not None:
        run = config.trial_config(best.point, str(folder.resolve() / "best"))
        written.append(_write(folder / "best.yaml", render_config(run)))
    return WrittenReport(
        tuple(written),
        metric,
        best.number if best else None,
        _value(best),
        _value(base),
        importance,
        text,
        certainty.images.num_images if certainty.images else None,
        certainty.errors,
        tuple(sorted(certainty.near)),
        certainty.warning,
    )


def render_trials(
    config: SweepConfig, trials: Sequence[Trial], scores: dict[int, list[Cell]], certainty: Certainty
) -> str:
    """CSV, a line a trial: its point, how it ended and how sure that is, its headline scores."""
    k_p = config.trial_base().validation_k_p
    heads = {trial.number: headline(scores[trial.number], k_p) for trial in trials}
    names = list(dict.fromkeys(name for head in heads.values() for name in head))
    lines: list[list[object]] = [
        [
            "trial",
            "state",
            "value",
            "standard_error",
            "within_one_standard_error",
            *("epochs", "train_s", "evaluate_s"),
            *config.keys,
            *names,
            "error",
        ]
    ]
    for trial in trials:
        result, head = trial.result, heads[trial.number]
        sure = [certainty.errors.get(trial.number, ""), str(trial.number in certainty.near).lower()]
        facts: list[object] = ["running", *[""] * 6]
        if result:
            facts = [result.state, result.value, *sure, result.epochs, result.train_s, result.evaluate_s]
        point = [show_value(trial.point[key]) if key in trial.point else "" for key in config.keys]
        means = [_mean(head[name]) if name in head else "" for name in names]
        lines.append([f"{trial.number:04d}", *facts, *point, *means, result.error if result else ""])
    return _csv(lines)


def render_evaluation(scores: dict[int, list[Cell]]) -> str:
    """CSV, a line a score: trial, every setting of the grid, mean, standard deviation and repetitions."""
    measured = [(number, one) for number, cells in scores.items() for one in flatten(cells)]
    settings = list(dict.fromkeys(setting for _, one in measured for setting in one.at))
    lines: list[list[object]] = [["trial", *settings, "score", "mean", "std", "n"]]
    for number, one in measured:
        at = [show_value(one.at[setting]) if setting in one.at else "" for setting in settings]
        spread = [one.value["std"], one.value["n"]] if isinstance(one.value, dict) else ["", 1]
        lines.append([f"{number:04d}", *at, one.score, _mean(one.value), *spread])
    return _csv(lines)


def _head(config: SweepConfig, trials: Sequence[Trial], metric: str, certainty: Certainty) -> list[Block]:
    base = config.base
    counts = [
        f"{sum(_state(trial) == state for trial in trials)} {words}"
        for state, words in (
            ("finished", "finished"),
            ("stopped", "stopped early"),
            ("failed", "failed"),
            ("pruned", "pruned"),
            ("running", "under way or cut off"),
        )
        if state in map(_state, trials)
    ]
    stops = config.scheduler.kind if config.scheduler.kind != "none" else "no trial stopped early"
    return [
        Heading(f"Sweep {Path(config.dir).name}", 1),
        Text(
            f"method.kind={base.method.kind} on {Path(base.data.dataset).name}, search={config.search_name}, "
            f"{stops}; trials are compared by the validation metric {metric}. {', '.join(counts) or 'no trial yet'}."
        ),
        *([Text(certainty.warning, is_warning=True)] if certainty.warning else []),
    ]


def _best_trials(
    config: SweepConfig,
    trials: Sequence[Trial],
    scores: dict[int, list[Cell]],
    best: Trial | None,
    base: Trial | None,
    certainty: Certainty,
) -> list[Block]:
    ranked = sorted((t for t in trials if t.is_scored), key=lambda t: (-(_value(t) or 0.0), t.number))
    shown = ranked[:_SHOWN]
    if base is not None and base not in shown:
        shown.append(base)
    if best is None:
        return [Heading("Best trials"), Text("No trial has a value yet.")]
    k_p = config.trial_base().validation_k_p
    heads = {trial.number: headline(scores[trial.number], k_p) for trial in shown}
    names = list(dict.fromkeys(name for head in heads.values() for name in head))
    rows = [
        [
            "trial",
            "validation %",
            *(["within 1 s.e. of the best"] if certainty.near else []),
            *(f"{name} %" for name in names),
            *config.keys,
            *("epochs", "s", "ended"),
        ]
    ]
    for trial in shown:
        result = trial.result
        assert result is not None
        tested = [show_score(heads[trial.number][n]) if n in heads[trial.number] else "" for n in names]
        point = [show_value(trial.point[key]) if key in trial.point else "·" for key in config.keys]
        seconds = f"{result.train_s + result.evaluate_s:.0f}"
        name = f"{trial.number:04d}" if trial.point else f"{trial.number:04d}, the base"
        rows.append(
            [
                name,
                _with_error(result.value, certainty.errors.get(trial.number)),
                *(
                    ["the best" if trial is best else "yes" if trial.number in certainty.near else "no"]
                    if certainty.near
                    else []
                ),
                *tested,
                *point,
                str(result.epochs),
                seconds,
                result.state,
            ]
        )
    return [
        Heading("Best trials"),
        Text(
            "Selected by validation, on images of neither training nor the other scores, which are of "
            f"{_scored_on(shown)}. A dot: the base's own value. Trials that were stopped early have no other scores."
        ),
        *([Text(sure)] if (sure := certainty.describe(config.trial_base().stop_metric)) else []),
        Table(
            rows, marked=0, near=tuple(n for n, trial in enumerate(shown) if trial.number in certainty.near)
        ),
        Code(
            f"fsl-dist train --config {best.folder.parents[1] / 'best.yaml'}\nfsl-dist evaluate {best.folder}"
        ),
    ]


def knob_blocks(
    config: SweepSettings,
    trials: Sequence[Trial],
    importance: dict[str, float],
    metric: str,
    certainty: Certainty | None = None,
) -> list[Block]:
    """What each knob did: its importance, and a panel of all trials."""
    if not any(trial.is_scored and trial.point for trial in trials):
        return []
    blocks: list[Block] = [Heading("What each knob did")]
    if importance:
        ranked = sorted(importance.items(), key=lambda pair: -pair[1])
        blocks += [
            Text(
                "Importance: how much a forest fitted on the trials loses when a knob's values are shuffled, as a "
                "share of all losses. It is valid for the range that was searched, and depends on these trials only."
            ),
            Table([["knob", "importance %"], *([key, f"{100 * share:.0f}"] for key, share in ranked)]),
        ]
    else:
        blocks.append(Text(f"Importance needs {LEAST_TRIALS} trials with a value."))
    picture = plot_knobs(trials, config.space, metric, certainty)
    return [*blocks, Picture("knobs", picture, f"{metric} of each trial over each knob's value")]


def _learning(
    trials: Sequence[Trial], files: SweepFolder, metric: str, best: Trial | None, certainty: Certainty
) -> list[Block]:
    reports = files.reports()
    if not reports:
        return []
    picture = plot_reports(trials, reports, metric, best.number if best else None, certainty)
    return [
        Heading("How the trials learnt"),
        Picture("learning", picture, f"{metric} of each trial by epoch"),
    ]


def _evaluation(scores: dict[int, list[Cell]], shown: Sequence[tuple[Trial, str]]) -> list[Block]:
    blocks: list[Block] = []
    for trial, words in shown:
        if scores[trial.number]:
            blocks.append(Heading(words.capitalize(), 3))
            blocks += [Table(rows) for rows in grid_tables(scores[trial.number], list(scores.values()))]
    if not blocks:
        return []
    return [
        Heading("Evaluation grid"),
        Text(
            "Each trial's images are embedded once and scored under every combination; evaluation.csv has all trials."
        ),
        *blocks,
    ]


def _time(trials: Sequence[Trial], sessions: Sequence[Session]) -> list[Block]:
    wall_s = sum(session.wall_s for session in sessions)
    available = sum(session.wall_s * session.cores for session in sessions)
    if not available:
        return []
    busy = sum(session.busy_core_s for session in sessions)
    results = [trial.result for trial in trials if trial.result]
    rows = [
        ["what", "seconds"],
        ["wall time, from the command's start", f"{wall_s:.0f}"],
        ["training, all trials", f"{sum(result.train_s for result in results):.0f}"],
        ["evaluation, all trials", f"{sum(result.evaluate_s for result in results):.0f}"],
    ]
    starts = "one start" if len(sessions) == 1 else f"{len(sessions)} starts"
    return [
        Heading("Time"),
        Table(rows),
        Text(
            f"{busy / available:.0%} of {available:.0f} core seconds were spent in training and evaluation ({starts}, "
            f"{sessions[-1].cores:g} cores)."
        ),
    ]


def _left_out(trials: Sequence[Trial]) -> list[Block]:
    rows = [
        [f"{trial.number:04d}", trial.result.state, trial.result.error]
        for trial in trials
        if trial.result and trial.result.state in ("failed", "pruned")
    ]
    if not rows:
        return []
    return [Heading("Failed and pruned"), Table([["trial", "state", "why"], *rows])]


def _scored_on(trials: Sequence[Trial]) -> str:
    split = next(filter(None, (read_split(trial.folder) for trial in trials)), "")
    return f"split {split}, and of novel classes if there are any" if split else "novel classes"


def _state(trial: Trial) -> str:
    return trial.result.state if trial.result else "running"


def _value(trial: Trial | None) -> float | None:
    return trial.result.value if trial and trial.result else None


def _with_error(value: float | None, error: float | None) -> str:
    """A fraction in percent, with its standard error if it has one."""
    shown = f"{100 * (value or 0):.1f}"
    return shown if error is None else f"{shown} ± {100 * error:.1f}"


def _mean(score: float | dict) -> float:
    return score["mean"] if isinstance(score, dict) else score


def _csv(lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _write(path: Path, text: str) -> Path:
    write_atomic(path, text.encode())
    return path
