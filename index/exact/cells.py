"""Rows grouped into cells, each around a nearby point:
rows in a tight cell are compared precisely, distant cells are skipped.

If an embedding has tight clusters far apart, a common origin for all vectors loses the digits that distinguish
neighbours. An origin in each cluster keeps them (‖x − y‖² = ‖x − c‖² − 2(x − c)·(y − c) + ‖y − c‖², and ‖y − c‖ is
small).
"""

from dataclasses import dataclass

import numpy as np

from index.exact.costs import Vectors

# Seeds are chosen among this many evenly spaced rows; 256 seeds in 4,096 x 128 take about 0.1 s.
_SAMPLE_ROWS = 4096
_MOST_CELLS = 256
# Smaller cells are not worth a separate matrix product.
_ROWS_A_CELL = 128
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Cells:
    """Rows, each in one of m cells."""

    rows: np.ndarray
    """int64 [rows], cell by cell, ascending in each"""

    starts: np.ndarray
    """int64 [m + 1]: cell j has rows[starts[j] : starts[j + 1]]"""

    centres: np.ndarray
    """float64 [m, dim]: the mean of a cell's points"""

    radii: np.ndarray
    """float64 [m]: no point of a cell is further from its centre"""

    def of(self, number: int, is_allowed: np.ndarray | None) -> np.ndarray:
        """Rows of a cell among those allowed, bool by row (None for all): int64."""
        rows = self.rows[self.starts[number] : self.starts[number + 1]]
        return rows if is_allowed is None else rows[is_allowed[rows]]


def one_cell(vectors: Vectors, rows: np.ndarray) -> Cells:
    """All of `rows`, int64 ascending, in one cell."""
    return _measured(vectors, rows, np.array([0, len(rows)]))


def find_cells(vectors: Vectors) -> Cells:
    """Find cells of all rows by the furthest-first traversal (Gonzalez, 1985):
    the next seed is the row furthest from all seeds.

    The radius is at most twice the smallest possible one for this number of seeds, so distant clusters get separate
    cells. Any cells give the same answers; good ones are faster. Deterministic.
    """
    num = len(vectors.raw)
    sample = np.unique(np.linspace(0, num - 1, min(num, _SAMPLE_ROWS)).astype(np.int64))
    points = vectors.points(sample)
    points -= points.mean(axis=0)
    points = (points / max(np.abs(points).max(), np.finfo(np.float64).tiny)).astype(np.float32)
    most = max(1, min(_MOST_CELLS, num // _ROWS_A_CELL))
    seeds, furthest = [0], np.full(len(points), np.inf, dtype=np.float32)
    while len(seeds) < most:
        differences = points - points[seeds[-1]]
        np.minimum(furthest, np.einsum("nd,nd->n", differences, differences), out=furthest)
        seed = int(furthest.argmax())
        if furthest[seed] == 0:
            break
        seeds.append(seed)
    around = vectors.points(sample[seeds])
    cell_of = np.empty(num, dtype=np.int64)
    middle = around.mean(axis=0)
    around -= middle
    half_squares = np.einsum("md,md->m", around, around) / 2
    for start in range(0, num, _ROWS_AT_ONCE):
        some = np.arange(start, min(start + _ROWS_AT_ONCE, num))
        cell_of[some] = (half_squares - (vectors.points(some) - middle) @ around.T).argmin(axis=1)
    sizes = np.bincount(cell_of, minlength=len(seeds))
    starts = np.concatenate([[0], np.cumsum(sizes[sizes > 0])])
    return _measured(vectors, np.argsort(cell_of, kind="stable"), starts)


def _measured(vectors: Vectors, rows: np.ndarray, starts: np.ndarray) -> Cells:
    """The cells with their centres and radii."""
    num, dim = len(starts) - 1, vectors.raw.shape[1]
    centres, radii = np.zeros((num, dim)), np.zeros(num)
    for number in range(num):
        own = rows[starts[number] : starts[number + 1]]
        parts = [own[first : first + _ROWS_AT_ONCE] for first in range(0, len(own), _ROWS_AT_ONCE)]
        for part in parts:
            centres[number] += vectors.points(part).sum(axis=0)
        centres[number] /= max(len(own), 1)
        for part in parts:
            offsets = vectors.points(part) - centres[number]
            lengths = np.sqrt(np.einsum("nd,nd->n", offsets, offsets))
            radii[number] = max(radii[number], float(lengths.max()) * (1 + 1e-9))
    return Cells(rows, starts, centres, radii)
