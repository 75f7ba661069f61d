"""A source's images and masks as `pack` stores them: checked and resized by several threads, then read one by one."""

import tempfile
import threading
import zlib
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from fsl_dist.data.images import CheckedImage, prepare_encoded
from fsl_dist.data.listing import Candidate
from fsl_dist.data.masks import prepare_mask
from fsl_dist.data.resize import StoredSize
from fsl_dist.errors import DataError


class SourceImages:
    """Checks images, and hands out what is stored of them.

    What is re-encoded waits in a file without a name near `out`, so that every image is decoded once, memory holds a
    few of them, and a killed process leaves nothing. That file grows to the size of the re-encoded images.
    `has_fingerprints`: images are checked with what near-duplicates are found by.
    """

    def __init__(self, size: StoredSize, out: Path, *, has_fingerprints: bool = False) -> None:
        self._has_fingerprints = has_fingerprints
        self._size = size
        folder = next(parent for parent in (out / "any").absolute().parents if parent.is_dir())
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  closed by __exit__
        self._end = 0
        self._lock = threading.Lock()

    def __enter__(self) -> "SourceImages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def check(self, sample: Candidate) -> CheckedImage | str:
        """What will be stored of the sample, or why it cannot be used. Decodes all of it; for several threads."""
        data = _read(sample.file)
        if isinstance(data, str):
            return data
        prepared = prepare_encoded(data, sample.file, self._size, has_fingerprint=self._has_fingerprints)
        if isinstance(prepared, str):
            return prepared
        image = self._keep(prepared.image, prepared.data, data)
        if not sample.mask:
            return image
        mask_data = _read(sample.mask)
        mask = (
            mask_data
            if isinstance(mask_data, str)
            else prepare_mask(mask_data, prepared.upright, prepared.resized)
        )
        if isinstance(mask, str) or isinstance(mask_data, str):
            return f"its mask '{sample.mask_path}' {mask!s}"
        stored = CheckedImage(image.width, image.height, len(mask), zlib.crc32(mask), "mask.png")
        return replace(image, mask=self._keep(stored, mask, mask_data))

    def read(self, sample: Candidate, image: CheckedImage) -> list[tuple[CheckedImage, bytes]]:
        """(what is known, bytes) of the image and of its mask, if it has one. DataError where a file has changed."""
        members = [(image, self._read_stored(image, sample.file, sample.path))]
        if image.mask is not None:
            members.append((image.mask, self._read_stored(image.mask, sample.mask, sample.mask_path)))
        return members

    def _keep(self, image: CheckedImage, data: bytes, source: bytes) -> CheckedImage:
        if data is source:
            return image
        with self._lock:
            start = self._end
            self._file.write(data)
            self._end += len(data)
        return replace(image, kept_at=start)

    def _read_stored(self, image: CheckedImage, file: str, path: str) -> bytes:
        if image.kept_at is None:
            data = Path(file).read_bytes()
        else:
            self._file.seek(image.kept_at)
            data = self._file.read(image.size_bytes)
        if zlib.crc32(data) != image.crc32 or len(data) != image.size_bytes:
            raise DataError(f"'{path}' changed while it was packed; pack again when the source is at rest")
        return data


def _read(file: str) -> bytes | str:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
