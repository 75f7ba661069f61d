"""The top of the report: the answer in sentences, the table of candidates, and the time spent."""

from html import escape

from fsl_dist.plots.fit_report.inputs import Candidate, Difference, Interval, Overview, Score
from fsl_dist.plots.fit_report.markup import Cell, Html, bullets, count, name, percent, table

_ROUNDS = {None: "", 0: "frozen", -1: "final"}


def describe_answer(overview: Overview) -> list[str]:
    """The answer as plain sentences, the chosen candidate first."""
    chosen = _find(overview, overview.chosen)
    if chosen is None:
        return ["No candidate could be scored."]
    final = _find(overview, overview.final)
    result = final if final is not None and final.test is not None else chosen
    score, where = (result.test, "test") if result.test else (result.validation, "validation")
    if score is None:
        return [f"The choice is {_called(chosen)}; it was not scored."]
    again = ", retrained on training and validation images together" if result is not chosen else ""
    sentences = [
        f"The best model is {_called(chosen)}{again}: {percent(score.acc)} % "
        f"accuracy{_between(score.acc_interval)} and "
        f"{percent(score.mcr)} % mean class recall{_between(score.mcr_interval)} on {count(score.n, f'{where} image')}."
    ]
    if not chosen.is_frozen:
        frozen = [one for one in overview.candidates if one.is_frozen and (one.test or one.validation)]
        sentences += [
            _against(overview, chosen, one, "The frozen network") for one in _best_first(frozen)[:1]
        ]
    elif len(overview.candidates) > 1:
        sentences.append("No network that was trained within the budget was better on the validation images.")
    others = [
        one
        for one in overview.candidates
        if one.name not in (chosen.name, overview.final) and one.validation and not one.is_frozen
    ]
    sentences += [
        _against(overview, chosen, one, f"The next best candidate, {one.name},")
        for one in _best_first(others)[:1]
    ]
    return sentences


def render_answer(overview: Overview) -> str:
    """The first section, HTML."""
    first, *more = describe_answer(overview)
    parts = [f'<p class="answer">{escape(first)}</p>', *(f"<p>{escape(sentence)}</p>" for sentence in more)]
    parts += [f'<p class="warning" role="note">{escape(warning)}</p>' for warning in overview.warnings]
    parts.append(_table(overview))
    parts.append(
        '<p class="note">Intervals are 95 % bootstrap intervals. Mean class recall is the share of right answers '
        "in each class, averaged over classes. Candidates are compared on validation images; test images are "
        "scored once and choose nothing.</p>"
    )
    if overview.equal:
        parts.append(
            '<p class="note">Rows with a shaded ground are equal to the best on validation within noise.</p>'
        )
    if overview.spent_s:
        parts.append(_render_time(overview))
    if overview.notes:
        parts += ["<h3>Notes</h3>", bullets(overview.notes)]
    return "\n".join(parts)


def _table(overview: Overview) -> str:
    shown = overview.candidates
    head = ["candidate", "validation accuracy %", "validation MCR %", "test accuracy %", "test MCR %"]
    head += ["images seen", "seconds", "round", "state"]
    rows: list[list[Cell]] = []
    for one in shown:
        below = "".join(f"<small>{escape(words)}</small>" for words in (one.head, one.note) if words)
        rows.append(
            [
                Html(name(one.name) + below),
                *_scores(one.validation),
                *_scores(one.test),
                f"{one.images_seen:,}",
                f"{one.seconds:.0f}",
                _ROUNDS.get(one.round, str(one.round)),
                one.state,
            ]
        )
    # A column without any value is left out.
    used = [place for place in range(len(head)) if any(row[place] not in ("", "0") for row in rows)]
    names = [one.name for one in shown]
    marked = [names.index(one) for one in (overview.chosen, overview.final) if one in names]
    near = [place for place, one in enumerate(names) if one in overview.equal]
    caption = f"Candidates, {len(shown)}: validation and test scores, images seen and seconds"
    listed = table(
        caption,
        [head[place] for place in used],
        [[row[place] for place in used] for row in rows],
        marked,
        near,
    )
    return "<h3>Candidates</h3>" + listed


