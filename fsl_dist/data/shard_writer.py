"""Writes samples to WebDataset tar shards: plain USTAR, no times, no owners, so bytes follow from the input."""

import io
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

from fsl_dist.data.catalogue import ShardFile
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.rows import StoredAt

_TAR_BLOCK = 512


class ShardWriter:
    """Appends samples to `folder`/`subfolder`/shard-000000.tar …, each at most `max_bytes` unless one sample is larger."""

    def __init__(self, folder: Path, max_bytes: int, subfolder: str = "shards") -> None:
        (folder / subfolder).mkdir(parents=True)
        self.shards: list[ShardFile] = []
        self.places: dict[int, StoredAt] = {}
        """by row"""
        self._folder = folder
        self._subfolder = subfolder
        self._max_bytes = max_bytes
        self._file: io.BufferedWriter | None = None

    def add(self, key: str, images: Sequence[tuple[CheckedImage, bytes]], label: int, row: int) -> None:
        """Append a sample of one image, and its mask after it if there is one."""
        members = [(f"{key}.{image.extension}", data) for image, data in images]
        members.insert(1, (f"{key}.cls", str(label).encode()))
        needed = sum(_TAR_BLOCK + _padded(len(content)) for _, content in members)
        if self._file is not None and self._file.tell() + needed + 2 * _TAR_BLOCK > self._max_bytes:
            self.finish()
        if self._file is None:
            self._file = open(self._folder / self._name(), "wb")  # noqa: SIM115  closed by close()
        offsets = []
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self._file.write(info.tobuf(tarfile.USTAR_FORMAT))
            offsets.append(self._file.tell())
            self._file.write(content.ljust(_padded(len(content)), b"\0"))
        self.places[row] = StoredAt(len(self.shards), offsets[0], *offsets[2:])

    def _name(self) -> str:
        return f"{self._subfolder}/shard-{len(self.shards):06d}.tar"

    def finish(self) -> None:
        """End the open shard: two empty blocks, on disk."""
        if self._file is None:
            return
        self._file.write(bytes(2 * _TAR_BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self.shards.append(ShardFile(self._name(), self._file.tell()))
        self.close()

    def close(self) -> None:
        """Close the open shard as it is; without `finish` before, it is of no use."""
        if self._file is not None:
            self._file.close()
            self._file = None


def _padded(size: int) -> int:
    return -(-size // _TAR_BLOCK) * _TAR_BLOCK
