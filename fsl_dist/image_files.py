"""Images from outside a data set: files, PIL images and arrays, decoded with a run's test transform."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, Union

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.decode import Decoder, make_decoder
from fsl_dist.data.formats.completeness import find_gap
from fsl_dist.data.formats.depth import WAY_OUT, PixelRange
from fsl_dist.data.images import encode_png, explain, scale_encoded
from fsl_dist.data.names.readings import printable
from fsl_dist.data.pixels import find_excess_pixels, upright_in_memory
from fsl_dist.embedder import Embedder
from fsl_dist.errors import RequestError, UndecodableError

ImageLike: TypeAlias = Union[str, "os.PathLike[str]", Image.Image, NDArray[np.uint8]]
"""path of an image file, PIL image, or uint8 array [H, W], [H, W, 1] or [H, W, 3] (RGB)"""

_OUTSIDE_WAY_OUT = (
    "the run's data set was packed without pixel_range, which would scale it; convert it to 8 or 16 bits as the "
    "images of the data set are"
)


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be used."""

    image: str
    reason: str


@dataclass(frozen=True, slots=True)
class NamedImage:
    """An image with its name in errors and results: its path, or its position in the argument."""

    name: str
    content: Path | bytes | Image.Image
    """the file, its content, or the image in memory"""


def name_images(images: Sequence[ImageLike], called: str = "images") -> list[NamedImage]:
    """Name images. Images in memory become PNG files when they are read, so that they are decoded like files.

    Args:
        images: paths, PIL images and arrays, in any mixture; or one uint8 array [n, H, W, C] of n images.
        called: name of the argument; an image in memory is named `images[3]`.

    Returns:
        One entry per image.

    Raises:
        RequestError: an item is not an image, or an array has another shape or dtype.
    """
    if isinstance(images, str | os.PathLike | Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim < 4
    ):
        raise RequestError(f"{called} must be a list of images; put a single one in brackets: [image]")
    return [_name(image, f"{called}[{position}]") for position, image in enumerate(images)]


def _name(image: ImageLike, place: str) -> NamedImage:
    if isinstance(image, str | os.PathLike):
        return NamedImage(printable(str(image)), Path(image))
    if isinstance(image, np.ndarray):
        is_grey = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1)
        if (
            image.dtype != np.uint8
            or not (is_grey or (image.ndim == 3 and image.shape[2] == 3))
            or not image.size
        ):
            raise RequestError(
                f"{place} is an array of {image.dtype} {list(image.shape)}; it must be uint8 [H, W], [H, W, 1] or "
                "[H, W, 3]"
            )
        image = Image.fromarray(image.reshape(image.shape[:2]) if is_grey else np.ascontiguousarray(image))
    if not isinstance(image, Image.Image):
        raise RequestError(
            f"{place} is a {type(image).__name__}; it must be a path, a PIL image or a uint8 array"
        )
    return NamedImage(place, image)


class ImageFiles:
    """Decodes images in batches of an embedder's size, and remembers those that cannot be used."""

    def __init__(self, embedder: Embedder, config: RunConfig, catalogue: Catalogue) -> None:
        self.failed: list[FailedImage] = []
        # The scaling that was applied to the run's images when they were packed.
        stored = catalogue.options.get("pixel_range")
        self._pixel_range: PixelRange | None = (stored[0], stored[1]) if isinstance(stored, list) else None
        self._embedder = embedder
        self._max_pixels = config.data.max_pixels
        self._decoder: Decoder = make_decoder(
            config.data, device=str(embedder.device), max_batch=embedder.batch_size
        )

    def __enter__(self) -> "ImageFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def batches(self, images: Sequence[NamedImage]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(positions in `images`, float32 [n, *sample_shape]) of those that decode, in order."""
        for start in range(0, len(images), self._embedder.batch_size):
            some = range(start, min(start + self._embedder.batch_size, len(images)))
            read = {row: data for row in some if (data := self._read(images[row])) is not None}
            while read:
                try:
                    decoded = self._decoder.decode(list(read.values()), None)
                except UndecodableError as error:
                    row = list(read)[error.position]
                    self._fail(images[row], f"is not an image that decodes: {error.reason}")
                    del read[row]
                    continue
                yield list(read), decoded
                break

    def embed(self, images: Sequence[NamedImage]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings (float32 [n, dim]) of those that decode, and their positions in `images` (int64 [n])."""
        vectors, usable = [np.empty((0, self._embedder.dim), dtype=np.float32)], []
        for rows, decoded in self.batches(images):
            vectors.append(self._embedder.embed_images(decoded, [images[row].name for row in rows]))
            usable += rows
        return np.concatenate(vectors), np.array(usable, dtype=np.int64)

    def _read(self, image: NamedImage) -> bytes | None:
        """The content of an image's file, or of a PNG file of an image in memory; None if reading failed."""
        try:
            if isinstance(image.content, Image.Image):
                upright = upright_in_memory(image.content, pixel_range=self._pixel_range)
                return encode_png(upright, compress_level=1)
            data = image.content if isinstance(image.content, bytes) else image.content.read_bytes()
            reason = "has zero bytes" if not data else find_excess_pixels(data, self._max_pixels)
            reason = reason or find_gap(data)
            if reason is None:
                return data if self._pixel_range is None else scale_encoded(data, self._pixel_range)
        except OSError as error:
            reason = f"cannot be read: {error.strerror}" if error.strerror else _not_decoded(error)
        except Exception as error:  # PIL raises a dozen types for damaged images
            reason = _not_decoded(error)
        self._fail(image, reason)
        return None

    def _fail(self, image: NamedImage, reason: str) -> None:
        self.failed.append(FailedImage(image.name, reason.replace(WAY_OUT, _OUTSIDE_WAY_OUT)))


def _not_decoded(error: Exception) -> str:
    return f"is not an image that decodes: {explain(error)}"


def are_ids(images: object) -> bool:
    """Whether a list is one of sample ids rather than of images."""
    if isinstance(images, np.ndarray):
        return images.ndim == 1 and np.issubdtype(images.dtype, np.integer)
    return (
        isinstance(images, Sequence | range)
        and len(images) > 0
        and all(isinstance(image, int | np.integer) for image in images)
    )