def _scores(score: Score | None) -> list[Cell]:
    if score is None:
        return ["", ""]
    cells: list[Cell] = []
    for value, interval, spread in (
        (score.acc, score.acc_interval, score.acc_std),
        (score.mcr, score.mcr_interval, score.mcr_std),
    ):
        below = "" if interval is None else f"{percent(interval[0])} – {percent(interval[1])}"
        if score.parts > 1 and spread is not None:
            below += f"{'; ' if below else ''}± {percent(spread)} over {score.parts} parts"
        cells.append(Html(f"{percent(value)}<small>{below}</small>"))
    return cells


def _render_time(overview: Overview) -> str:
    spent = overview.spent_s or {}
    total = sum(spent.values())
    most = max(total, overview.budget_s, 1e-9)
    lines = [
        f'<li><span class="what">{escape(phase)}</span><span class="bar"><i '
        f'style="width:{100 * seconds / most:.1f}%"></i></span>'
        f'<span class="number">{seconds:.0f} s</span></li>'
        for phase, seconds in spent.items()
    ]
    words = f"{total:.0f} s were used."
    if overview.budget_s:
        words = f"{total:.0f} s of a budget of {overview.budget_s:.0f} s were used ({100 * total / overview.budget_s:.0f} %)."
    return f'<h3>How the time was spent</h3><p>{words}</p><ul class="bars">{"".join(lines)}</ul>'


def _find(overview: Overview, wanted: str) -> Candidate | None:
    return next((one for one in overview.candidates if one.name == wanted), None)


def _called(one: Candidate) -> str:
    return f"{one.name} with {one.head}" if one.head else one.name


def _best_first(candidates: list[Candidate]) -> list[Candidate]:
    """By the mean of both validation scores, so that the sentence does not depend on which score was chosen by."""
    return sorted(
        candidates, key=lambda one: -(one.validation.acc + one.validation.mcr if one.validation else -1.0)
    )


def _against(overview: Overview, chosen: Candidate, other: Candidate, called: str) -> str:
    """A sentence that compares another candidate with the chosen one: on test where both were scored there."""
    found = [one for one in overview.differences if one.against == other.name]
    found.sort(key=lambda one: one.images != "test")
    if found:
        return f"{called} {_distance(found[0])}."
    pairs = ((chosen.test, other.test, "test"), (chosen.validation, other.validation, "validation"))
    for mine, its, where in pairs:
        if mine and its:
            suffix = ""
            if other.name in overview.equal:
                suffix = ", which is equal within noise on validation"
            return f"{called} reaches {percent(its.acc)} % and {percent(its.mcr)} % on the {where} images{suffix}."
    return f"{called} has no score on the same images."


def _distance(difference: Difference) -> str:
    """`is 9.4 points of accuracy lower (3.1 to 15.0) …, or is equal within noise."""
    words = []
    for value, interval, what in (
        (difference.acc, difference.acc_interval, "accuracy"),
        (difference.mcr, difference.mcr_interval, "mean class recall"),
    ):
        side = "lower" if value >= 0 else "higher"
        ends = sorted((interval[0], interval[1]) if value >= 0 else (-interval[1], -interval[0]))
        words.append(
            f"{percent(abs(value))} points {side} in {what} ({percent(ends[0])} to {percent(ends[1])})"
        )
    low_high = (difference.acc_interval, difference.mcr_interval)
    is_noise = all(low <= 0 <= high for low, high in low_high)
    end = "; both intervals include 0, so the two are equal within noise" if is_noise else ""
    if difference.images == "test" and not end and difference.acc < 0 and difference.mcr < 0:
        end = "; it was not chosen, since nothing is chosen on test images"
    return f"is {words[0]} and {words[1]} on the {difference.images} images{end}"


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f" (95 % interval {percent(interval[0])} to {percent(interval[1])})"
