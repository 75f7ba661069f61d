"""The result of a pass over all training images: a memory-mapped table on disk, one part per worker.

Row i belongs to the i-th image of the training selection. A table of neighbours is int64 [N, K + M]: the first K
entries are same-class neighbours, the rest other-class ones, as sample ids, nearest first, −1 if there are fewer. A
table of embeddings is float32 [N, D].
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.errors import TrainingError
from index.base.files import remove_folder, write_atomic
from index.base.object_cache import bring

if TYPE_CHECKING:
    from index.search import LocalIndex

_DTYPES = {"i64": "<i8", "f32": "<f4"}
WEIGHTS = "weights.pt"
"""in a table's folder: the network parameters with which actors compute the neighbours"""


def mine_part(
    folder: Path,
    number: int,
    index: LocalIndex,
    selection: Selection,
    rows: slice,
    num_same: int,
    num_other: int,
) -> None:
    """Search the neighbours of the images at `rows` of `selection`, whose index this is, and write them as a part.

    With K and M both 0, the part is the images' embeddings themselves.
    """
    if num_same == num_other == 0:
        write_part(folder, number, rows.start, index.vectors(rows.start, rows.stop))
        return
    found = index.neighbours(
        index.vectors(rows.start, rows.stop, as_given=True),
        selection.sample_labels[rows],
        selection.ids[rows],
        num_same,
        num_other,
    )
    write_part(folder, number, rows.start, np.concatenate([found.same_ids, found.other_ids], axis=1))


def is_whole(folder: Path, num_rows: int) -> bool:
    """Whether the parts in `folder` form a complete table of `num_rows` rows."""
    bring(folder)
    return sum(_shape_of(path)[1] for path in folder.glob("part-*")) == num_rows


def write_part(folder: Path, number: int, start: int, rows: NDArray[np.int64] | NDArray[np.float32]) -> None:
    """Write the rows from `start` on ([n, columns], int64 or float32) as part `number` of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    suffix = "f32" if rows.dtype == np.float32 else "i64"
    rows = np.ascontiguousarray(rows, dtype=_DTYPES[suffix])
    name = f"part-{number:05d}-{start:012d}-{rows.shape[0]}x{rows.shape[1]}.{suffix}"
    write_atomic(folder / name, rows.tobytes())


def read_embeddings(folder: Path, start: int, stop: int) -> NDArray[np.float32]:
    """float32 [stop − start, D]: rows of a table of embeddings."""
    bring(folder)
    found: list[NDArray[np.float32]] = []
    for first, part in _open_parts(folder):
        low, high = max(start, first), min(stop, first + len(part))
        if low < high:
            found.append(np.array(part[low - first : high - first]))
    return np.concatenate(found)


def _open_parts(folder: Path) -> list[tuple[int, NDArray]]:
    """(first row, memory-mapped rows) of each part that has any, by ascending first row."""
    parts = []
    for path in folder.glob("part-*"):
        start, rows, columns = _shape_of(path)
        if rows:
            dtype = _DTYPES[path.suffix.removeprefix(".")]
            parts.append((start, np.memmap(path, dtype=dtype, mode="r", shape=(rows, columns))))
    return sorted(parts, key=lambda part: part[0])


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """A finished table of neighbours, read by row."""

    folder: Path
    parts: tuple[NDArray[np.int64], ...]
    """memory-mapped int64 [n_part, K + M], by ascending start"""
    starts: NDArray[np.int64]
    """int64 [num_parts]: first row of each part"""
    num_same: int
    """K"""
    step: int
    """optimizer step of the parameters with which the neighbours were computed"""
    crc32: int
    """checksum over all parts"""

    @classmethod
    def open(cls, folder: Path, num_same: int, step: int) -> NeighbourTable:
        """Open the table whose parts are all in `folder`, computed with the parameters of `step`."""
        bring(folder)  # parts that other machines wrote
        parts = _open_parts(folder)
        crc32 = 0
        for _, part in parts:
            crc32 = zlib.crc32(part.data, crc32)
        starts = np.array([start for start, _ in parts], dtype=np.int64)
        return cls(folder, tuple(part for _, part in parts), starts, num_same, step, crc32)

    @classmethod
    def reopen(cls, folder: Path, num_same: int, step: int, crc32: int) -> NeighbourTable:
        """Open the table that a checkpoint refers to.

        Raises TrainingError if it is missing or is not the one with which the checkpoint was written.
        """
        table = cls.open(folder, num_same, step)
        if not table.parts or table.crc32 != crc32:
            found = f"has checksum {table.crc32:08x}" if table.parts else "is missing"
            raise TrainingError(
                f"the neighbour table {folder} {found}, the checkpoint needs {crc32:08x} "
                "(train into a new run.dir, or resume from an older checkpoint)"
            )
        return table

    def rows(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Neighbours of the images at `positions` [n]: same-class [n, K] and other-class [n, M] sample ids."""
        part_of = np.searchsorted(self.starts, positions, side="right") - 1
        found = np.empty((len(positions), self.parts[0].shape[1]), dtype=np.int64)
        for part in np.unique(part_of):
            here = part_of == part
            found[here] = self.parts[part][positions[here] - self.starts[part]]
        return found[:, : self.num_same], found[:, self.num_same :]

    @staticmethod
    def prune(tables: Path, keep: set[str]) -> None:
        """Remove the tables under `tables` that are not in `keep`."""
        for folder in tables.glob("step-*"):
            if folder.name not in keep:
                remove_folder(folder)


def _shape_of(part: Path) -> tuple[int, int, int]:
    """First row, rows and columns of a part, from its name."""
    _, _, start, shape = part.stem.split("-")
    rows, columns = shape.split("x")
    return int(start), int(rows), int(columns)
