"""Samples in WebDataset tar shards: plain USTAR, no times, no owners, so bytes follow from the input.

Workers load this file: nothing here imports more than PIL and NumPy.
"""

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.source_images import SourceFile, read_stored
from fsl_dist.data.ingest.work_folder import PackFolder
from index.base.files import replacing

_TAR_BLOCK = 512
_END = bytes(2 * _TAR_BLOCK)


@dataclass(frozen=True, slots=True)
class StoredAt:
    """The location of a stored sample."""

    shard: int
    offset: int
    """first byte of the image in its shard"""
    mask_offset: int = 0
    """offset of its mask; 0 if there is none"""


@dataclass(slots=True)
class PlannedShard:
    """A shard before it is written."""

    rows: list[int]
    """in the order of their bytes"""
    places: list[StoredAt]
    """of each of `rows`"""
    size_bytes: int
    """of the whole file"""


def plan_shards(
    images: Sequence[CheckedImage],
    labels: Sequence[int],
    order: Iterable[int],
    max_bytes: int,
    first: int = 0,
) -> list[PlannedShard]:
    """Assign the rows of `images` and `labels` to shards and positions, in `order`.

    Each shard has at most `max_bytes` unless one sample is larger. They are numbered from `first`.
    """
    shards: list[PlannedShard] = []
    for row in order:
        sizes = _member_sizes(images[row], labels[row])
        needed = sum(_TAR_BLOCK + _padded(size) for size in sizes)
        if not shards or shards[-1].size_bytes + needed > max_bytes:
            shards.append(PlannedShard([], [], len(_END)))
        shard = shards[-1]
        offset = shard.size_bytes - len(_END)
        offsets = []
        for size in sizes:
            offsets.append(offset + _TAR_BLOCK)
            offset += _TAR_BLOCK + _padded(size)
        shard.rows.append(row)
        shard.places.append(StoredAt(first + len(shards) - 1, offsets[0], *offsets[2:]))
        shard.size_bytes += needed
    return shards


class ShardSample(NamedTuple):
    """A sample to write: an image, followed by its mask if there is one."""

    key: str
    label: int
    image: CheckedImage
    source: SourceFile


class ShardContent(NamedTuple):
    """A piece: a shard to write."""

    name: str
    samples: list[ShardSample]


@dataclass(frozen=True, slots=True)
class WriteShards:
    """Writes a shard."""

    work: PackFolder

    def __call__(self, content: ShardContent) -> None:
        with replacing(self.work.path_of(content.name)) as file:
            for sample in content.samples:
                members = [
                    (f"{sample.key}.{image.extension}", data)
                    for image, data in read_stored(self.work, sample.source, sample.image)
                ]
                members.insert(1, (f"{sample.key}.cls", _encode_label(sample.label)))
                for name, data in members:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    file.write(info.tobuf(tarfile.USTAR_FORMAT))
                    file.write(data.ljust(_padded(len(data)), b"\0"))
            file.write(_END)
        self.work.finish(content.name)


def _member_sizes(image: CheckedImage, label: int) -> list[int]:
    sizes = [image.size_bytes, len(_encode_label(label))]
    return sizes if image.mask is None else [*sizes, image.mask.size_bytes]


def _encode_label(label: int) -> bytes:
    return str(label).encode()


def _padded(size: int) -> int:
    return -(-size // _TAR_BLOCK) * _TAR_BLOCK
