"""Pictures of a sweep, as PNG: a scatter a knob, how the trials learnt, and scores over a setting."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tune.records import Report, Trial
from tune.space import Knob, show_value
from tune.sweeps.certainty import Certainty

_ENDED, _STOPPED, _BASE, _NEAR = "#0072b2", "#999999", "#d55e00", "#009e73"


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot."""

    words: str
    points: Sequence[tuple[float, float, float]]
    """(x, mean, standard deviation), ascending"""


def plot_knobs(
    trials: Sequence[Trial], space: Mapping[str, Knob], metric: str, certainty: Certainty | None = None
) -> bytes:
    """A panel per knob: the value of each trial over the knob's, hollow if it was stopped early, the base as a line.

    A band extends from the best value down by its standard error; trials in it have a ring.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, NullFormatter

    columns = min(3, len(space))
    rows = -(-len(space) // columns)
    figure, axes = new_figure(pyplot, rows, columns)
    base = next((t.result.value for t in trials if not t.point and t.is_scored and t.result), None)
    for axis, (key, knob) in zip(axes.flat, space.items(), strict=False):
        for state, colour, face in (("stopped", _STOPPED, "none"), ("finished", _ENDED, _ENDED)):
            shown = [t for t in trials if t.point and t.is_scored and t.result and t.result.state == state]
            if not shown:
                continue
            axis.scatter(
                [_x_of(knob, t.point[key]) for t in shown],
                [t.result.value for t in shown if t.result],
                s=26,
                edgecolors=colour,
                facecolors=face,
                label="stopped early" if state == "stopped" else "to its end",
            )
        ringed = [t for t in trials if certainty and t.point and t.number in certainty.near and t.result]
        if ringed:
            axis.scatter(
                [_x_of(knob, t.point[key]) for t in ringed],
                [t.result.value for t in ringed if t.result],
                s=70,
                edgecolors=_NEAR,
                facecolors="none",
                linewidths=1.4,
                label="within one standard error",
            )
        _draw_band(axis, certainty)
        if base is not None:
            axis.axhline(base, color=_BASE, linewidth=1, linestyle="--", label="the base")
        if knob.options:
            axis.set_xticks(range(len(knob.options)), [show_value(option) for option in knob.options])
            axis.set_xlim(-0.5, len(knob.options) - 0.5)
        elif knob.loguniform:
            axis.set_xscale("log")
            axis.set_xlim(knob.loguniform[0] / 1.2, knob.loguniform[1] * 1.2)
            axis.xaxis.set_minor_formatter(NullFormatter())
        elif knob.randint:
            axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axis.set_xlabel(key)
        axis.set_ylabel(metric)
    for axis in list(axes.flat)[len(space) :]:
        axis.set_visible(False)
    axes.flat[0].legend(fontsize=7)
    return save_figure(pyplot, figure)


def plot_reports(
    trials: Sequence[Trial],
    reports: Sequence[Report],
    metric: str,
    best: int | None,
    certainty: Certainty | None = None,
) -> bytes:
    """The metric of every trial over epochs, a line a trial:
    the best, those within its standard error and the base coloured."""
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(pyplot, 1, 1, width=7.2)
    axis = axes.flat[0]
    is_near_named = False
    for trial in trials:
        points = sorted((report.epoch, report.value) for report in reports if report.trial == trial.number)
        if not points:
            continue
        epochs, values = zip(*points, strict=True)
        label, colour, width = None, _STOPPED, 0.8
        if trial.number == best:
            label, colour, width = f"trial {trial.number:04d}, the best", _ENDED, 2.0
        elif not trial.point:
            label, colour, width = "the base", _BASE, 1.6
        elif certainty and trial.number in certainty.near:
            colour, width = _NEAR, 1.2
            label = None if is_near_named else "within one standard error"
            is_near_named = True
        axis.plot(epochs, values, color=colour, linewidth=width, label=label, marker=".", markersize=3)
    _draw_band(axis, certainty)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epochs")
    axis.set_ylabel(metric)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
    return save_figure(pyplot, figure)


def plot_curves(panels: Mapping[str, Sequence[Curve]], x_words: str) -> bytes:
    """A panel a score, its curves over x with their deviations; scores in percent."""
    from matplotlib import pyplot

    figure, axes = new_figure(pyplot, 1, len(panels), share_y=False)
    for axis, (score, curves) in zip(axes.flat, panels.items(), strict=True):
        for curve in curves:
            x, mean, deviation = zip(*curve.points, strict=True)
            axis.errorbar(x, mean, deviation, marker="o", markersize=4, capsize=3, label=curve.words)
        axis.set_xlabel(x_words)
        axis.set_ylabel(f"{score} %")
    if any(curve.words for curves in panels.values() for curve in curves):
        axes.flat[0].legend(fontsize=7)
    return save_figure(pyplot, figure)


def _draw_band(axis: Any, certainty: Certainty | None) -> None:
    """From the best value down by its standard error."""
    if certainty is not None and certainty.best_value is not None and certainty.best_error is not None:
        low = certainty.best_value - certainty.best_error
        axis.axhspan(low, certainty.best_value, color=_NEAR, alpha=0.12, linewidth=0)


def _x_of(knob: Knob, value: Any) -> float:
    return float(knob.options.index(value)) if knob.options else float(value)


def new_figure(
    pyplot: Any, rows: int, columns: int, width: float = 3.6, height: float = 3.0, *, share_y: bool = True
) -> tuple[Any, Any]:
    """A figure of panels of this size in inches."""
    import matplotlib

    matplotlib.use("Agg")
    return pyplot.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        sharey=share_y,
    )


def save_figure(pyplot: Any, figure: Any) -> bytes:
    """The figure as PNG; it is closed."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()
