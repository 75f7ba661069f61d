"""Checks of vectors and their columns, and the order of rows in an index."""

import math

import numpy as np

from index.base.errors import RequestError

# Squares of larger norms leave float32's range, and the search would lose such rows without a word.
MAX_NORM = 1e18


def check_vectors(
    vectors: np.ndarray, name: str, dim: int | None = None, rows: np.ndarray | None = None
) -> None:
    """Raise RequestError if `vectors` is not a finite float32 [n, dim] array; errors contain `name`.

    rows: int64 [n], the numbers by which the user knows the vectors; by default their positions.
    """
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise RequestError(f"{name} has shape {list(vectors.shape)}; it must be [n, dim]")
    if dim is not None and vectors.shape[1] != dim:
        raise RequestError(f"{name} has dim={vectors.shape[1]}; the index contains vectors of dim={dim}")
    if vectors.dtype != np.float32:
        raise RequestError(
            f"{name} has dtype {vectors.dtype}; it must be float32 (convert it with .astype('float32'))"
        )
    bad = find_bad_row(vectors)
    if bad is not None:
        row, what = bad
        known_by = row if rows is None else rows[row]
        raise RequestError(f"{name} row {known_by} contains {what}; every vector must be finite")


def find_bad_row(vectors: np.ndarray) -> tuple[int, str] | None:
    """The first row of `vectors` (float32 [n, dim]) that cannot be searched, and the reason; None if all are valid."""
    rows_at_once = max(1, (1 << 22) // vectors.shape[1])
    limit = MAX_NORM / math.sqrt(vectors.shape[1])
    for start in range(0, len(vectors), rows_at_once):
        part = vectors[start : start + rows_at_once]
        # The sum of all squares bounds each of them, and takes one fast product; 2 is for its rounding. NaN fails.
        if np.vdot(part, part) <= limit * limit / 2:
            continue
        # max() of absolute values is NaN or inf where any of them is, and both fail the comparison.
        largest = np.abs(part).max(axis=1)
        if not (largest <= limit).all():
            row = start + int(np.argmin(largest <= limit))
            is_finite = np.isfinite(vectors[row]).all()
            return row, "a norm near 1e18 or above" if is_finite else "a NaN or infinite number"
    return None


def check_directions(vectors: np.ndarray, name: str, rows: np.ndarray | None = None) -> None:
    """Refuse a vector of zeros among [n, dim], which has no direction and so no cosine (RequestError, naming the row).

    `rows` as for `check_vectors`.
    """
    has_direction = vectors.any(axis=1)
    if not has_direction.all():
        row = int(np.argmin(has_direction))
        known_by = row if rows is None else rows[row]
        raise RequestError(
            f"{name} row {known_by} is all zeros and has no direction; metric=cosine needs one (metric=l2)"
        )


def unit_vectors(vectors: np.ndarray, name: str = "vectors", rows: np.ndarray | None = None) -> np.ndarray:
    """float32 [n, dim] divided by their lengths, rounded once; `name`, `rows` and errors as for `check_directions`."""
    check_directions(vectors, name, rows)
    units = np.empty(vectors.shape, dtype=np.float32)
    rows_at_once = max(1, (1 << 20) // vectors.shape[1])
    for start in range(0, len(vectors), rows_at_once):
        part = vectors[start : start + rows_at_once].astype(np.float64)
        units[start : start + rows_at_once] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return units


def check_column(column: np.ndarray, name: str, length: int) -> None:
    """Raise RequestError if `column` is not an int64 [length] array."""
    if column.shape != (length,):
        raise RequestError(
            f"{name} has shape {list(column.shape)}; it must be [{length}], one for each vector"
        )
    if column.dtype != np.int64:
        raise RequestError(
            f"{name} has dtype {column.dtype}; it must be int64 (convert it with .astype('int64'))"
        )


def sort_rows(labels: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """int64 [n]: the rows sorted by (label, id), the order of an index. Raises RequestError for ids that repeat."""
    order = np.lexsort((ids, labels))
    check_order(labels[order], ids[order])
    return order


def check_order(labels: np.ndarray, ids: np.ndarray) -> None:
    if len(labels) and (labels[0] < 0 or ids.min() < 0):
        raise RequestError("labels and ids must be at least 0 (-1 marks a missing neighbour)")
    rises = (labels[1:] > labels[:-1]) | ((labels[1:] == labels[:-1]) & (ids[1:] > ids[:-1]))
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise RequestError(f"id {repeated[0]} is given to more than one vector; ids must be unique")
    if not rises.all():
        raise RequestError(
            f"row {int(np.argmin(rises)) + 1} breaks the order: rows must be sorted by label, then by id"
        )
