"""A picture of prototypes: one panel for each class (PCN Figs. 2, 7, 8)."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.plots.picture_files import GRID, INK, PAPER, check_png, fit_text, paste_tile, write_picture
from fsl_dist.plots.prototype_examples import (
    QUERIES_A_CLASS,
    ClassExample,
    QueryExample,
    choose_labels,
    gather_examples,
)
from fsl_dist.plots.run_draws import open_embedded

GREEN, RED, _BAR = (0, 140, 70), (205, 40, 30), (0, 114, 178)
EDGE, _LINE, _FRAME = 16, 20, 4
_PROTOTYPE, _QUERY = 72, 88
# A prototype's place under a query: its bar, and below that its image.
_SLOT, _SMALL, _BARS = 38, 34, 60
_LEAST_BLOCK = 200


@dataclass(frozen=True, slots=True)
class PrototypePicture:
    """Description of a plot of a run's prototypes."""

    run: str
    dataset: str
    split: str
    """split of the base classes' queries: test, otherwise val"""
    out: str
    draw: int
    temperature: float
    """τ of the responsibilities"""
    classes: list[ClassExample]


def plot_prototypes(
    run: Path,
    out: Path,
    *,
    classes: Sequence[str] = (),
    draw: int = 0,
    settings: EvaluationConfig | None = None,
) -> PrototypePicture:
    """Show prototypes of some classes by images, and how test images are assigned to them; write `out`, a PNG.

    classes: names, by default the 4 largest base and 2 largest novel ones. draw: number of a draw of novel images in
    `evaluate`. settings: override the run's `evaluation.*`. Deterministic.

    Raises RequestError for a run of another method than pcn, an unknown class, or a draw that `evaluate` does not have.
    """
    check_png(out)
    with open_embedded(run, settings) as embedded:
        catalogue, temperature = embedded.catalogue, embedded.temperature
        draws = embedded.config.evaluation.draws
        if not 0 <= draw < draws:
            raise RequestError(f"draw={draw} is outside 0 … {draws - 1} (evaluation.draws={draws})")
        labels = choose_labels(catalogue, classes)
        examples = gather_examples(embedded.draw(draw), catalogue, labels, temperature)
        store = ShardStore(catalogue)
        write_picture(draw_examples(examples, store), out)
        store.close()
        return PrototypePicture(
            str(run),
            embedded.config.data.dataset,
            embedded.query_split,
            str(out),
            draw,
            temperature,
            examples,
        )


def draw_examples(examples: Sequence[ClassExample], store: ShardStore) -> Image.Image:
    """A panel below another: the class, its prototypes' images, and its queries with bars of responsibility."""
    most = max(
        len(nearest)
        for example in examples
        for nearest in (example.nearest, *(q.nearest for q in example.queries))
    )
    block = max(_LEAST_BLOCK, most * _SLOT) + EDGE
    width = EDGE + max(QUERIES_A_CLASS * block, most * (_PROTOTYPE + 6))
    panel = _LINE * 2 + _PROTOTYPE + EDGE + _QUERY + 2 * _FRAME + _LINE + _BARS + _SMALL + 2 * EDGE
    sheet = Image.new("RGB", (width, EDGE + panel * len(examples)), PAPER)
    draw = ImageDraw.Draw(sheet)
    font, heading = ImageFont.load_default(14), ImageFont.load_default(18)
    for number, example in enumerate(examples):
        top = EDGE + number * panel
        if number:
            draw.line((EDGE, top - EDGE, width - EDGE, top - EDGE), GRID)
        draw.text((EDGE, top), fit_text(example.name, heading, width - 2 * EDGE), INK, heading)
        made_from = f"{example.num_images} {'support' if example.is_novel else 'training'} images"
        kind = "novel" if example.is_novel else "base"
        count = f"{len(example.nearest)} prototype{'s' * (len(example.nearest) > 1)}"
        draw.text((EDGE, top + _LINE + 2), f"{kind} class: {count} of {made_from}", INK, font)
        top += 2 * _LINE + 4
        for place, sample in enumerate(example.nearest):
            paste_sample(sheet, store, sample, EDGE + place * (_PROTOTYPE + 6), top, _PROTOTYPE)
        top += _PROTOTYPE + EDGE
        if not example.queries:
            draw.text((EDGE, top), "no test image", INK, font)
        for place, query in enumerate(example.queries):
            _draw_query(sheet, store, query, EDGE + place * block, top, block - EDGE)
    return sheet


def _draw_query(
    sheet: Image.Image, store: ShardStore, query: QueryExample, left: int, top: int, width: int
) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    colour = GREEN if query.is_right else RED
    side = _QUERY + 2 * _FRAME
    draw.rectangle((left, top, left + side - 1, top + side - 1), colour)
    draw.rectangle(
        (left + _FRAME, top + _FRAME, left + _FRAME + _QUERY - 1, top + _FRAME + _QUERY - 1), PAPER
    )
    paste_sample(sheet, store, query.id, left + _FRAME, top + _FRAME, _QUERY)
    said = "right" if query.is_right else f"taken for {query.predicted}"
    draw.text((left, top + side + 3), fit_text(said, font, width), colour, font)
    floor = top + side + _LINE + _BARS
    draw.line((left, floor, left + len(query.nearest) * _SLOT, floor), GRID)
    for place, (share, sample) in enumerate(zip(query.responsibilities, query.nearest, strict=True)):
        x = left + place * _SLOT
        height = round(share * (_BARS - 16))
        if height:
            draw.rectangle((x + 6, floor - height, x + _SMALL - 6, floor), _BAR)
        if share >= 0.005:
            draw.text(
                (x + _SMALL // 2, floor - height - 2),
                f"{share * 100:.0f}",
                INK,
                ImageFont.load_default(12),
                anchor="mb",
            )
        paste_sample(sheet, store, sample, x, floor + 4, _SMALL)


def paste_sample(sheet: Image.Image, store: ShardStore, sample: int, left: int, top: int, side: int) -> None:
    """Paste a sample's image into a square; a damaged one leaves its place marked."""
    (encoded,), mismatched = store.read_compared(np.array([sample]))
    paste_tile(sheet, None if mismatched else encoded, left, top, side)
    ImageDraw.Draw(sheet).rectangle((left - 1, top - 1, left + side, top + side), outline=GRID)
