"""The page of explanations: one HTML file that contains its images and loads nothing."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.evaluation.evidence import Evidence, Result, Vote
from fsl_dist.plots.html_page import png_image, render_page
from fsl_dist.plots.map_overlay import DIMMING, ramp, range_text, tint
from fsl_dist.predicting import ScoredClass

# Images up to this side are shown with their pixels as squares; larger ones are smoothed by the browser.
_PIXELATED_SIDE = 64
_ORDERS = {
    "l2": "Euclidean distance, smallest first",
    "cosine": "cosine, largest first",
    "inner_product": "inner product, largest first",
}


@dataclass(frozen=True, slots=True)
class PageFacts:
    """Information about the run on the page."""

    run: str
    method: str
    backbone: str
    dataset: str
    checkpoint: str
    num_gallery: int
    image_size: int
    has_maps: bool
    metric: str
    head: str = ""
    """what answers in place of the vote; empty where the vote is the answer"""


def render_evidence(facts: PageFacts, named: Sequence[tuple[str, Evidence, ScoredClass | None]]) -> str:
    """Render an HTML page with a section per image; `named`:
    (name of the image, its evidence, the answer if not by the vote).

    It needs no script and no other file; its content security policy forbids loading anything.
    """
    sections = "\n".join(
        _render_section(name, evidence, said, facts, number)
        for number, (name, evidence, said) in enumerate(named, 1)
    )
    title = named[0][0] if len(named) == 1 else f"{len(named)} images"
    body = f"""<header>
<h1>Evidence from training images</h1>
<p>The {facts.num_gallery:,} training images were compared with each image below. The nearest ones vote, one vote each.</p>
{_render_legend(facts)}
</header>
<main>
{sections}
</main>
<footer>
<dl>
{_render_facts(facts)}
</dl>
</footer>"""
    return render_page(f"Evidence: {title}", body, _style())


def _render_legend(facts: PageFacts) -> str:
    if not facts.has_maps:
        return ""
    colours = png_image(_png(ramp()), "from grey over purple to yellow", "ramp")
    return f"""<div class="legend">
<p>Activation maps colour the places that the distance between your image and a training image comes from, on either:</p>
<p class="scale"><span>little</span>{colours}<span>most</span></p>
<p class="note">Every map is scaled to its own lowest and highest value (Eq. 2 of Codella et al., CHAI), which are given
below it.</p>
</div>"""


def _render_facts(facts: PageFacts) -> str:
    rows = [
        ("Run", facts.run),
        ("Checkpoint", facts.checkpoint),
        ("Method", facts.method),
        ("Network", facts.backbone),
        ("Data set", facts.dataset),
        *([("Head", facts.head)] if facts.head else []),
        ("Order", _ORDERS[facts.metric]),
        ("Shown", f"the {facts.image_size} × {facts.image_size} px that the network sees of each image"),
    ]
    return "\n".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in rows)


def _render_section(
    name: str, evidence: Evidence, said: ScoredClass | None, facts: PageFacts, number: int
) -> str:
    votes, k = evidence.votes, len(evidence.results)
    answer = votes[0]
    cards = "\n".join(
        _render_card(rank, result, evidence, answer.name) for rank, result in enumerate(evidence.results, 1)
    )
    bars = "\n".join(_render_vote(vote, k, vote is answer) for vote in votes)
    layer = "" if evidence.layer is None else f" {escape(evidence.layer.note)}"
    return f"""<section aria-labelledby="image-{number}">
<div class="top">
<figure class="query">{_image(evidence.pixels, f"the image {name}")}</figure>
<div>
<h2 id="image-{number}">{escape(name)}</h2>
{_render_verdict(answer, said, k, facts)}
<ul class="votes">
{bars}
</ul>
</div>
</div>
<h3>Nearest training images</h3>
<p class="note">Those with a blue edge vote for {escape(answer.name)}.{layer}</p>
<ol class="results{"" if facts.has_maps else " plain"}">
{cards}
</ol>
</section>"""


def _render_verdict(vote: Vote, said: ScoredClass | None, k: int, facts: PageFacts) -> str:
    """The answer, and whether the nearest training images agree with it."""
    if said is None:
        return f'<p class="verdict"><strong>{escape(vote.name)}</strong> by {vote.count} of {k} votes</p>'
    by = f"head {facts.head}" if facts.head else "training and added classes"
    measure = f"probability {said.score * 100:.0f} %" if facts.head else f"score {said.score * 100:.0f} %"
    lines = f'<p class="verdict"><strong>{escape(said.name)}</strong>, {measure} ({escape(by)})</p>'
    if said.name == vote.name:
        return f'{lines}\n<p class="note">The nearest training images agree: {vote.count} of {k} votes.</p>'
    why = (
        " That class was added without training, so no training image belongs to it." if said.is_novel else ""
    )
    return (
        f'{lines}\n<p class="note disputed">The nearest training images disagree: {vote.count} of {k} vote for '
        f"{escape(vote.name)}.{why}</p>"
    )


def _render_vote(vote: Vote, k: int, is_answer: bool) -> str:
    kind = ' class="answer"' if is_answer else ""
    return (
        f'<li{kind}><span class="name">{escape(vote.name)}</span>'
        f'<span class="bar"><span style="width:{vote.share * 100:.1f}%"></span></span>'
        f'<span class="count">{vote.count} of {k} ({vote.share * 100:.0f} %)</span></li>'
    )


def _render_card(rank: int, result: Result, evidence: Evidence, answer: str) -> str:
    figures = [_figure(_image(result.pixels, f"training image {rank}, {result.key}"), "training image")]
    note = (
        '<p class="note">The network sees no difference between the two images.</p>' if result.is_same else ""
    )
    if result.query_map is not None and result.result_map is not None:
        figures += [
            _figure(
                _mapped(result.pixels, result.result_map, "activation map of the training image"),
                f"its map, {range_text(result.result_map, len(result.pixels))}",
            ),
            _figure(
                _mapped(evidence.pixels, result.query_map, "activation map of your image"),
                f"your image's map, {range_text(result.query_map, len(result.pixels))}",
            ),
        ]
        if not result.query_map.any():
            note = (
                '<p class="note">The network sees no difference between the two, so the maps are empty.</p>'
            )
    group = f'<span class="group">group {escape(result.group)}</span>' if result.group else ""
    return f"""<li class="{"agrees" if result.label == answer else "differs"}">
