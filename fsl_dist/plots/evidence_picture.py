"""Evidence as pictures: an image, its nearest training images, and both activation maps of each pair."""

import textwrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.evaluation.evidence import Evidence, Result
from fsl_dist.plots.map_overlay import overlay
from fsl_dist.plots.picture_files import fit_text
from fsl_dist.predicting import ScoredClass

INK, MUTED, GRID, PAPER = (40, 40, 40), (105, 105, 105), (215, 215, 215), (255, 255, 255)
AGREES, DIFFERS = (0, 114, 178), (230, 159, 0)
TILE, GAP, EDGE, LINE = 144, 16, 16, 18
_FRAME = 4


def draw_evidence(name: str, evidence: Evidence, answer: ScoredClass | None = None) -> Image.Image:
    """One row: the image, then its results with label, group and distance;
    below each its RAM, and the QAM of the image.

    answer: the predicted class, if it is not that of the vote.
    """
    results, votes = evidence.results, evidence.votes
    has_maps = results[0].query_map is not None
    width = 2 * EDGE + (1 + len(results)) * (TILE + GAP) - GAP
    head = 2 * LINE + 14
    below = EDGE + head + TILE + 2 * _FRAME + 3 * LINE + GAP
    sheet = Image.new("RGB", (width, below + (2 * (TILE + GAP) if has_maps else 0) + EDGE), PAPER)
    draw = ImageDraw.Draw(sheet)
    said = ", ".join(f"{vote.name} {vote.count} of {len(results)}" for vote in votes)
    write(draw, name, EDGE, EDGE, width - 2 * EDGE, size=16)
    if answer is not None:
        said = f"{said}; answer: {answer.name} {answer.score:.2f}"
    write(draw, f"vote: {said}", EDGE, EDGE + LINE + 4, width - 2 * EDGE)
    top = EDGE + head
    paste(sheet, evidence.pixels, EDGE, top + _FRAME)
    write(draw, "the image", EDGE, top + TILE + 2 * _FRAME + 2, TILE)
    for place, result in enumerate(results, 1):
        left = EDGE + place * (TILE + GAP)
        draw_result(sheet, result, left, top, is_same=result.label == votes[0].name)
        write(draw, result.distance_text, left, top + TILE + 2 * _FRAME + 2 + 2 * LINE, TILE)
        if result.query_map is not None and result.result_map is not None:
            paste(sheet, np.asarray(overlay(result.pixels, result.result_map)), left, below)
            paste(sheet, np.asarray(overlay(evidence.pixels, result.query_map)), left, below + TILE + GAP)
    if has_maps:
        for row, text in enumerate(("map over the training image", "map over the image")):
            for line, words in enumerate(textwrap.wrap(text, 18)):
                write(draw, words, EDGE, below + row * (TILE + GAP) + line * LINE, TILE)
    return sheet


def draw_result(sheet: Image.Image, result: Result, left: int, top: int, *, is_same: bool) -> None:
    """A framed training image with its class and group below: blue where it `is_same`, else orange."""
    draw, colour = ImageDraw.Draw(sheet), AGREES if is_same else DIFFERS
    draw.rectangle((left - _FRAME, top, left + TILE + _FRAME - 1, top + TILE + 2 * _FRAME - 1), colour)
    paste(sheet, result.pixels, left, top + _FRAME)
    text = top + TILE + 2 * _FRAME + 2
    write(draw, result.label, left, text, TILE)
    write(draw, result.group, left, text + LINE, TILE, colour=MUTED)


def paste(sheet: Image.Image, pixels: NDArray[np.uint8], left: int, top: int, side: int = TILE) -> None:
    """Paste an image (uint8 [S, S, 3]) as a square of `side` pixels:
    enlarged by nearest neighbour, reduced by averaging."""
    resample = Image.Resampling.BOX if len(pixels) >= side else Image.Resampling.NEAREST
    sheet.paste(Image.fromarray(pixels).resize((side, side), resample), (left, top))


def write(
    draw: ImageDraw.ImageDraw,
    text: str,
    left: int,
    top: int,
    width: int,
    *,
    size: int = 13,
    colour: tuple[int, int, int] = INK,
) -> None:
    """One line of text, truncated to `width` pixels."""
    font = ImageFont.load_default(size)
    draw.text((left, top), fit_text(text, font, width), colour, font)
