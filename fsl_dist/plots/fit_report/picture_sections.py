"""Sheets of pictures: mistakes with their nearest training images, and labels that are likely wrong."""

from html import escape

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.plots.fit_report.inputs import LabelError, LabelFacts, Mistake, Mistakes
from fsl_dist.plots.fit_report.markup import count, details, in_brackets, name, percent, table
from fsl_dist.plots.fit_report.pictures import Thumbnails

_SHOWN_ERRORS = 36
_LISTED_ERRORS = 300


def render_mistakes(mistakes: Mistakes, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    """The mistakes of highest confidence, HTML."""
    if not mistakes.shown:
        return "<p>There are no mistakes.</p>"
    cards = "".join(_render_mistake(one, mistakes.measure, catalogue, thumbnails) for one in mistakes.shown)
    which = f"All {count(mistakes.number, 'mistake')}, the surest answers first."
    if len(mistakes.shown) < mistakes.number:
        which = (
            f"The {len(mistakes.shown)} of {count(mistakes.number, 'mistake')} that the model is surest of."
        )
    return (
        f"<p>{which} Next to each are the nearest training images by its network, with their "
        f"{escape(mistakes.measure)}: a solid edge where the "
        "training image has the predicted class, a dashed edge where it has another. Where all neighbours look "
        "like the image and have its answer, check the label.</p>"
        f'<ol class="cards wider">{cards}</ol>'
    )


def _render_mistake(mistake: Mistake, measure: str, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    label, answer = catalogue.label_name(mistake.label), catalogue.label_name(mistake.predicted)
    (key,) = catalogue.keys([mistake.id])
    photos = [
        f'<li class="first">{thumbnails.image(mistake.id, f"{key}, class {label}")}<span>this image</span></li>'
    ]
    for near in mistake.neighbours:
        kind = "agrees" if near.label == mistake.predicted else "differs"
        its = catalogue.label_name(near.label)
        words = f"training image of {its}, {measure} {near.distance:.3g}"
        photos.append(
            f'<li class="{kind}">{thumbnails.image(near.id, words)}{name(its)}<span>{near.distance:.3g}</span></li>'
        )
    return (
        f'<li><p>labelled <span class="mark is-right">{name(label)}</span> {in_brackets(mistake.own)}, answered '
        f'<span class="mark is-wrong">{name(answer)}</span> {in_brackets(mistake.confidence)}</p>'
        f'<p class="key">{name(key)}</p><ul class="photos">{"".join(photos)}</ul></li>'
    )


def render_labels(labels: LabelFacts, catalogue: Catalogue, thumbnails: Thumbnails, file: str) -> str:
    """Likely label errors as a sheet of pictures; `file` is the table with all of them. HTML."""
    number = len(labels.errors)
    parts = [
        f"<p>{count(number, 'label')} {'is' if number == 1 else 'are'} worth a check: another class is at least "
        f"{labels.odds:g} times as probable as the label. "
        f"{count(labels.num_judged, 'image')} of training and validation were checked by {escape(labels.method)} "
        f"on the features of the frozen network, each by a fit that had not seen it; {percent(labels.acc)} % of "
        "the labels were its first prediction. The lower that share, the more "
        "of the list is correct: it includes rare views and mixed pictures, so look before you correct.</p>",
        '<p class="note">In measurements with 5 % of the labels changed at random, such lists contained 91 to 96 '
        "% of the changed labels, and 56 to 94 % of "
        "their entries were changed ones; with labels changed to the most similar class, 48 to 68 % and 42 to 92 "
        "%. A star marks images that confident learning marks as well (Northcutt et al. 2021, Eq. 1).</p>",
    ]
    if labels.not_judged:
        some = ", ".join(catalogue.label_name(label) for label in labels.not_judged[:5])
        more = f" and {len(labels.not_judged) - 5} more" if len(labels.not_judged) > 5 else ""
        parts.append(
            f"<p>{count(len(labels.not_judged), 'class', 'classes')} could not be checked, since they have one "
            f"image or one group each: {escape(some + more)}.</p>"
        )
    if not number:
        return "\n".join([*parts, "<p>No label is listed.</p>"])
    cards = "".join(
        _render_error(place, one, catalogue, thumbnails)
        for place, one in enumerate(labels.errors[:_SHOWN_ERRORS], 1)
    )
    parts.append(f'<ol class="cards">{cards}</ol>')
    keys = catalogue.keys([one.id for one in labels.errors[:_LISTED_ERRORS]])
    rows = [
        [
            key,
            catalogue.label_name(one.label),
            catalogue.label_name(one.suggested),
            percent(one.own),
            percent(one.probability),
        ]
        for key, one in zip(keys, labels.errors[:_LISTED_ERRORS], strict=True)
    ]
    head = ["image", "label", "suggested", "label %", "suggested %"]
    parts.append(
        details(
            f"Table of {min(number, _LISTED_ERRORS):,} likely label errors",
            table("Likely label errors", head, rows),
        )
    )
    arguments = f'"{catalogue.folder}", table="{file}", key_column="key", label_column="suggested"'
    call = f"fsl_dist.resplit({arguments})"
    parts.append(
        f"<p><code>{escape(file)}</code> has all images of the data set, the likely errors first. Put the label "
        "back in its column <code>suggested</code> where you disagree. Then write a corrected version of the data "
        "set, over the same shards:</p>"
        f'<pre tabindex="0">{escape(call)}</pre>'
    )
    return "\n".join(parts)


def _render_error(place: int, error: LabelError, catalogue: Catalogue, thumbnails: Thumbnails) -> str:
    label, suggested = catalogue.label_name(error.label), catalogue.label_name(error.suggested)
    (key,) = catalogue.keys([error.id])
    star = ' <abbr title="marked by confident learning as well">★</abbr>' if error.is_confident else ""
    return (
        f'<li><div class="photos"><div class="first">{thumbnails.image(error.id, f"{key}, labelled {label}")}</div>'
        f'<div class="words"><p><strong>{place}</strong>{star}</p>'
        f'<p>label <span class="mark">{name(label)}</span> {in_brackets(error.own)}</p>'
        f'<p>suggested <span class="mark is-wrong">{name(suggested)}</span> {in_brackets(error.probability)}</p>'
        f'</div></div><p class="key">{name(key)}</p></li>'
    )