<p class="label"><span class="rank">{rank}</span><strong>{escape(result.label)}</strong>{group}</p>
<div class="figures">{"".join(figures)}</div>
{note}
<p class="detail"><span>{result.distance_text}</span><span>{escape(result.key)}</span></p>
</li>"""


def _figure(image: str, caption: str) -> str:
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _mapped(pixels: NDArray[np.uint8], plane: NDArray[np.float64], alt: str) -> str:
    colours = png_image(_png(tint(plane, len(pixels))), "", "map")
    return f'<div class="mapped">{_image(pixels, alt)}{colours}</div>'


def _image(pixels: NDArray[np.uint8], alt: str) -> str:
    kind = "photo pixelated" if len(pixels) <= _PIXELATED_SIDE else "photo"
    return png_image(_png(Image.fromarray(pixels)), alt, kind)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _style() -> str:
    return _STYLE.replace("DIMMING", str(DIMMING))


_STYLE = """
h2 { margin: 0; color: var(--muted); font-weight: 500; }
h3 { margin: 1.5rem 0 0; }
p, ul, ol, dl, dd, figure { margin: 0; padding: 0; }
ul, ol { list-style: none; }
header > p { color: var(--muted); max-width: 44rem; }
.legend { margin-top: 1rem; max-width: 44rem; }
.scale { display: flex; align-items: center; gap: .6rem; margin: .35rem 0; font-size: .875rem; color: var(--muted); }
.ramp { width: 12rem; height: .8rem; border-radius: .4rem; background: var(--under); }
.note { font-size: .875rem; color: var(--muted); }
.disputed { border-left: 4px solid var(--quiet); padding-left: .6rem; margin-bottom: .6rem; color: inherit; }
section { margin-top: 2rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.top { display: grid; grid-template-columns: 16rem 1fr; gap: 1.5rem; align-items: start; }
.verdict { font-size: 1.35rem; line-height: 1.3; margin: .15rem 0 1rem; }
.votes li { display: grid; grid-template-columns: minmax(6rem, 14rem) minmax(4rem, 22rem) auto; gap: .3rem .8rem;
  align-items: center; padding: .2rem 0; }
.bar { height: .7rem; border-radius: .35rem; background: var(--line); overflow: hidden; }
.bar span { display: block; height: 100%; background: var(--quiet); }
.answer .bar span { background: var(--accent); }
.answer .name { font-weight: 600; }
.count { font-size: .875rem; color: var(--muted); white-space: nowrap; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1rem;
  margin-top: .6rem; }
.results.plain { grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); }
.results li { padding: .8rem; background: var(--card); border: 1px solid var(--line); border-top: 4px solid var(--quiet);
  border-radius: .5rem; }
.results li.agrees { border-top-color: var(--accent); }
.label { display: flex; flex-wrap: wrap; align-items: baseline; gap: .15rem .6rem; }
.rank { min-width: 1.5rem; padding: 0 .35rem; text-align: center; border-radius: .75rem; background: var(--line);
  font-size: .875rem; }
.group { font-size: .875rem; color: var(--muted); }
.figures { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .5rem; margin: .6rem 0; }
figcaption { font-size: .8125rem; line-height: 1.3; color: var(--muted); margin-top: .2rem; }
.photo, .map { display: block; width: 100%; aspect-ratio: 1; border-radius: .25rem; }
.pixelated { image-rendering: pixelated; }
.mapped { position: relative; }
.mapped .photo { filter: grayscale(1) brightness(DIMMING); }
.map { position: absolute; inset: 0; }
.detail { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; font-size: .8125rem;
  color: var(--muted); }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--line); font-size: .875rem; color: var(--muted); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .5rem 1.5rem; }
dt { font-weight: 600; }
@media (max-width: 40rem) {
  .top { grid-template-columns: 1fr; gap: 1rem; }
  .query { max-width: 16rem; }
  .votes li { grid-template-columns: 1fr auto; }
  .votes .bar { grid-column: 1 / -1; grid-row: 2; }
}
@media print { .results li { break-inside: avoid; } }
"""
