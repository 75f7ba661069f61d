"""A metric that runs have logged, as curves (deep kNN Fig. 2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fsl_dist.config import load_run
from fsl_dist.errors import RequestError
from fsl_dist.plots.picture_files import check_png, name_runs, write_figure
from fsl_dist.training.runlog import METRICS_FILE, read_metrics

Axis = Literal["epoch", "images"]


@dataclass(frozen=True, slots=True)
class Curve:
    """One run's values of a metric."""

    run: str
    name: str
    """the run's in the picture"""
    x: list[float]
    """epochs finished, or images seen"""
    values: list[float | None]
    """None for a value that was not finite"""


@dataclass(frozen=True, slots=True)
class CurvePicture:
    """Description of a plot of several runs' metrics."""

    metric: str
    x: str
    """epoch, or images"""
    out: str
    curves: list[Curve]


def plot_curves(runs: Sequence[Path], out: Path, *, metric: str, x: Axis = "epoch") -> CurvePicture:
    """Plot `metric` of each of `runs` over epochs or images seen, and write `out`, a PNG.

    Raises ConfigError for a folder without a run, RequestError if a run has logged nothing, or not this metric.
    """
    check_png(out)
    curves = []
    for run, name in zip(runs, name_runs(runs), strict=True):
        load_run(run)
        xs, values = read_curve(read_metrics(run), metric, x, run)
        curves.append(
            Curve(str(run), name, xs, [value if math.isfinite(value) else None for value in values])
        )
    write_figure(draw_curves(curves, metric, x), out)
    return CurvePicture(metric, x, str(out), curves)


def read_curve(lines: Sequence[dict], metric: str, x: Axis, run: Path) -> tuple[list[float], list[float]]:
    """(x, values) of `metric` in a run's lines of metrics.jsonl.

    epoch: the mean over each epoch that has a value, at the number of epochs finished by its end. images: every
    value, at the number of images seen so far. Raises RequestError, which lists the existing metrics, if no line has
    this one.
    """
    if not lines:
        raise RequestError(f"{run} has logged nothing: {METRICS_FILE} is missing or empty (train it first)")
    points: dict[float, list[float]] = {}
    images = 0.0
    for line in lines:
        images = line.get("train/images_seen", images)
        if metric in line:
            finished = (
                line["epoch"] + 1.0 if line["step"] else 0.0
            )  # step 0 is the validation before training
            points.setdefault(finished if x == "epoch" else images, []).append(line[metric])
    if not points:
        logged = sorted({name for line in lines for name in line} - {"step", "epoch"})
        hint = "; training.log_train_knn=true logs it" if metric.startswith("eval/knn/train_acc@") else ""
        raise RequestError(f"metric={metric} is not among what {run} has logged{hint} ({', '.join(logged)})")
    return list(points), [math.fsum(values) / len(values) for values in points.values()]


def draw_curves(curves: Sequence[Curve], metric: str, x: Axis) -> Any:
    """A matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for curve in curves:
        values = [math.nan if value is None else value for value in curve.values]
        axis.plot(curve.x, values, marker="o" if len(values) <= 60 else "", markersize=4, label=curve.name)
    if x == "epoch":
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epochs" if x == "epoch" else "images seen")
    axis.set_ylabel(metric)
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=9)
    return figure
