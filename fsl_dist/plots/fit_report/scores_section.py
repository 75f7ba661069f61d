"""How the chosen candidate errs: confusion, recall against class size, and whether its confidence can be trusted."""

from html import escape

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.metrics.calibration import calibration_error
from fsl_dist.metrics.few_shot import positions_among
from fsl_dist.metrics.learning_curve import wilson_interval
from fsl_dist.plots.fit_report.charts import Plot, Scale, around, chart
from fsl_dist.plots.fit_report.inputs import Judged
from fsl_dist.plots.fit_report.markup import count, details, name, percent, scroller, table

_MATRIX_CLASSES = 50
_SHOWN_PAIRS = 15
_BINS = 10
# A bin with fewer images than this is unreliable: bins have equal numbers of images.
_BIN_IMAGES = 10


def render_confusion(judged: Judged, catalogue: Catalogue) -> str:
    """The most confused pairs of classes, and the whole matrix if it is small enough to read; HTML."""
    labels, predicted = judged.labels, judged.predicted
    classes = np.union1d(labels, predicted)
    rows, columns = positions_among(labels, classes), positions_among(predicted, classes)
    sizes = np.bincount(rows, minlength=len(classes))
    is_wrong = rows != columns
    cells, times = np.unique(rows[is_wrong] * len(classes) + columns[is_wrong], return_counts=True)
    if not len(cells):
        return f"<p>All {count(len(labels), 'image')} are right.</p>"
    names = [catalogue.label_name(label) for label in classes.tolist()]
    found = []
    for place in np.argsort(-times, kind="stable")[:_SHOWN_PAIRS].tolist():
        row, column = divmod(int(cells[place]), len(classes))
        found.append([names[row], names[column], f"{times[place]}", f"{sizes[row]}"])
    listed = table("The most confused pairs of classes", ["labelled", "taken for", "images", "of"], found)
    num_wrong = int(is_wrong.sum())
    intro = f"<p>{count(num_wrong, 'image')} of {len(labels):,} {'is' if num_wrong == 1 else 'are'} taken for another class.</p>"
    if len(classes) > _MATRIX_CLASSES:
        return f'{intro}{listed}<p class="note">A matrix of {len(classes):,} classes could not be read; all classes are in the table below.</p>'
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(matrix, (rows, columns), 1)
    return intro + listed + "<h3>Confusion matrix</h3>" + _render_matrix(matrix, sizes, names)


def _render_matrix(matrix: NDArray[np.int64], sizes: NDArray[np.int64], names: list[str]) -> str:
    head = "".join(f'<th scope="col" title="{escape(one)}"><span>{name(one)}</span></th>' for one in names)
    lines = []
    for row, (one, of_row) in enumerate(zip(names, matrix.tolist(), strict=True)):
        cells = []
        for column, number in enumerate(of_row):
            if not number:
                cells.append("<td></td>")
                continue
            # At 60 % of the colour the text is still read easily.
            share = 10 + 50 * number / max(int(sizes[row]), 1)
            colour = "accent" if row == column else "second"
            shade = f"color-mix(in srgb, var(--{colour}) {share:.0f}%, var(--card))"
            words = f"{one} taken for {names[column]}: {number} of {sizes[row]}"
            cells.append(f'<td style="background:{shade}" title="{escape(words)}">{number}</td>')
        lines.append(f'<tr><th scope="row" title="{escape(one)}">{name(one)}</th>{"".join(cells)}</tr>')
    html = f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    note = "Rows are the labels, columns the answers; numbers are images, shades their share of the row."
    return f'<div class="matrix">{scroller("Confusion matrix", html)}</div><p class="note">{note}</p>'


