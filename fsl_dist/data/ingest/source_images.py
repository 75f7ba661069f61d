"""A source's images and masks as `pack` stores them: checked and resized chunk by chunk, read again for the shards.

Workers load this file: nothing here imports more than PIL and NumPy.
"""

import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple

from fsl_dist.data.formats.depth import PixelRange
from fsl_dist.data.images import CheckedImage, prepare_encoded
from fsl_dist.data.ingest.work_folder import PackFolder
from fsl_dist.data.masks import prepare_mask
from fsl_dist.data.resize import StoredSize
from fsl_dist.errors import DataError
from index.base.files import replacing

CHUNK_SIZE = 64
"""images that are checked as one piece: a killed pack loses at most that many for each process"""


class SourceFile(NamedTuple):
    """The files of an image and its mask, with their names for the user; an empty mask means none."""

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
    """Checks a chunk: decodes every image once, and writes re-encoded images to the work folder.

    The results are in the note of the chunk's file, which contains the re-encoded images end to end.
    """

    work: PackFolder
    size: StoredSize
    pixel_range: PixelRange | None = None
    """what grey pixels of more than 8 bits are scaled by"""
    has_fingerprints: bool = False
    """whether to compute fingerprints for the search for near-duplicates"""

    def __call__(self, chunk: Chunk) -> None:
        name = kept_name(chunk.number)
        # Not forced to the disk: its checksum is compared before a later try uses it.
        with replacing(self.work.path_of(name), is_forced=False) as file:
            checked = [self._check(source, chunk.number, file) for source in chunk.files]
        self.work.finish(name, {"images": [_as_row(image) for image in checked]})

    def _check(self, source: SourceFile, chunk: int, kept: IO[bytes]) -> CheckedImage | str:
        """What will be stored of an image, or why it cannot be used."""
        data = _read(source.file)
        if isinstance(data, str):
            return data
        prepared = prepare_encoded(
            data,
            source.file,
            self.size,
            pixel_range=self.pixel_range,
            has_fingerprint=self.has_fingerprints,
        )
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


def kept_name(chunk: int) -> str:
    """Name of the file that the chunk with this number leaves."""
    return f"chunk-{chunk:06d}.kept"


def read_checked(work: PackFolder, chunk: int) -> list[CheckedImage | str]:
    """Read the results of `CheckImages` for a chunk; raises OSError if they no longer exist."""
    facts = work.facts_of(kept_name(chunk))
    if facts is None:
        raise OSError(f"'{work.folder}' does not contain what was just written; is the disk faulty?")
    return [row if isinstance(row, str) else _as_image(row) for row in facts["images"]]


def read_stored(
    work: PackFolder, source: SourceFile, image: CheckedImage
) -> list[tuple[CheckedImage, bytes]]:
    """(properties, bytes) of an image and of its mask, if it has one. Raises DataError if a file has changed."""
    members = [(image, _read_one(work, image, source.file, source.path))]
    if image.mask is not None:
        members.append((image.mask, _read_one(work, image.mask, source.mask, source.mask_path)))
    return members


def _read_one(work: PackFolder, image: CheckedImage, file: str, path: str) -> bytes:
    if image.kept_at is None:
        data = Path(file).read_bytes()
    else:
        chunk, start = image.kept_at
        with work.path_of(kept_name(chunk)).open("rb") as kept:
            kept.seek(start)
            data = kept.read(image.size_bytes)
    if zlib.crc32(data) != image.crc32 or len(data) != image.size_bytes:
        raise DataError(f"'{path}' changed while it was packed; pack again once nothing writes to the source")
    return data


def _keep(image: CheckedImage, data: bytes, source: bytes, chunk: int, kept: IO[bytes]) -> CheckedImage:
    if data is source:
        return image
    start = kept.tell()
    kept.write(data)
    return replace(image, kept_at=(chunk, start))


def _as_row(image: CheckedImage | str) -> dict[str, Any] | str:
    """Convert to JSON: the fingerprint in hexadecimal digits."""
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


def _read(file: str) -> bytes | str:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
