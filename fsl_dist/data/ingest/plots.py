"""Pictures of a data set, drawn by PIL: how its classes are sized, and what their images look like."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.images import MAX_PIXELS, Encoded, find_excess_pixels, open_upright
from fsl_dist.data.store import ShardStore

DISTRIBUTION_FILE = "class_distribution.png"
SHEET_FILE = "samples.png"

_INK, _GRID, _PAPER = (40, 40, 40), (215, 215, 215), (255, 255, 255)
# One colour a split, in the order train, val, test, novel; told apart by the colour-blind too (Okabe & Ito).
_SPLIT_COLOURS = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 1000, 520, 80, 20, 60, 60

_CLASSES_A_PART = 4
_IMAGES_A_CLASS = 8
_TILE, _GAP, _CAPTION = 96, 6, 20


def draw_plots(catalogue: Catalogue, folder: str | Path) -> list[Path]:
    """Write `class_distribution.png` and `samples.png` into `folder`, made where it is not there; their paths.

    Deterministic. Reads up to 96 images; those that cannot be used are crossed tiles. DataError where a shard is
    missing or cut.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, image in (
        (DISTRIBUTION_FILE, draw_distribution(catalogue)),
        (SHEET_FILE, draw_samples(catalogue)),
    ):
        image.save(folder / name)
        written.append(folder / name)
    return written


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


def draw_distribution(catalogue: Catalogue) -> Image.Image:
    """Images a class, classes sorted by size, on a logarithmic scale (as PCN's Fig. 1): one line a split, one for all.

    A split's line is its count in the class at that place of the common order; a class it lacks has no point.
    """
    counts = count_by_split(catalogue)
    totals = counts.sum(axis=0)
    image = Image.new("RGB", (_WIDTH, _HEIGHT), _PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    decades = max(1, int(np.ceil(np.log10(totals[0] + 0.5))))

    def place(position: float, count: float) -> tuple[float, float]:
        x = _LEFT + (position + 0.5) / len(totals) * (_WIDTH - _LEFT - _RIGHT)
        return x, _HEIGHT - _BOTTOM - np.log10(count) / decades * (_HEIGHT - _TOP - _BOTTOM)

    for decade in range(decades + 1):
        _, y = place(0, 10**decade)
        draw.line((_LEFT, y, _WIDTH - _RIGHT, y), _GRID)
        draw.text((_LEFT - 8, y), f"{10**decade}", _INK, font, anchor="rm")
    for position in np.unique(np.linspace(0, len(totals) - 1, min(6, len(totals))).astype(np.int64)).tolist():
        x, _ = place(position, 1)
        draw.line((x, _HEIGHT - _BOTTOM, x, _HEIGHT - _BOTTOM + 5), _INK)
        draw.text((x, _HEIGHT - _BOTTOM + 8), f"{position + 1}", _INK, font, anchor="mt")
    draw.line((_LEFT, _TOP, _LEFT, _HEIGHT - _BOTTOM), _INK)
    draw.line((_LEFT, _HEIGHT - _BOTTOM, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM), _INK)
    draw.text(((_LEFT + _WIDTH) // 2, _HEIGHT - 12), "classes, the largest first", _INK, font, anchor="mb")
    draw.text(
        (_LEFT, 12),
        f"images a class: {len(totals)} classes, {totals[0]} … {totals[-1]}, median {np.median(totals):g}",
        _INK,
        font,
    )
    lines = [
        (name, _SPLIT_COLOURS[code], counts[code]) for code, name in enumerate(SPLITS) if counts[code].any()
    ]
    legend_x = float(_LEFT)
    for name, colour, values in [("all", _INK, totals), *lines]:
        draw.rectangle((legend_x, 36, legend_x + 12, 48), colour)
        draw.text((legend_x + 18, 42), name, _INK, font, anchor="lm")
        legend_x += 34 + draw.textlength(name, font)
        _draw_line(draw, [place(p, values[p]) if values[p] else None for p in _thin_out(len(values))], colour)
    return image


def _thin_out(num: int) -> list[int]:
    """Positions to draw: all, or four for every pixel of width."""
    return np.unique(np.linspace(0, num - 1, min(num, 4 * _WIDTH)).astype(np.int64)).tolist()


def _draw_line(
    draw: ImageDraw.ImageDraw, points: list[tuple[float, float] | None], colour: tuple[int, int, int]
) -> None:
    previous = None
    for point in points:
        if point is not None:
            draw.line((*(previous or point), *point), colour, width=2)
            if len(points) <= 200:
                draw.ellipse((point[0] - 3, point[1] - 3, point[0] + 3, point[1] + 3), colour)
        previous = point


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
    """A sheet with a row for each of some classes: its name, its size, and up to 8 of its images, evenly chosen."""
    counts = np.bincount(catalogue.labels, minlength=catalogue.num_classes)
    rows: list[tuple[str, int | None]] = []
    for part, labels in choose_classes(counts):
        rows += [(part, None), *((_caption(catalogue, label, int(counts[label])), label) for label in labels)]
    row_height = _CAPTION + _TILE + _GAP
    width = _GAP + _IMAGES_A_CLASS * (_TILE + _GAP)
    height = _GAP + sum(2 * _CAPTION if label is None else row_height for _, label in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw, font, heading = ImageDraw.Draw(sheet), ImageFont.load_default(13), ImageFont.load_default(18)
    store, y = ShardStore(catalogue), _GAP
    for text, label in rows:
        if label is None:
            draw.text((_GAP, y + _CAPTION // 2), text, _INK, heading)
            y += 2 * _CAPTION
            continue
        draw.text((_GAP, y + 2), text, _INK, font)
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


def paste_tile(sheet: Image.Image, encoded: Encoded | None, left: int, top: int, side: int) -> None:
    """Draw an encoded image into the square of `side` pixels at (`left`, `top`), aspect kept; a crossed square where it
    is None or cannot be used."""
    tile = None if encoded is None else _make_tile(encoded, side)
    if tile is not None:
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        return
    draw, right, bottom = ImageDraw.Draw(sheet), left + side - 1, top + side - 1
    draw.rectangle((left, top, right, bottom), _GRID)
    draw.line((left, top, right, bottom), _INK)
    draw.line((left, bottom, right, top), _INK)


def _make_tile(encoded: Encoded, side: int) -> Image.Image | None:
    """The image within `side` pixels; None where it cannot be used."""
    if find_excess_pixels(encoded, MAX_PIXELS):
        return None
    try:
        image = open_upright(encoded)
    except Exception:  # PIL raises a dozen types for damaged images
        return None
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)
