"""Image files from outside a data set: read and decoded with a run's test transform, those that cannot be named."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fsl_dist.config import RunConfig
from fsl_dist.data.decode import Decoder, make_decoder
from fsl_dist.data.images import find_excess_pixels
from fsl_dist.embedder import Embedder
from fsl_dist.errors import UndecodableError


@dataclass(frozen=True, slots=True)
class FailedImage:
    """An image that could not be used."""

    image: str
    reason: str


class ImageFiles:
    """Decodes image files in batches of an embedder's size, and remembers those that cannot be used."""

    def __init__(self, embedder: Embedder, config: RunConfig) -> None:
        self.failed: list[FailedImage] = []
        self._batch_size = embedder.batch_size
        self._max_pixels = config.data.max_pixels
        self._decoder: Decoder = make_decoder(
            config.data, device=str(embedder.device), max_batch=embedder.batch_size
        )

    def __enter__(self) -> "ImageFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self._decoder.close()

    def batches(self, paths: Sequence[Path]) -> Iterator[tuple[list[int], torch.Tensor]]:
        """(positions in `paths`, float32 [n, *sample_shape]) of the files that are images, in order."""
        for start in range(0, len(paths), self._batch_size):
            some = range(start, min(start + self._batch_size, len(paths)))
            read = {row: data for row in some if (data := self._read(paths[row])) is not None}
            while read:
                try:
                    images = self._decoder.decode(list(read.values()), None)
                except UndecodableError as error:
                    row = list(read)[error.position]
                    self._fail(paths[row], f"is not an image that decodes: {error.reason}")
                    del read[row]
                    continue
                yield list(read), images
                break

    def _read(self, path: Path) -> bytes | None:
        try:
            data = path.read_bytes()
        except OSError as error:
            self._fail(path, f"cannot be read: {error.strerror}")
            return None
        reason = "has zero bytes" if not data else find_excess_pixels(data, self._max_pixels)
        if reason is not None:
            self._fail(path, reason)
            return None
        return data

    def _fail(self, path: Path, reason: str) -> None:
        self.failed.append(FailedImage(str(path), reason))
