"""Images and masks in existing shards, checked in place.

Workers load this file: nothing here imports more than PIL and NumPy.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from fsl_dist.data.images import CheckedImage, prepare_encoded
from fsl_dist.data.ingest.source_images import SourceFile
from fsl_dist.data.masks import prepare_mask
from fsl_dist.data.resize import StoredSize

# One `pread` returns at most 2 GiB, which is more than any image that may be decoded needs.
_MAX_IMAGE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image and its mask are stored."""

    shard: int
    offset: int
    size: int
    mask_offset: int = 0
    mask_size: int = 0
    """0 if there is none"""


class MemberFile(NamedTuple):
    """An image to check: `source.file` is its shard."""

    source: SourceFile
    place: Place


@dataclass(frozen=True, slots=True)
class CheckMembers:
    """The images in members, or why they cannot be used. Reads and decodes each completely."""

    def __call__(self, members: Sequence[MemberFile]) -> list[CheckedImage | str]:
        return [_check(member.source, member.place) for member in members]


def _check(source: SourceFile, place: Place) -> CheckedImage | str:
    data = _read(source.file, place.offset, place.size)
    if isinstance(data, str):
        return data
    prepared = prepare_encoded(data, source.path, StoredSize())
    if isinstance(prepared, str) or not source.mask:
        return prepared if isinstance(prepared, str) else prepared.image
    mask = _read(source.mask, place.mask_offset, place.mask_size)
    prepared_mask = mask if isinstance(mask, str) else prepare_mask(mask, prepared.upright, None)
    if isinstance(mask, str) or isinstance(prepared_mask, str):
        return f"its mask '{source.mask_path}' {prepared_mask!s}"
    if prepared_mask is not mask:
        return f"its mask '{source.mask_path}' is not an upright PNG; use `pack` for other formats (mask_column=…)"
    stored = CheckedImage(
        prepared.image.width, prepared.image.height, len(mask), zlib.crc32(mask), "mask.png"
    )
    return replace(prepared.image, mask=stored)


def _read(shard: str, offset: int, size: int) -> bytes | str:
    if size > _MAX_IMAGE_BYTES:
        return f"has {size} bytes, more than the {_MAX_IMAGE_BYTES} of an image"
    try:
        with open(shard, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, offset)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return data if len(data) == size else "is truncated: the shard ended before it"
