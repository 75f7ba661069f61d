"""Plots of a data set: its class sizes, and sample images."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.store import ShardStore
from fsl_dist.plots.picture_files import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    paste_tile,
    write_figure,
    write_picture,
)

DISTRIBUTION_FILE = "class_distribution.png"
SHEET_FILE = "samples.png"

# One for each split, in the order train, val, test, novel.
_SPLIT_COLOURS = (BLUE, ORANGE, GREEN, PURPLE)
# Up to this many classes, each point has a large marker.
_FEW_CLASSES = 200

_CLASSES_A_PART = 4
_IMAGES_A_CLASS = 8
_TILE, _GAP, _CAPTION = 96, 6, 20


def draw_plots(catalogue: Catalogue, folder: str | Path) -> list[Path]:
    """Write `class_distribution.png` and `samples.png` into `folder`, which is created if missing; return their paths.

    Deterministic. Reads up to 96 images; unusable ones are shown as crossed tiles. Raises DataError if a shard is
    missing or truncated.
    """
    distribution, sheet = Path(folder) / DISTRIBUTION_FILE, Path(folder) / SHEET_FILE
    write_figure(draw_distribution(catalogue), distribution)
    write_picture(draw_samples(catalogue), sheet)
    return [distribution, sheet]


def count_by_split(catalogue: Catalogue) -> NDArray[np.int64]:
    """int64 [splits, classes]: images of each class in train, val, test and novel; classes without any left out,
    the largest first, equal ones in the order of their labels."""
    cells = catalogue.splits.astype(np.int64) * catalogue.num_classes + catalogue.labels
    counts = np.bincount(cells, minlength=len(SPLITS) * catalogue.num_classes).reshape(len(SPLITS), -1)
    order = _by_size(counts.sum(axis=0))
    return counts[:, order]


def _by_size(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of the classes that have images, the largest first."""
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def draw_distribution(catalogue: Catalogue) -> Any:
    """A matplotlib figure: images of each class, largest first, on a logarithmic scale (as PCN's Fig. 1).

    One line for all splits together and one for each split; a class that a split lacks has no point in its line.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    counts = count_by_split(catalogue)
    totals = counts.sum(axis=0)
    figure = Figure(figsize=(9, 4.7), layout="constrained")
    axis = figure.subplots()
    lines = [
        (name, colour, of_split)
        for name, colour, of_split in zip(SPLITS, _SPLIT_COLOURS, counts, strict=True)
        if of_split.any()
    ]
    for name, colour, values in [("all", "#282828", totals), *lines]:
        axis.plot(
            np.arange(1, len(totals) + 1),
            np.where(values > 0, values, np.nan),
            color=colour,
            marker="o",
            # Markers even for many classes: a class between two that the split lacks is a point without a line.
            markersize=4 if len(totals) <= _FEW_CLASSES else 1.5,
            linewidth=3.0 if name == "all" else 1.3,  # visible behind a split that has all images of a class
            label=name,
        )
    axis.set_yscale("log")
    axis.set_ylim(0.8, 1.5 * float(totals[0]))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("classes, largest first")
    axis.set_ylabel("images of the class")
    axis.set_title(
        f"{len(totals)} classes of {totals[0]} … {totals[-1]} images, median {np.median(totals):g}",
        fontsize=10,
    )
    axis.grid(color="#dddddd", linewidth=0.6)
    axis.legend(fontsize=9)
    return figure


def choose_classes(counts: NDArray[np.int64]) -> list[tuple[str, list[int]]]:
    """(part, labels) of the largest, middle and smallest classes, up to four each, no class twice.

    counts: int64 [num_classes], images of each label.
    """
    order = _by_size(counts).tolist()
    if len(order) <= 3 * _CLASSES_A_PART:
        return [("all classes", order)]
    middle = (len(order) - _CLASSES_A_PART) // 2
    return [
        ("largest classes", order[:_CLASSES_A_PART]),
        ("middle classes", order[middle : middle + _CLASSES_A_PART]),
        ("smallest classes", order[-_CLASSES_A_PART:]),
    ]


def draw_samples(catalogue: Catalogue) -> Image.Image:
    """A sheet with a row for each class that `choose_classes` returns:
    its name, its size, and up to 8 of its images."""
    counts = np.bincount(catalogue.labels, minlength=catalogue.num_classes)
    rows: list[tuple[str, int | None]] = []
    for part, labels in choose_classes(counts):
        rows += [(part, None), *((_caption(catalogue, label, int(counts[label])), label) for label in labels)]
    row_height = _CAPTION + _TILE + _GAP
    width = _GAP + _IMAGES_A_CLASS * (_TILE + _GAP)
    height = _GAP + sum(2 * _CAPTION if label is None else row_height for _, label in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, font, heading = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(18)
    store, y = ShardStore(catalogue), _GAP
    for text, label in rows:
        if label is None:
            draw.text((_GAP, y + _CAPTION // 2), text, INK, heading)
            y += 2 * _CAPTION
            continue
        draw.text((_GAP, y + 2), text, INK, font)
        members = np.flatnonzero(catalogue.labels == label)
        shown = np.unique(np.linspace(0, len(members) - 1, min(_IMAGES_A_CLASS, len(members))).astype(int))
        samples, mismatched = store.read_compared(members[shown])
        for place, sample in enumerate(samples):
            usable = None if place in mismatched else sample
            paste_tile(sheet, usable, _GAP + place * (_TILE + _GAP), y + _CAPTION, _TILE)
        y += row_height
    store.close()
    return sheet


def _caption(catalogue: Catalogue, label: int, count: int) -> str:
    name = catalogue.label_name(label)
    return f"{name if len(name) <= 80 else name[:79] + '…'}: {count}"
