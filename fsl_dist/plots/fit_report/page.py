"""The report on a fit as one HTML file, with the table of likely label errors next to it."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fsl_dist.evaluation.label_errors import write_label_errors
from fsl_dist.plots.fit_report.advice import describe_advice, render_advice
from fsl_dist.plots.fit_report.answer import render_answer
from fsl_dist.plots.fit_report.data_section import render_data
from fsl_dist.plots.fit_report.inputs import FitFacts
from fsl_dist.plots.fit_report.markup import STYLE, bullets, count
from fsl_dist.plots.fit_report.picture_sections import render_labels, render_mistakes
from fsl_dist.plots.fit_report.pictures import Thumbnails
from fsl_dist.plots.fit_report.scores_section import (
    lowest_recalls,
    render_calibration,
    render_confusion,
    render_recalls,
)
from fsl_dist.plots.html_page import render_page
from fsl_dist.version import __version__
from index.base.files import write_atomic

REPORT_FILE = "report.html"
LABEL_ERRORS_FILE = "label_errors.csv"


@dataclass(frozen=True, slots=True)
class _Section:
    anchor: str
    title: str
    body: str


def write_fit_report(out: Path, facts: FitFacts) -> Path:
    """Write OUT/report.html, and OUT/label_errors.csv if labels were checked.

    The page is one self-contained file with its pictures and without scripts. The table has all samples of the data
    set, so that it can be passed to `resplit` directly.

    Args:
        out: folder, created if it is missing.
        facts: the result of `measure_fit`.

    Returns:
        The page.
    """
    out.mkdir(parents=True, exist_ok=True)
    if facts.labels is not None:
        errors, probability = facts.labels.errors, facts.labels.own.copy()
        ids = np.array([one.id for one in errors], dtype=np.int64)
        probability[ids] = [one.probability for one in errors]
        suggested = np.array([one.suggested for one in errors], dtype=np.int64)
        write_label_errors(out / LABEL_ERRORS_FILE, facts.catalogue, ids, suggested, probability)
    page = out / REPORT_FILE
    write_atomic(page, render_report(facts).encode("utf-8", "backslashreplace"))
    return page


def render_report(facts: FitFacts) -> str:
    """The whole page."""
    overview, catalogue = facts.overview, facts.catalogue
    thumbnails = Thumbnails(catalogue)
    try:
        sections = [_Section("data", "The data", render_data(facts.data, catalogue, thumbnails))]
        if facts.judged is not None:
            judged = facts.judged
            sections += [
                _Section(
                    "confusion",
                    f"Confusion on the {judged.split} images",
                    render_confusion(judged, catalogue),
                ),
                _Section("recall", "Recall of each class and its size", render_recalls(judged, catalogue)),
                _Section("calibration", "Can its confidence be trusted?", render_calibration(judged)),
            ]
        if facts.mistakes is not None:
            sections.append(
                _Section(
                    "mistakes",
                    "Evidence for mistakes",
                    render_mistakes(facts.mistakes, catalogue, thumbnails),
                )
            )
        if facts.labels is not None:
            labels = render_labels(facts.labels, catalogue, thumbnails, LABEL_ERRORS_FILE)
            sections.append(_Section("labels", "Likely label errors", labels))
        if facts.next is not None:
            sections.append(_Section("next", "What to do next", render_advice(facts.next, catalogue)))
    finally:
        thumbnails.close()
    if facts.left_out:
        sections.append(_Section("left-out", "Left out of this report", bullets(facts.left_out)))
    if overview.commands:
        lines = html.escape("\n".join(overview.commands))
        sections.append(_Section("commands", "Use the model", f'<pre tabindex="0">{lines}</pre>'))
    title = f"Fit of {overview.dataset}"
    body = f"""<header>
<h1>{html.escape(title)}</h1>
{_render_contents(sections)}
</header>
<main>
<section id="answer" aria-label="The answer">
{render_answer(overview)}
{_render_findings(facts)}
</section>
{"".join(_render_section(section) for section in sections)}
</main>
<footer><p>Written by fsl-dist {html.escape(__version__)}. Data set version {catalogue.version}, fingerprint {catalogue.fingerprint[:16]}.</p></footer>"""
    return render_page(title, body, STYLE)


def _render_findings(facts: FitFacts) -> str:
    """The most important findings, with links to their sections."""
    catalogue, found = facts.catalogue, list[tuple[str, str]]()
    conflicts = sum(
        catalogue.labels[pair.first] != catalogue.labels[pair.second] for pair in facts.data.copies
    )
    if conflicts:
        found.append(("data", f"{count(int(conflicts), 'pair')} of identical files with different labels"))
    across = facts.data.num_near[1]
    if across:
        found.append(
            (
                "data",
                f"{count(across, 'pair')} of near-duplicates in different splits: scores may be too high",
            )
        )
    if facts.judged is not None:
        worst = lowest_recalls(facts.judged, catalogue)
        if worst:
            found.append(("recall", f"lowest recall: {worst}"))
    if facts.labels is not None and facts.labels.errors:
        found.append(
            (
                "labels",
                f"{count(len(facts.labels.errors), 'label')} of training and validation images to check",
            )
        )
    if facts.next is not None:
        found.append(("next", describe_advice(facts.next, catalogue)[0]))
    if not found:
        return ""
    items = "".join(f'<li><a href="#{anchor}">{html.escape(words)}</a></li>' for anchor, words in found)
    return f"<h3>Worth a look</h3><ul>{items}</ul>"


def _render_contents(sections: Sequence[_Section]) -> str:
    links = "".join(f'<li><a href="#{one.anchor}">{html.escape(one.title)}</a></li>' for one in sections)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'


def _render_section(one: _Section) -> str:
    return (
        f'<section id="{one.anchor}" aria-labelledby="{one.anchor}-title">\n'
        f'<h2 id="{one.anchor}-title">{html.escape(one.title)}</h2>\n{one.body}\n</section>\n'
    )
