"""A source's images and masks as `pack` stores them: checked and resized chunk by chunk, read again for the shards.

Workers load this file: nothing here imports more than PIL and NumPy.
"""

import json
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from fsl_dist.data.images import CheckedImage, prepare_encoded
from fsl_dist.data.ingest.work_folder import WorkFolder
from fsl_dist.data.masks import prepare_mask
from fsl_dist.data.resize import StoredSize
from fsl_dist.errors import DataError
from index.base.files import crc32_of_file, size_of_file

CHUNK_SIZE = 64
"""images that are checked as one piece: a killed pack loses at most that many a process"""


class SourceFile(NamedTuple):
    """Where an image and its mask are read, and what the user calls them; an empty mask is none."""

    file: str
    path: str
    mask: str = ""
    mask_path: str = ""


class Chunk(NamedTuple):
    """A piece of the source."""

    number: int
    files: list[SourceFile]


@dataclass(frozen=True, slots=True)
class CheckImages:
    """Checks a chunk: decodes every image once, and leaves what will be stored of it in the work folder.

    What is known lies in `checked/NUMBER.json`, behind a line with its checksum; what was re-encoded in
    `checked/NUMBER.kept`, end to end. Both are checked when they are read, so neither is forced to the disk.
    """

    work: WorkFolder
    size: StoredSize
    has_fingerprints: bool = False
    """whether to find what near-duplicates are found by"""

    def __call__(self, chunk: Chunk) -> None:
        kept = _kept_path(self.work, chunk.number)
        with self.work.replacing(kept) as file:
            checked = [self._check(source, chunk.number, file) for source in chunk.files]
        if not size_of_file(kept):
            kept.unlink()
        rows = json.dumps([_as_row(image) for image in checked]).encode()
        head = {"crc32": zlib.crc32(rows), "kept_crc32": crc32_of_file(kept) if kept.exists() else None}
        with self.work.replacing(_rows_path(self.work, chunk.number)) as file:
            file.write(json.dumps(head).encode() + b"\n" + rows)

    def _check(self, source: SourceFile, chunk: int, kept: IO[bytes]) -> CheckedImage | str:
        """What will be stored of an image, or why it cannot be used."""
        data = _read(source.file)
        if isinstance(data, str):
            return data
        prepared = prepare_encoded(data, source.file, self.size, has_fingerprint=self.has_fingerprints)
        if isinstance(prepared, str):
            return prepared
        image = _keep(prepared.image, prepared.data, data, chunk, kept)
        if not source.mask:
            return image
        mask_data = _read(source.mask)
        mask = (
            mask_data
            if isinstance(mask_data, str)
            else prepare_mask(mask_data, prepared.upright, prepared.resized)
        )
        if isinstance(mask, str) or isinstance(mask_data, str):
            return f"its mask '{source.mask_path}' {mask!s}"
        stored = CheckedImage(image.width, image.height, len(mask), zlib.crc32(mask), "mask.png")
        return replace(image, mask=_keep(stored, mask, mask_data, chunk, kept))


def read_checked(work: WorkFolder, number: int) -> list[CheckedImage | str] | None:
    """What `CheckImages` left of chunk `number`; None where it is not there, or damaged."""
    try:
        head, _, rows = _rows_path(work, number).read_bytes().partition(b"\n")
        sums = json.loads(head)
        kept = _kept_path(work, number)
        if sums["crc32"] != zlib.crc32(rows) or sums["kept_crc32"] != (
            crc32_of_file(kept) if kept.exists() else None
        ):
            return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return [row if isinstance(row, str) else _as_image(row) for row in json.loads(rows)]


def read_stored(
    work: WorkFolder, source: SourceFile, image: CheckedImage
) -> list[tuple[CheckedImage, bytes]]:
    """(what is known, bytes) of an image and of its mask, if it has one. DataError where a file has changed."""
    members = [(image, _read_one(work, image, source.file, source.path))]
    if image.mask is not None:
        members.append((image.mask, _read_one(work, image.mask, source.mask, source.mask_path)))
    return members


def _read_one(work: WorkFolder, image: CheckedImage, file: str, path: str) -> bytes:
    if image.kept_at is None:
        data = Path(file).read_bytes()
    else:
        chunk, start = image.kept_at
        with _kept_path(work, chunk).open("rb") as kept:
            kept.seek(start)
            data = kept.read(image.size_bytes)
    if zlib.crc32(data) != image.crc32 or len(data) != image.size_bytes:
        raise DataError(f"'{path}' changed while it was packed; pack again when the source is at rest")
    return data


def _keep(image: CheckedImage, data: bytes, source: bytes, chunk: int, kept: IO[bytes]) -> CheckedImage:
    if data is source:
        return image
    start = kept.tell()
    kept.write(data)
    return replace(image, kept_at=(chunk, start))


def _as_row(image: CheckedImage | str) -> dict[str, Any] | str:
    """As JSON holds it: the fingerprint in hexadecimal digits."""
    if isinstance(image, str):
        return image
    return {
        **asdict(image),
        "fingerprint": image.fingerprint.hex(),
        "mask": None if image.mask is None else _as_row(image.mask),
    }


def _as_image(row: dict[str, Any]) -> CheckedImage:
    kept_at, mask, fingerprint = row.pop("kept_at"), row.pop("mask"), row.pop("fingerprint")
    return CheckedImage(
        **row,
        fingerprint=bytes.fromhex(fingerprint),
        kept_at=None if kept_at is None else (kept_at[0], kept_at[1]),
        mask=None if mask is None else _as_image(mask),
    )


def _rows_path(work: WorkFolder, chunk: int) -> Path:
    return work.checked / f"{chunk:06d}.json"


def _kept_path(work: WorkFolder, chunk: int) -> Path:
    return work.checked / f"{chunk:06d}.kept"


def _read(file: str) -> bytes | str:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
