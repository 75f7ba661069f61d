"""Vectors, labels and ids in .npy or Parquet files, for building and searching."""

import mmap
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.base import files
from index.base.errors import RequestError
from index.base.pieces import Progress, Spread, do_here
from index.config import IndexConfig
from index.vectors import check_column, check_vectors
from index.writing import job
from index.writing.build import Staging

# One fault maps up to 16 pages around it; after so many rows the pages are given back.
_ROWS_BETWEEN_RELEASES = 4096
_INPUT = "input.npy"


def read_array(path: Path) -> np.ndarray:
    """Map the array of a .npy file, without unpickling. Raises RequestError for anything else."""
    if zipfile.is_zipfile(path):
        raise RequestError(f"{path} contains several arrays (.npz); save the required one with numpy.save")
    try:
        return files.map_array(path)
    except (ValueError, OSError) as error:
        raise RequestError(f"{path} is not a .npy array of numbers: {' '.join(str(error).split())}") from None


def read_integers(path: Path) -> np.ndarray:
    """Read the integers of a .npy file as int64. Raises RequestError for other types."""
    array = read_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise RequestError(f"{path} has dtype {array.dtype}; it must contain integers (.astype('int64'))")
    return array.astype(np.int64)


def read_integer_column(table: Path, column: str) -> np.ndarray:
    """A column of whole numbers of a Parquet file as int64. Raises RequestError."""
    import pyarrow as pa

    file = _open_parquet(table)
    if column not in file.schema_arrow.names:
        raise RequestError(f"{table} has no column '{column}'; it has {', '.join(file.schema_arrow.names)}")
    values = file.read(columns=[column]).column(0)
    if not pa.types.is_integer(values.type) or values.null_count:
        what = "rows without a value" if values.null_count else f"type {values.type}"
        raise RequestError(
            f"column '{column}' of {table} has {what}; it must contain a whole number in every row"
        )
    return values.to_numpy().astype(np.int64)


def is_parquet(path: Path) -> bool:
    """Whether a file is read as a Parquet table, by its name."""
    return path.suffix == ".parquet"


@dataclass(frozen=True, slots=True)
class ParquetVectors:
    """The column of a Parquet file that contains lists of float32, all of the same length."""

    path: Path
    column: str
    num_vectors: int
    dim: int

    @classmethod
    def open(cls, path: Path) -> "ParquetVectors":
        """Find the column. Raises RequestError if there is none, more than one, or one of another type."""
        import pyarrow as pa

        file = _open_parquet(path)
        lists = [
            field
            for field in file.schema_arrow
            if pa.types.is_list(field.type)
            or pa.types.is_large_list(field.type)
            or pa.types.is_fixed_size_list(field.type)
        ]
        if len(lists) != 1:
            found = ", ".join(field.name for field in lists) or "none"
            raise RequestError(f"{path} must have one column of lists, the vectors; it has {found}")
        field = lists[0]
        if not pa.types.is_float32(field.type.value_type):
            raise RequestError(
                f"column '{field.name}' of {path} contains lists of {field.type.value_type}; they must be of float32"
            )
        rows = file.metadata.num_rows
        if rows == 0:
            raise RequestError(f"{path} has no rows; an index needs at least one")
        first = next(file.iter_batches(1, columns=[field.name])).column(0)
        return cls(path, field.name, rows, len(first[0].as_py() or []))

    def blocks(self, rows_at_once: int) -> Iterator[np.ndarray]:
        """Yield float32 [≤ rows_at_once, dim] in the order of the file; all but the last block are full."""
        rest: list[np.ndarray] = []
        held, start = 0, 0
        for batch in _open_parquet(self.path).iter_batches(rows_at_once, columns=[self.column]):
            rest.append(self._to_rows(batch.column(0), start + held))
            held += len(batch)
            if held >= rows_at_once:
                joined = np.concatenate(rest)
                yield joined[:rows_at_once]
                rest, held, start = [joined[rows_at_once:]], held - rows_at_once, start + rows_at_once
        if held:
            yield np.concatenate(rest)

    def _to_rows(self, lists: Any, first: int) -> np.ndarray:
        if lists.null_count:
            raise RequestError(f"column '{self.column}' of {self.path} has rows without a vector")
        lengths = np.diff(lists.offsets.to_numpy()) if hasattr(lists, "offsets") else np.array([self.dim])
        if (lengths != self.dim).any():
            row = first + int(np.argmax(lengths != self.dim))
            raise RequestError(
                f"column '{self.column}' of {self.path} has {lengths[row - first]} numbers in row {row} and {self.dim} "
                "in row 0; every vector must have as many"
            )
        return lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)


