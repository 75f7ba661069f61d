"""What pictures share: colours, tiles, the names of runs, and writing the file."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fsl_dist.data.pixels import MAX_PIXELS, Encoded, find_excess_pixels, open_upright
from fsl_dist.errors import RequestError
from index.base.files import write_atomic

# Distinguishable for colour-blind readers (Okabe & Ito).
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#e69f00", "#009e73", "#cc79a7"
INK, GRID, PAPER = (40, 40, 40), (215, 215, 215), (255, 255, 255)


def check_png(out: Path) -> None:
    """Raise RequestError unless `out` ends in .png; call it before any work is done."""
    if out.suffix != ".png":
        raise RequestError(f"out={out} must end in .png")


def name_runs(runs: Sequence[Path]) -> list[str]:
    """Names of `runs` in a picture: each folder's name, with as many parent folders as make the names unique.

    Raises RequestError if a folder occurs twice.
    """
    paths = [Path(os.path.abspath(run)) for run in runs]
    for run, path in zip(runs, paths, strict=True):
        if paths.count(path) > 1:
            raise RequestError(f"{run} is named twice; a picture compares different runs")
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return ["/".join(path.parts[-depth:]) for path in paths]


def fit_text(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, truncated to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def paste_tile(sheet: Image.Image, encoded: Encoded | None, left: int, top: int, side: int) -> None:
    """Draw an encoded image into the square of `side` pixels at (`left`, `top`) and keep its aspect ratio.

    An image that is None or unusable is drawn as a crossed square.
    """
    tile = None if encoded is None else _make_tile(encoded, side)
    if tile is not None:
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
        return
    draw, right, bottom = ImageDraw.Draw(sheet), left + side - 1, top + side - 1
    draw.rectangle((left, top, right, bottom), GRID)
    draw.line((left, top, right, bottom), INK)
    draw.line((left, bottom, right, top), INK)


def _make_tile(encoded: Encoded, side: int) -> Image.Image | None:
    """The image within `side` pixels; None if it is unusable."""
    if find_excess_pixels(encoded, MAX_PIXELS):
        return None
    try:
        image = open_upright(encoded)
    except Exception:  # PIL raises a dozen types for damaged images
        return None
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST)


def write_picture(picture: Image.Image, out: Path) -> None:
    """Write a PIL image, and its folder if that is missing."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    _write(buffer, out)


def write_figure(figure: Any, out: Path) -> None:
    """Write a matplotlib figure, and its folder if that is missing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    _write(buffer, out)


def _write(buffer: io.BytesIO, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, buffer.getvalue())
