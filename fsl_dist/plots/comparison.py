"""Compare two runs class by class, each by its own protocol (PCN Fig. 9)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fsl_dist.errors import RequestError
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.plots.class_accuracy import measure_class_accuracies
from fsl_dist.plots.picture_files import BLUE, ORANGE, check_png, name_runs, write_figure
from fsl_dist.plots.run_draws import open_embedded

# Points² of the largest class's dot, and of the least that is still seen.
_LARGEST, _LEAST = 400.0, 30.0
# Classes that are named: those whose accuracies differ the most.
_NAMED = 6


@dataclass(frozen=True, slots=True)
class ComparedClass:
    """A dot."""

    name: str
    is_novel: bool
    train_images: int
    """0 for a novel class"""
    accuracy_a: float
    """fraction, mean over draws"""
    accuracy_b: float


@dataclass(frozen=True, slots=True)
class ComparisonPicture:
    """Description of a plot of several runs' scores."""

    run_a: str
    run_b: str
    protocol_a: str
    """`prototypes`, `fine_tune`, or `knn@K_p`"""
    protocol_b: str
    dataset: str
    out: str
    classes: list[ComparedClass]
    """those that both runs are scored on, in the order of their labels"""
    left_out: list[str]
    """classes that one run alone is scored on"""


def plot_comparison(
    run_a: Path,
    run_b: Path,
    out: Path,
    *,
    settings: Sequence[EvaluationConfig | None] = (None, None),
    protocols: Sequence[str] = ("", ""),
) -> ComparisonPicture:
    """Score two runs of the same data set on each class, and write `out`, a PNG. Deterministic.

    settings: override each run's `evaluation.*`. protocols: as in `measure_class_accuracies`. Raises RequestError if
    the runs are of different data sets, or have no tested class in common.
    """
    check_png(out)
    if len(protocols) != 2:
        raise RequestError(f"{len(protocols)} protocols for 2 runs; give one per run, or none")
    with open_embedded(run_a, settings[0]) as a, open_embedded(run_b, settings[1]) as b:
        if a.catalogue.fingerprint != b.catalogue.fingerprint:
            raise RequestError(
                f"{run_a} and {run_b} are of different data sets or versions of one ({a.catalogue.folder} version "
                f"{a.catalogue.version}, {b.catalogue.folder} version {b.catalogue.version}); compare runs whose "
                "data.dataset and data.version are the same"
            )
        of_a, of_b = measure_class_accuracies(a, protocols[0]), measure_class_accuracies(b, protocols[1])
        catalogue = a.catalogue
    train = np.bincount(catalogue.labels[catalogue.split_ids("train")], minlength=catalogue.num_classes)
    novel = set(catalogue.labels[catalogue.split_ids("novel")].tolist())
    both, at_a, at_b = np.intersect1d(of_a.labels, of_b.labels, return_indices=True)
    if not len(both):
        raise RequestError(f"{run_a} and {run_b} are scored on no class in common")
    classes = [
        ComparedClass(
            name=catalogue.label_name(label),
            is_novel=label in novel,
            train_images=int(train[label]),
            accuracy_a=accuracy_a,
            accuracy_b=accuracy_b,
        )
        for label, accuracy_a, accuracy_b in zip(
            both.tolist(), of_a.accuracies[at_a].tolist(), of_b.accuracies[at_b].tolist(), strict=True
        )
    ]
    left_out = [catalogue.label_name(label) for label in np.setxor1d(of_a.labels, of_b.labels).tolist()]
    name_a, name_b = name_runs([run_a, run_b])
    titles = f"{name_a}, by {of_a.protocol}", f"{name_b}, by {of_b.protocol}"
    write_figure(draw_comparison(classes, *titles), out)
    return ComparisonPicture(
        run_a=str(run_a),
        run_b=str(run_b),
        protocol_a=of_a.protocol,
        protocol_b=of_b.protocol,
        dataset=a.config.data.dataset,
        out=str(out),
        classes=classes,
        left_out=left_out,
    )


def draw_comparison(classes: Sequence[ComparedClass], title_a: str, title_b: str) -> Any:
    """A matplotlib figure: A's accuracy to the right, B's upwards, in percent;
    the classes that differ most are named."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 7.5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 100], [0, 100], color="#999999", linewidth=1, zorder=1)
    largest = max(max(of_class.train_images for of_class in classes), 1)

    def area(of_class: ComparedClass) -> float:
        return max(_LEAST, _LARGEST * of_class.train_images / largest)

    for is_novel, colour, kind in ((False, BLUE, "base"), (True, ORANGE, "novel")):
        chosen = [of_class for of_class in classes if of_class.is_novel == is_novel]
        if chosen:
            axis.scatter(
                [100 * of_class.accuracy_a for of_class in chosen],
                [100 * of_class.accuracy_b for of_class in chosen],
                [area(of_class) for of_class in chosen],
                color=colour,
                alpha=0.6,
                linewidths=0,
                zorder=2,
            )
            axis.scatter([], [], 60, color=colour, alpha=0.6, linewidths=0, label=f"{kind} ({len(chosen)})")
    by_difference = sorted(classes, key=lambda of_class: -abs(of_class.accuracy_a - of_class.accuracy_b))
    for of_class in by_difference[:_NAMED]:
        place = (100 * of_class.accuracy_a, 100 * of_class.accuracy_b)
        name = of_class.name if len(of_class.name) <= 30 else of_class.name[:29] + "…"
        is_left = place[0] > (30 if place[1] > place[0] else 60)
        offset = 3 + math.sqrt(area(of_class) / math.pi)
        axis.annotate(
            name,
            place,
            (-offset if is_left else offset, 0),
            textcoords="offset points",
            fontsize=8,
            ha="right" if is_left else "left",
            va="center",
        )
    axis.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
    axis.set_xlabel(f"A: {title_a}, accuracy %")
    axis.set_ylabel(f"B: {title_b}, accuracy %")
    axis.set_title(f"accuracy of each class; area: training images, up to {largest}", fontsize=11)
    axis.legend(loc="lower right", fontsize=9)
    return figure
