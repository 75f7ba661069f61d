"""Pieces of the report's HTML: names, shares, tables that scroll inside the page, and its styles."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is already HTML."""

    text: str


Cell = str | Html
"""plain text is escaped"""


def name(text: str) -> str:
    """A name from the data, escaped, in its own writing direction."""
    return f"<bdi>{escape(text)}</bdi>"


def percent(share: float) -> str:
    """`91.4` for 0.9138."""
    return f"{100 * share:.1f}".replace("-", "−")


def in_brackets(share: float) -> str:
    """`(91.4 %)`, which no line break divides."""
    return f"({percent(share)}\u00a0%)"


def count(number: float, one: str, many: str = "") -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,.0f} {one if number == 1 else many or one + 's'}"


def table(
    label: str,
    head: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    marked: Sequence[int] = (),
    near: Sequence[int] = (),
) -> str:
    """A table in a scrollable box, also by keyboard; the first cell of a row is its header.

    `label` names the table for screen readers; `marked` and `near` are rows with strong and weak emphasis.
    """
    lines = [
        "<thead><tr>"
        + "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        + "</tr></thead><tbody>"
    ]
    for number, (first, *others) in enumerate(rows):
        kind = ' class="marked"' if number in marked else ' class="near"' if number in near else ""
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in others)
        lines.append(f'<tr{kind}><th scope="row">{_cell(first)}</th>{cells}</tr>')
    return scroller(label, "<table>" + "\n".join(lines) + "</tbody></table>")


