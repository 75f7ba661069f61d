"""The mined neighbours of every training image: a table [N, K + M] on disk, one part a worker, memory-mapped.

Row i belongs to the i-th image of the training selection; its first K entries are same-class neighbours, the
rest other-class ones, as sample ids, nearest first, −1 where there are fewer.
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

WEIGHTS = "weights.pt"
"""in a table's folder: parameters that the neighbours are to be found with, while actors find them"""


def mine_part(
    folder: Path,
    number: int,
    index: LocalIndex,
    selection: Selection,
    rows: slice,
    num_same: int,
    num_other: int,
) -> None:
    """Search the neighbours of the images at `rows` of `selection`, whose index this is, and write them as a part."""
    found = index.neighbours(
        index.vectors(rows.start, rows.stop),
        selection.sample_labels[rows],
        selection.ids[rows],
        num_same,
        num_other,
    )
    write_part(folder, number, rows.start, found.same_ids, found.other_ids)


def is_whole(folder: Path, num_rows: int) -> bool:
    """Whether the parts in `folder` make up a table of `num_rows` rows."""
    bring(folder)
    return sum(_shape_of(path)[1] for path in folder.glob("part-*.i64")) == num_rows


def write_part(
    folder: Path, number: int, start: int, same_ids: NDArray[np.int64], other_ids: NDArray[np.int64]
) -> None:
    """Write the rows from `start` on (same_ids [n, K], other_ids [n, M]) as part `number` of the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.ascontiguousarray(np.concatenate([same_ids, other_ids], axis=1), dtype="<i8")
    write_atomic(
        folder / f"part-{number:05d}-{start:012d}-{rows.shape[0]}x{rows.shape[1]}.i64", rows.tobytes()
    )


@dataclass(frozen=True, slots=True)
class NeighbourTable:
    """A finished table, read by row."""

    folder: Path
    parts: tuple[NDArray[np.int64], ...]
    """memory-mapped int64 [n_part, K + M], by ascending start"""
    starts: NDArray[np.int64]
    """int64 [num_parts]: first row of each part"""
    num_same: int
    """K"""
    step: int
    """optimizer step whose parameters the neighbours were found with"""
    crc32: int
    """checksum over all parts"""

    @classmethod
    def open(cls, folder: Path, num_same: int, step: int) -> NeighbourTable:
        """Open the table whose parts are all in `folder`, found with the parameters of `step`."""
        bring(folder)  # other machines' parts
        parts, starts, crc32 = [], [], 0
        for path in sorted(folder.glob("part-*.i64")):
            start, rows, columns = _shape_of(path)
            if rows == 0:
                continue
            parts.append(np.memmap(path, dtype="<i8", mode="r", shape=(rows, columns)))
            starts.append(start)
            crc32 = zlib.crc32(parts[-1].data, crc32)
        by_start = np.argsort(starts)
        return cls(
            folder,
            tuple(parts[position] for position in by_start),
            np.asarray(starts, dtype=np.int64)[by_start],
            num_same,
            step,
            crc32,
        )

    @classmethod
    def reopen(cls, folder: Path, num_same: int, step: int, crc32: int) -> NeighbourTable:
        """Open the table a checkpoint names.

        Raises TrainingError when it is gone or is not the one the checkpoint was written with.
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
        """Remove the tables under `tables` that are not named in `keep`."""
        for folder in tables.glob("step-*"):
            if folder.name not in keep:
                remove_folder(folder)


def _shape_of(part: Path) -> tuple[int, int, int]:
    """First row, rows and columns of a part, from its name."""
    _, _, start, shape = part.stem.split("-")
    rows, columns = shape.split("x")
    return int(start), int(rows), int(columns)