def render_recalls(judged: Judged, catalogue: Catalogue) -> str:
    """Recall of each class over the number of its training images, with intervals; HTML."""
    tested, rows = np.unique(judged.labels, return_inverse=True)
    number = np.bincount(rows)
    right = np.bincount(rows, weights=judged.predicted == judged.labels).astype(np.int64)
    low, high = wilson_interval(right, number)
    places = positions_among(tested, judged.classes)
    sizes = np.where(places >= 0, judged.train_counts[places], 0)
    names = [catalogue.label_name(label) for label in tested.tolist()]
    words = [
        f"{one}: {good} of {all_} right, {size} training images"
        for one, good, all_, size in zip(names, right, number, sizes, strict=True)
    ]
    shown = np.maximum(sizes, 1).astype(np.float64)
    # Classes of equal size would hide one another.
    spread = 1 + 0.012 * (np.arange(len(tested)) % 5 - 2)

    def draw(width: int, height: int) -> str:
        plot = Plot(width, height, around(shown.tolist(), is_log=True), Scale(0.0, 1.0))
        for row in range(len(tested)):
            plot.span(shown[row] * spread[row], low[row], high[row], "interval")
        for row in range(len(tested)):
            plot.dot(shown[row] * spread[row], right[row] / number[row], "one", words[row])
        return plot.render(
            "Recall of each class over the number of its training images",
            "training images of the class",
            "recall %",
            lambda value: f"{value:,.0f}",
            lambda value: f"{100 * value:.0f}",
        )

    order = np.lexsort((sizes, right / number))
    listed = table(
        "Recall of each class, the lowest first",
        ["class", "recall %", "95 % interval", "right", "images", "training images"],
        [
            [
                names[row],
                percent(right[row] / number[row]),
                f"{percent(low[row])} – {percent(high[row])}",
                f"{right[row]}",
                f"{number[row]}",
                f"{sizes[row]}",
            ]
            for row in order.tolist()
        ],
    )
    caption = (
        "A point for each class; the line is Wilson's 95 % interval, which is long where a class has few scored "
        "images. Equal sizes are drawn a little apart."
    )
    return chart(draw, caption) + details(
        f"Table of all {len(tested):,} classes, the lowest recall first", listed
    )


def lowest_recalls(judged: Judged, catalogue: Catalogue, most: int = 3) -> str:
    """The classes of lowest recall in words: `Mango (0 of 3), Lime (1 of 2)`; empty where all are right."""
    tested, rows = np.unique(judged.labels, return_inverse=True)
    number = np.bincount(rows)
    right = np.bincount(rows, weights=judged.predicted == judged.labels).astype(np.int64)
    order = np.lexsort((-number, right / number))[:most]
    return ", ".join(
        f"{catalogue.label_name(int(tested[row]))} ({right[row]} of {number[row]})"
        for row in order
        if right[row] < number[row]
    )


def render_calibration(judged: Judged) -> str:
    """Share of right answers over confidence, before and after calibration; HTML."""
    is_right = judged.predicted == judged.labels
    kinds = [
        (
            "after calibration" if judged.before is not None else "the head's confidence",
            judged.probabilities,
            "one",
        )
    ]
    if judged.before is not None:
        kinds.append(("before calibration", judged.before, "two"))
    curves = [
        (words, kind, *_bin(table_.max(axis=1), is_right), calibration_error(table_, is_right))
        for words, table_, kind in kinds
    ]

    def draw(width: int, height: int) -> str:
        plot = Plot(width, height, Scale(0.0, 1.0), Scale(0.0, 1.0))
        plot.line([(0, 0), (1, 1)], "even")
        for words, kind, confidence, share, number in reversed([curve[:5] for curve in curves]):
            low, high = wilson_interval(np.round(share * number).astype(np.int64), number)
            for place in range(len(number)):
                plot.span(confidence[place], low[place], high[place], kind)
            plot.line(list(zip(confidence.tolist(), share.tolist(), strict=True)), kind)
            for place in range(len(number)):
                said = f"{words}: confidence {percent(confidence[place])} %, right {percent(share[place])} %, {number[place]} images"
                plot.dot(confidence[place], share[place], kind, said)
        return plot.render(
            "Share of right answers over confidence",
            "confidence %",
            "right %",
            lambda value: f"{100 * value:.0f}",
            lambda value: f"{100 * value:.0f}",
        )

    errors = "; ".join(f"{words}: {percent(error)} %" for words, *_, error in curves)
    caption = (
        "A point for each tenth of the images, by confidence. On the dotted line, answers of 80 % confidence are "
        f"right in 80 %. Below it the model is too sure. Expected calibration error: {escape(errors)}."
    )
    rows = [
        [words, percent(one), percent(share_), f"{number_}"]
        for words, _, confidence, share, number, _ in curves
        for one, share_, number_ in zip(confidence.tolist(), share.tolist(), number.tolist(), strict=True)
    ]
    listed = table("Calibration", ["curve", "confidence %", "right %", "images"], rows)
    legend = [(kind, words) for words, kind, *_ in curves]
    return chart(draw, caption, legend) + details("Table of the curve", listed)


def _bin(
    confidence: NDArray[np.float64], is_right: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Equally many images in each bin: (mean confidence, share of right ones, images), one value for each bin."""
    order = np.argsort(confidence, kind="stable")
    bins = np.array_split(order, max(1, min(_BINS, len(order) // _BIN_IMAGES)))
    return (
        np.array([confidence[rows].mean() for rows in bins]),
        np.array([is_right[rows].mean() for rows in bins]),
        np.array([len(rows) for rows in bins]),
    )
