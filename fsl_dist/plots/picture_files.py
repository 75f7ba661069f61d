"""What pictures share: where they go, and what they call runs."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageFont

from fsl_dist.errors import RequestError
from index.base.files import write_atomic

# Told apart by the colour-blind too (Okabe & Ito).
BLUE, ORANGE = "#0072b2", "#e69f00"


def check_png(out: Path) -> None:
    """RequestError unless `out` ends in .png; to be asked before work is done."""
    if out.suffix != ".png":
        raise RequestError(f"--out {out} must end in .png")


def name_runs(runs: Sequence[Path]) -> list[str]:
    """What a picture calls `runs`: each folder's name, with as many of the folders above it as tell them apart.

    Raises RequestError where a folder is named twice.
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
    """`text`, cut where it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def write_picture(picture: Image.Image, out: Path) -> None:
    """Write a PIL image, its folder made where it is not there."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    _write(buffer, out)


def write_figure(figure: Any, out: Path) -> None:
    """Write a matplotlib figure, its folder made where it is not there."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    _write(buffer, out)


def _write(buffer: io.BytesIO, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, buffer.getvalue())