@dataclass(frozen=True, slots=True)
class FileVectors:
    """Rows of a .npy file in a given order; picklable, and only the requested rows are in memory."""

    path: Path
    """float32 [n, dim]."""

    order: Path
    """int64 [n], .npy: the file's row at each place of the order."""

    name: str
    """What errors call the file."""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors float32 [stop - start, dim] at these places, and their rows int64 in the file; checked."""
        rows = np.array(files.open_array(self.order)[start:stop])
        mapped = read_array(self.path)
        vectors = np.empty((len(rows), mapped.shape[1]), dtype=np.float32)
        with self.path.open("rb") as file:
            # Freed with its last view, not closed: after a signal or an error a view still exists, and close() would
            # hide both.
            pages = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        source = np.frombuffer(pages, np.float32, offset=mapped.offset).reshape(mapped.shape)  # type: ignore[attr-defined]
        for first in range(0, len(rows), _ROWS_BETWEEN_RELEASES):
            some = slice(first, first + _ROWS_BETWEEN_RELEASES)
            np.take(source, rows[some], axis=0, out=vectors[some])
            pages.madvise(mmap.MADV_DONTNEED)
        check_vectors(vectors, self.name, rows=rows)
        return vectors, rows


def check_file(path: Path) -> tuple[int, int]:
    """(rows, dim) of a .npy file of vectors; RequestError for one that `FileVectors` cannot read."""
    array = read_array(path)
    check_vectors(array[:0], str(path))
    if not array.flags.c_contiguous:
        raise RequestError(f"{path} is stored column by column; save it with numpy.ascontiguousarray")
    if len(array) == 0:
        raise RequestError(f"{path} has no rows; an index needs at least one")
    num, dim = array.shape
    return num, dim


def build_from_files(
    out: Path,
    vectors: Path,
    labels: str,
    ids: str | None,
    config: IndexConfig,
    *,
    spread: Spread = do_here,
    progress: Progress | None = None,
) -> Path:
    """Build an index from a file of vectors, or resume building it (`job.run`); return the version's folder.

    labels, ids: .npy files, or columns of the Parquet file that contains the vectors. A file counts as unchanged as
    long as its path, size and times are the same. Raises RequestError for invalid input.
    """
    table = ParquetVectors.open(vectors) if is_parquet(vectors) else None
    num, dim = check_file(vectors) if table is None else (table.num_vectors, table.dim)
    files = {"vectors": vectors}
    columns: dict[str, np.ndarray] = {}
    for name, value in (("labels", labels), ("ids", ids)):
        if value is None:
            columns[name] = np.arange(num, dtype=np.int64)
        elif table is not None and not Path(value).is_file():
            columns[name] = read_integer_column(vectors, value)
        else:
            files[name] = Path(value).absolute()
            columns[name] = read_integers(files[name])
        check_column(columns[name], f"{name} ({value})", num)
    plan = job.Plan(
        out=out,
        labels=columns["labels"],
        ids=columns["ids"],
        dim=dim,
        config=config,
        source={name: str(path) for name, path in files.items()},
        identity={
            **{name: identify(path) for name, path in files.items()},
            "columns": f"{labels}, {ids}",
        },
    )

    def open_vectors(staging: Staging) -> FileVectors:
        if table is None:
            return FileVectors(vectors, job.rows_path(staging), str(vectors))
        if not staging.has(_INPUT):
            staging.write_vectors(_INPUT, (num, dim), table.blocks(plan.rows_at_once))
        return FileVectors(staging.path_of(_INPUT), job.rows_path(staging), str(vectors))

    return job.run(plan, open_vectors=open_vectors, spread=spread, progress=progress)


def identify(path: Path) -> str:
    """The text that identifies a file, in addition to its path."""
    found = path.stat()
    return f"{found.st_size} bytes, changed {found.st_mtime_ns} {found.st_ctime_ns}"


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise RequestError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from None
