"""The data: sizes and the tail, copies and near-duplicates."""

from collections.abc import Sequence
from html import escape

import numpy as np

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.plots.fit_report.charts import Plot, Scale, around, chart
from fsl_dist.plots.fit_report.inputs import DataFacts, Pair
from fsl_dist.plots.fit_report.markup import bullets, count, details, name, table
from fsl_dist.plots.fit_report.pictures import Thumbnails

# More classes than this are drawn as a curve instead of named bars.
_NAMED_BARS = 60
# From this many on, the bars are in two columns.
_ONE_COLUMN = 16
_SHOWN_PAIRS = 12
_KINDS = ("one", "two", "three", "four")


def render_data(data: DataFacts, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    """The section on the data set, HTML."""
    summary = data.summary
    splits = ", ".join(f"{split} {of.num_samples:,}" for split, of in summary.splits.items())
    groups = f"{len(catalogue.unit_names):,} units that no split divides" if catalogue.unit_names else "none"
    facts = [
        ("Images", f"{summary.num_samples:,}", splits),
        (
            "Classes",
            f"{summary.num_classes:,}",
            f"{summary.num_groups:,} groups" if summary.num_groups else "",
        ),
        (
            "Images per class",
            f"{summary.tail.largest:,} … {summary.tail.smallest:,}",
            f"median {summary.tail.median:g}, ratio {summary.tail.ratio:.1f}",
        ),
        (
            "Median size",
            f"{summary.width[1]:g} × {summary.height[1]:g} px",
            f"widths {summary.width[0]} … {summary.width[2]}",
        ),
        ("Kept together", groups, ""),
        (
            "Left out when packed",
            f"{len(summary.bad_samples):,}",
            "images that could not be used" if summary.bad_samples else "",
        ),
    ]
    cards = "".join(
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for what, value, more in facts
    )
    return "\n".join(
        [
            f'<dl class="facts">{cards}</dl>',
            bullets(summary.flags),
            "<h3>Class sizes</h3>",
            _render_sizes(data, catalogue),
            "<h3>Copies and near-duplicates</h3>",
            _render_copies(data, catalogue, thumbnails),
        ]
    )


def _render_sizes(data: DataFacts, catalogue: Catalogue) -> str:
    totals = data.counts.sum(axis=0)
    order = np.argsort(-totals, kind="stable")
    order = order[totals[order] > 0]
    used = [place for place in range(len(SPLITS)) if data.counts[place].any()]
    legend = [(_KINDS[place], SPLITS[place]) for place in used]
    rows = [
        [
            catalogue.label_name(label),
            *(f"{data.counts[place, label]:,}" for place in used),
            f"{totals[label]:,}",
        ]
        for label in order.tolist()
    ]
    listed = table(
        "Images of each class in each split", ["class", *(SPLITS[place] for place in used), "all"], rows
    )
    if len(order) > _NAMED_BARS:
        figure = _draw_curve(data, order.tolist(), legend, used)
        return figure + details(f"Table of all {len(order):,} classes", listed)
    most = int(totals.max(initial=1))
    lines = []
    for label in order.tolist():
        bars = "".join(
            f'<i class="{_KINDS[place]}" style="width:{100 * data.counts[place, label] / most:.2f}%"></i>'
            for place in used
        )
        numbers = " + ".join(f"{data.counts[place, label]}" for place in used)
        lines.append(
            f'<li><span class="what">{name(catalogue.label_name(label))}</span><span class="bar">{bars}</span>'
            f'<span class="number">{numbers}</span></li>'
        )
    keys = "".join(f'<span><i class="{kind}"></i>{words}</span>' for kind, words in legend)
    many = " many" if len(order) > _ONE_COLUMN else ""
    return f'<p class="legend solid">{keys}</p><ul class="bars{many}">{"".join(lines)}</ul>'


def _draw_curve(
    data: DataFacts, order: list[int], legend: Sequence[tuple[str, str]], used: Sequence[int]
) -> str:
    counts = data.counts[:, order]

    def draw(width: int, height: int) -> str:
        plot = Plot(
            width, height, Scale(1, max(len(order), 2)), around([1, float(counts.max())], is_log=True)
        )
        for place in used:
            points = [(number, float(size)) for number, size in enumerate(counts[place].tolist(), 1) if size]
            plot.line(points, _KINDS[place])
        return plot.render(
            "Images of each class in each split, the largest class first",
            "classes, largest first",
            "images",
            lambda value: f"{value:,.0f}",
            lambda value: f"{value:,.0f}",
        )

    return chart(draw, "Images of each class, on a logarithmic scale.", legend)


def _render_copies(data: DataFacts, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    parts = []
    differ = [pair for pair in data.copies if _labels_differ(pair, catalogue)]
    if data.num_copies:
        parts.append(
            f"<p>{count(data.num_copies, 'image')} {'has' if data.num_copies == 1 else 'have'} the same file "
            f"content as an earlier one; {count(len(differ), 'such pair')} with different labels, "
            f"{count(sum(_splits_differ(p, catalogue) for p in data.copies), 'pair')} "
            "across splits.</p>"
        )
    else:
        parts.append("<p>No two images have the same file content.</p>")
    if data.near is None:
        parts.append("<p>Near-duplicates were not looked for.</p>")
    else:
        pairs, splits, classes = data.num_near
        words = (
            "No near-duplicates were found."
            if not pairs
            else (
                f"{count(pairs, 'pair')} of near-duplicates (copies included): {splits:,} across splits, "
                f"{classes:,} across classes."
            )
        )
        parts.append(f"<p>{words}</p>")
        if splits:
            parts.append(
                '<p class="warning" role="note">Images that occur in training and in test in nearly the same form '
                "make the test score too high. Pack again with dedupe=phash, or keep related images in the same "
                "split.</p>"
            )
    shown = [*data.copies, *(data.near or ())]
    shown.sort(
        key=lambda pair: (not _labels_differ(pair, catalogue), not _splits_differ(pair, catalogue), pair.bits)
    )
    if shown:
        cards = "".join(_render_pair(pair, catalogue, thumbnails) for pair in shown[:_SHOWN_PAIRS])
        parts.append(f'<ul class="cards">{cards}</ul>')
        if len(shown) > _SHOWN_PAIRS:
            parts.append(
                f'<p class="note">{_SHOWN_PAIRS} of {len(shown):,} such pairs are shown, those of different '
                "classes first.</p>"
            )
    return "\n".join(parts)


def _render_pair(pair: Pair, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    what = "same content" if pair.is_copy else f"{pair.bits} of 64 bits differ"
    notes = []
    if _labels_differ(pair, catalogue):
        notes.append("different classes")
    if _splits_differ(pair, catalogue):
        notes.append("different splits")
    photos = "".join(_photo(sample, catalogue, thumbnails) for sample in (pair.first, pair.second))
    return (
        f'<li><p><span class="mark is-wrong">{escape(", ".join(notes))}</span> · {what}</p>'
        f'<ul class="photos">{photos}</ul></li>'
    )


def _photo(sample: int, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    label = catalogue.label_name(int(catalogue.labels[sample]))
    (key,) = catalogue.keys([sample])
    return (
        f'<li class="first">{thumbnails.image(sample, f"{key}, class {label}")}{name(label)}'
        f"<span>{SPLITS[catalogue.splits[sample]]}: {name(key)}</span></li>"
    )


def _labels_differ(pair: Pair, catalogue: Catalogue) -> bool:
    return bool(catalogue.labels[pair.first] != catalogue.labels[pair.second])


def _splits_differ(pair: Pair, catalogue: Catalogue) -> bool:
    return bool(catalogue.splits[pair.first] != catalogue.splits[pair.second])
