"""A plot of a run's embeddings in two dimensions by t-SNE (deep kNN Fig. S1)."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fsl_dist.errors import RequestError
from fsl_dist.plots.picture_files import INK, PAPER, check_png, name_runs, write_picture
from fsl_dist.seeding import generator
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import open_trained

_SIDE, _EDGE, _LEGEND, _ROW = 900, 20, 220, 22
# More names than fit next to the plot are left out.
_NAMES = (_SIDE - 2 * _EDGE) // _ROW
_GOLDEN = 0.618034
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class TSNEPanel:
    """One run's images in the plane."""

    run: str
    dataset: str
    split: str
    num_images: int
    num_classes: int


@dataclass(frozen=True, slots=True)
class TSNEPicture:
    """Description of a plot of runs' embeddings."""

    out: str
    panels: list[TSNEPanel]
    """from left to right, in the order of the runs"""


def plot_runs(
    runs: Sequence[Path], out: Path, *, split: str | None = None, max_images: int = 5000
) -> TSNEPicture:
    """Embed images of `split` (test, otherwise val) with each run's best network, project them by t-SNE, and write
    `out`, a PNG.

    More than `max_images` images are subsampled by the run's seed, on which the layout also depends. Raises
    RequestError if the split has fewer than two images.
    """
    check_png(out)
    drawn = [_draw_run(run, name, split, max_images) for run, name in zip(runs, name_runs(runs), strict=True)]
    sheet = Image.new("RGB", (sum(picture.width for _, picture in drawn), _SIDE), PAPER)
    left = 0
    for _, picture in drawn:
        sheet.paste(picture, (left, 0))
        left += picture.width
    write_picture(sheet, out)
    return TSNEPicture(str(out), [panel for panel, _ in drawn])


def _draw_run(run: Path, name: str, split: str | None, max_images: int) -> tuple[TSNEPanel, Image.Image]:
    trained = open_trained(run)
    catalogue, seed = trained.catalogue, trained.config.run.seed
    split = split or split_run(catalogue, trained.config).query_split
    if split not in catalogue.split_names or len(ids := catalogue.select(split).ids) < 2:
        raise RequestError(
            f"data.dataset={trained.config.data.dataset} has no two images in split {split or 'test or val'} (it has "
            f"{', '.join(catalogue.split_names)}; split=… names one)"
        )
    if len(ids) > max_images:
        ids = np.sort(generator(seed, "tsne").choice(ids, max_images, replace=False))
    vectors = trained.embedder.embed(ids)
    trained.embedder.source.close()
    labels = catalogue.labels[ids]
    shown = np.unique(labels)
    names = [catalogue.label_name(int(label)) for label in shown]
    picture = draw_points(lay_out(vectors, seed), np.searchsorted(shown, labels), names)
    ImageDraw.Draw(picture).text((_EDGE, 2), f"{name}, {split}", INK, ImageFont.load_default(14))
    return TSNEPanel(str(run), trained.config.data.dataset, split, len(ids), len(shown)), picture


def lay_out(vectors: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """t-SNE of `vectors` (float32 [n, dim], n ≥ 2) by Euclidean distance: float32 [n, 2], deterministic in the seed.

    Perplexity 30, or a third of the other images if there are fewer than 91. Costs about n·log n: some 10 s for 2,000
    images on one core.
    """
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # Principal components are a better start, if there are two of them.
    init = "pca" if min(vectors.shape) >= 2 else "random"
    return TSNE(perplexity=perplexity, init=init, random_state=seed).fit_transform(vectors)


def draw_points(places: NDArray[np.floating], classes: NDArray[np.int64], names: list[str]) -> Image.Image:
    """A dot at each of `places` (float [n, 2]) in the colour of its class (int64 [n], positions in `names`),
    and a legend."""
    colours = class_colours(len(names))
    image = Image.new("RGB", (_SIDE + _LEGEND, _SIDE), PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled = (places - low) / np.maximum(high - low, 1e-12)
    pixels = _EDGE + scaled * (_SIDE - 2 * _EDGE)
    radius = 2 if len(places) > 2000 else 3
    for (x, y), position in zip(pixels.tolist(), classes.tolist(), strict=True):
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[position])
    if len(names) > _NAMES:
        draw.text((_SIDE, _EDGE), f"{len(names)} classes", INK, font)
        return image
    for row, (name, colour) in enumerate(zip(names, colours, strict=True)):
        y = _EDGE + row * _ROW
        draw.rectangle((_SIDE, y, _SIDE + 12, y + 12), colour)
        draw.text((_SIDE + 20, y + 6), name if len(name) <= 24 else name[:23] + "…", INK, font, anchor="lm")
    return image


def class_colours(num: int) -> list[Colour]:
    """`num` different colours, neighbours in the list far apart in hue."""
    colours = []
    for position in range(num):
        value = (0.85, 0.6, 0.95)[position % 3]
        red, green, blue = colorsys.hsv_to_rgb(position * _GOLDEN % 1.0, 0.75, value)
        colours.append((round(red * 255), round(green * 255), round(blue * 255)))
    return colours