def scroller(label: str, html: str) -> str:
    """A box that scrolls sideways where `html` is wider than the page, reachable from the keyboard."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(label)}">{html}</div>'


def details(summary: str, html: str) -> str:
    """A part that is folded until it is opened."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def bullets(items: Sequence[str]) -> str:
    """Plain sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>" if items else ""


def _cell(cell: Cell) -> str:
    return cell.text if isinstance(cell, Html) else escape(cell)


STYLE = """
:root { --second: #b45309; --good: #0b7a55; }
@media (prefers-color-scheme: dark) { :root { --second: #f0a35e; --good: #4cc79a; } }
main > section { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h2 { margin-top: 0; font-size: 1.25rem; }
p, li, figcaption { max-width: 48rem; }
.answer { font-size: 1.2rem; line-height: 1.45; margin: .8rem 0; }
.note, figcaption { font-size: .875rem; color: var(--muted); }
ul { padding-left: 1.2rem; }
nav ul { list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .875rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.wide { width: fit-content; max-width: 100%; border: 1px solid var(--line); border-radius: .4rem; background: var(--card); margin: .7rem 0; }
tbody tr:last-child > * { border-bottom: 0; }
th[scope=row] { font-weight: inherit; text-align: left; white-space: normal; min-width: 9rem; max-width: 22rem; }
thead th { vertical-align: bottom; white-space: normal; max-width: 8rem; overflow-wrap: normal; }
td.text { text-align: left; white-space: normal; min-width: 10rem; }
small { color: var(--muted); display: block; font-size: .8125rem; }
details { margin: .7rem 0; }
summary { cursor: pointer; color: var(--accent); }
dl.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10rem), 1fr)); gap: .6rem; margin: .7rem 0; }
dl.facts div { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .5rem .7rem; }
dt { font-size: .8125rem; color: var(--muted); }
dd { margin: 0; font-size: 1.125rem; }
figure { margin: .7rem 0; }
figure.chart { max-width: 48rem; }
.chart svg { display: block; width: 100%; height: auto; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; }
.small { display: none; }
svg text { fill: var(--muted); font-size: 12px; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg polyline { fill: none; stroke-width: 2; }
svg .one { stroke: var(--accent); } svg .two { stroke: var(--second); stroke-dasharray: 6 4; }
svg .three { stroke: var(--good); stroke-dasharray: 2 3; } svg .four { stroke: var(--ink); }
svg .even { stroke: var(--quiet); stroke-dasharray: 2 4; stroke-width: 1; }
svg .interval { stroke: var(--quiet); stroke-width: 1.5; }
svg circle { stroke: var(--card); stroke-width: 1; }
svg circle.one { fill: var(--accent); } svg circle.two { fill: var(--second); }
svg circle.three { fill: var(--good); } svg circle.four { fill: var(--ink); }
svg line.one, svg line.two, svg line.three, svg line.four { stroke-width: 1.5; stroke-dasharray: none; }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .875rem; margin: 0 0 .3rem; }
.legend i { display: inline-block; width: 1.4rem; margin-right: .4rem; vertical-align: middle; border-top: 3px solid var(--quiet); }
.legend i.one { border-color: var(--accent); } .legend i.two { border-color: var(--second); border-top-style: dashed; }
.legend i.three { border-color: var(--good); border-top-style: dotted; } .legend i.four { border-color: var(--ink); }
.legend.solid i { border-top-style: solid; border-top-width: .6rem; width: .9rem; border-radius: .15rem; }
.bars.many { columns: 2; column-gap: 2.5rem; } .bars li { break-inside: avoid; }
.bars { list-style: none; margin: .7rem 0; padding: 0; font-size: .875rem; }
.bars li { display: grid; grid-template-columns: minmax(6rem, 11rem) 1fr 6.2rem; gap: .6rem; align-items: center; max-width: none;
  padding: .1rem 0; }
.bars .bar { display: flex; height: .8rem; background: var(--line); border-radius: .2rem; overflow: hidden; }
.bars .bar i { background: var(--accent); } .bars .bar i.two { background: var(--second); }
.bars .bar i.three { background: var(--good); } .bars .bar i.four { background: var(--quiet); }
.bars .number { color: var(--muted); font-variant-numeric: tabular-nums; text-align: right; }
.matrix table { font-size: .75rem; }
.matrix th, .matrix td { padding: .1rem .15rem; min-width: 1.5rem; text-align: center; border: 1px solid var(--line); }
.matrix thead th { font-weight: 400; height: 9rem; }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 8.5rem; overflow: hidden; white-space: nowrap; }
.matrix th[scope=row] { min-width: 8rem; max-width: 14rem; text-align: right; position: sticky; left: 0; background: var(--card);
  white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
.cards { list-style: none; padding: 0; display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); }
.cards.wider { grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); }
.cards > li { background: var(--card); border: 1px solid var(--line); border-radius: .4rem; padding: .7rem; max-width: none; min-width: 0; }
.cards p { margin: 0 0 .3rem; font-size: .875rem; line-height: 1.35; }
.cards .key { color: var(--muted); font-size: .75rem; }
.photos { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; padding: 0; margin: .4rem 0 0; }
.photos > * { width: 5.2rem; font-size: .75rem; line-height: 1.25; margin: 0; }
.photos .first { width: 7.2rem; }
.photos img { width: 100%; aspect-ratio: 1; object-fit: contain; background: var(--line); border-radius: .2rem; display: block; }
.photos .agrees img { outline: 3px solid var(--accent); outline-offset: -1px; }
.photos .differs img { outline: 3px dashed var(--second); outline-offset: -1px; }
.photos span { color: var(--muted); display: block; }
.photos bdi { display: block; }
.photos > li > img, .photos > li > .lost { margin-bottom: .3rem; }
.photos .words { flex: 1; width: auto; min-width: 0; }
.lost { width: 100%; aspect-ratio: 1; display: grid; place-items: center; background: var(--line); text-align: center; font-size: .75rem; }
.mark { font-weight: 600; } .photos .mark, .photos .mark bdi { display: inline; color: var(--ink); }
.photos .mark.is-wrong { color: var(--second); } .is-right { color: var(--good); } .is-wrong { color: var(--second); }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .875rem; color: var(--muted); }
@media (max-width: 44rem) {
  .large { display: none; } .small { display: block; }
  th, td { padding: .25rem .45rem; }
  .answer { font-size: 1.08rem; }
  .bars.many { columns: 1; }
  .bars li { grid-template-columns: 1fr 5.5rem; gap: 0 .6rem; }
  .bars .bar { grid-column: 1 / -1; grid-row: 2; }
}
@media print { .cards > li, figure { break-inside: avoid; } }
"""
