"""Brute-force search of a shard's vectors: FAISS on slices, in float32, with a bound on the rounding error.

Pairs of the same label are excluded by searching slices if possible, otherwise by a masked matrix product.
Squared distances and products are both represented as a *cost*; smaller is better.
"""

import dataclasses
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from index import gpu as gpus
from index.base.errors import RequestError
from index.exact.costs import Vectors, linear
from index.exact.rounding import FLOAT32, LARGEST_LENGTH, product_error, squared_distance_error
from index.runtime import faiss, matrix_product_from
from index.vectors import unit_vectors

# FAISS searches fewer queries than this faster one by one than by a matrix product (20,000 x 128, one thread:
# 1 query 1.4 against 4.5 ms, 4 queries 4.3 against 4.2, 64 queries 58 against 11).
_QUERIES_FOR_BLAS = 4
_TILE_QUERIES = 512
_TILE_ROWS = 4096  # with the above 8 MiB of float32, which fit in the cache
# Rows per temporary copy if no copy of all rows is kept, and rows per index on a GPU. On a GPU, larger ones need fewer
# searches, but a range that ends inside one has more to upload: 64 MiB at dim 256.
_ROWS_AT_ONCE = 1 << 16
# Products of numbers below which a CPU has the answer before a GPU has the rows; an estimate, not measured.
_PRODUCTS_FOR_GPU = 1 << 26


# Numbers up to this far from 1, either way, have squares and products well inside float32's range.
_USUAL_EXPONENT = 40
_LEAST_EXPONENT = -120  # the power of two must be a float32 itself


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries in the same representation as the rows."""

    vectors: np.ndarray
    """float32 [n, dim]"""

    lengths: np.ndarray
    """float64 [n]: their norms; inf where squares leave float32's range"""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidates for n queries."""

    costs: np.ndarray
    """float32 [n, c]: costs in the stored representation, rounded"""

    rows: np.ndarray
    """int64 [n, c], −1 for none"""

    lengths: np.ndarray
    """float64 [n]: norms of the queries in the coordinates in which they were compared"""


class FlatRows:
    """Rows of a shard, searched exactly up to float32's rounding.

    Rows are stored without their mean (float32 [dim], or None), with length 1 for cosine, and multiplied by a power
    of two if numbers are very large or very small. With `keep_copy`, the transformed rows stay in memory, and on the
    GPU of the given number as well; otherwise they are computed, and uploaded, piece by piece. labels: int64 [rows].
    """

    def __init__(
        self,
        vectors: Vectors,
        labels: np.ndarray,
        mean: np.ndarray | None,
        *,
        keep_copy: bool,
        gpu: int | None = None,
    ) -> None:
        self._raw = vectors.raw
        self._vectors = vectors
        self._labels = labels
        self._is_l2 = vectors.metric == "l2"
        self._is_cosine = vectors.metric == "cosine"
        self._metric = faiss.METRIC_L2 if self._is_l2 else faiss.METRIC_INNER_PRODUCT
        self._mean = mean
        self._may_keep = keep_copy
        self._gpu = gpu
        self._is_on_gpu = keep_copy and gpu is not None

    def prepare(self) -> None:
        """Create the permanent copies, which otherwise the first search creates."""
        _ = self._longest
        if self._keeps_copy:
            _ = self._copy
        if self._is_on_gpu:
            _ = self._on_gpu

    def hold(self, queries: np.ndarray) -> Queries:
        """Transform queries float32 [n, dim] like the rows; the other methods expect the result."""
        held = self._held(queries)
        lengths = _lengths(held)
        is_far = ~(lengths < LARGEST_LENGTH)
        if is_far.any():
            # Their float32 costs are not finite and have no error bound, so they get a second pass.
            held = np.where(is_far[:, None], np.float32(0), held)
            lengths[is_far] = np.inf
        return Queries(held, lengths)

    def is_proven(self, worst: np.ndarray, lengths: np.ndarray, kth: np.ndarray) -> np.ndarray:
        """Whether no row that was not proposed may cost `kth` or less: bool [n].

        worst: float [n], the largest cost proposed; lengths: as in `Proposal`; kth: float64 [n], true costs.
        """
        dim = self._raw.shape[1]
        unit = FLOAT32 if self._gpu is None else gpus.ROUNDING
        kth = linear(kth, self._vectors.metric) * self._scale**2
        if self._is_l2:
            # By the triangle inequality a longer row is further away, so the bound need not include it.
            longest = (lengths + np.sqrt(kth)) * (1 + 1e-9)
            error = squared_distance_error(dim, lengths, longest, unit)
        else:
            error = product_error(dim, lengths, self._longest, unit)
        return np.asarray(worst > kth + error)

    @functools.cached_property
    def _scale(self) -> float:
        """A power of two that scales the largest number of all rows to about 1, or 1 if that is not needed."""
        if self._is_cosine:
            return 1.0
        largest = max(float(np.abs(part).max(initial=0)) for part in self._parts())
        exponent = 0 if largest == 0 else int(np.floor(np.log2(largest)))
        return 1.0 if abs(exponent) <= _USUAL_EXPONENT else 2.0 ** -max(exponent, _LEAST_EXPONENT)

    @functools.cached_property
    def _longest(self) -> float:
        """Length of the longest transformed row; needed for products only."""
        if self._is_l2:
            return np.inf
        if self._is_cosine:
            return 1 + 1e-6
        return max(float(_lengths(part).max(initial=0)) for part in self._parts()) * self._scale

    def _parts(self) -> Iterator[np.ndarray]:
        """All transformed rows except for the scale, piece by piece."""
        for start in range(0, max(len(self._raw), 1), _ROWS_AT_ONCE):
            part = self._raw[start : start + _ROWS_AT_ONCE]
            yield part if self._mean is None else part - self._mean

    @property
    def _keeps_copy(self) -> bool:
        return self._may_keep and (self._mean is not None or self._is_cosine or self._scale != 1)

    def _held(self, vectors: np.ndarray) -> np.ndarray:
        if self._is_cosine:
            return unit_vectors(vectors)
        if self._mean is not None:
            vectors = vectors - self._mean
        if self._scale == 1:
            return vectors
        with np.errstate(over="ignore"):
            return vectors * np.float32(self._scale)

    def nearest(
        self, queries: Queries, start: int, stop: int, count: int, *, is_class: bool = False
    ) -> Proposal:
        """The nearest of rows [start, stop), at least `count`.

        `is_class` subtracts the mean of these rows first, which keeps tight classes far from the origin exact.
        """
        if is_class or (self._gpu is None and self._has_rows):
            return self._nearest_of(queries, self._rows(start, stop), count, start, is_class=is_class)
        parts = []
        for piece in range(start // _ROWS_AT_ONCE, -(-stop // _ROWS_AT_ONCE)):
            first, last = piece * _ROWS_AT_ONCE, min((piece + 1) * _ROWS_AT_ONCE, len(self._raw))
            is_whole = start <= first and last <= stop
            first, last = max(first, start), min(last, stop)
            most = min(count, last - first)
            if self._is_on_gpu and is_whole and most <= gpus.MOST_NEIGHBOURS:
                values, rows = gpus.search_on_gpu(self._on_gpu[piece], queries.vectors, most)
                parts.append(Proposal(values if self._is_l2 else -values, rows + first, queries.lengths))
            else:
                parts.append(self._nearest_of(queries, self._rows(first, last), most, first))
        return keep_best(parts, count)

    def nearest_among(self, queries: Queries, rows: np.ndarray, count: int) -> Proposal:
        """The nearest of the rows named, int64 [m], m at least `count`."""
        parts = []
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[first : first + _ROWS_AT_ONCE]
            vectors = self._held(self._raw[some])
            found = self._nearest_of(queries, vectors, min(count, len(some)), 0)
            parts.append(dataclasses.replace(found, rows=np.where(found.rows < 0, -1, some[found.rows])))
        return keep_best(parts, count)

    def nearest_of_other_labels(
        self, queries: Queries, labels: np.ndarray, start: int, stop: int, count: int
    ) -> Proposal:
        """The nearest of rows [start, stop) with another label than the query's; labels int64 [n] ascend.

        The row is −1 where there are fewer than `count`.
        """
        num = len(queries.vectors)
        costs = np.empty((num, count), dtype=np.float32)
        rows = np.empty((num, count), dtype=np.int64)
        for first in range(0, num, _TILE_QUERIES):
            part = slice(first, first + _TILE_QUERIES)
            heap = heap_over(costs[part], rows[part])
            left = self._augment_queries(queries.vectors[part])
            for row in range(start, stop, _TILE_ROWS):
                end = min(row + _TILE_ROWS, stop)
                tile = left @ self._augment_rows(row, end).T
                _mask_same_labels(tile, labels[part], self._labels[row:end])
                # The heap accepts only costs below float32's largest number, so masked pairs never enter.
                heap.addn(end - row, faiss.swig_ptr(tile), row, 0, len(tile))
            heap.reorder()
        return Proposal(costs, rows, queries.lengths)

    @functools.cached_property
    def _copy(self) -> np.ndarray:
        """All transformed rows, created at the first search, so that reading vectors needs no copy."""
        return self._held(self._raw)

    @functools.cached_property
    def _on_gpu(self) -> list[Any]:
        """All rows as flat indexes on the GPU, `_ROWS_AT_ONCE` each, uploaded at the first search."""
        assert self._gpu is not None
        num, dim = self._raw.shape
        try:
            return [
                gpus.upload_flat(self._rows(first, min(first + _ROWS_AT_ONCE, num)), self._metric, self._gpu)
                for first in range(0, num, _ROWS_AT_ONCE)
            ]
        except RuntimeError as error:
            raise RequestError(
                f"index.device=gpu: {num} vectors of {dim} numbers, {num * dim * 4 / 1e9:.2g} GB, do not fit into "
                f"the GPU's memory: {' '.join(str(error).split())[-120:]} (index.device=cpu, or more GPUs with a "
                "part of index.shards each)"
            ) from None

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._copy[start:stop] if self._keeps_copy else self._held(self._raw[start:stop])

    @property
    def _has_rows(self) -> bool:
        """Whether the transformed rows are in memory."""
        return self._keeps_copy or (self._mean is None and not self._is_cosine and self._scale == 1)

    def _nearest_of(
        self, queries: Queries, rows: np.ndarray, count: int, start: int, *, is_class: bool = False
    ) -> Proposal:
        vectors, lengths = queries.vectors, queries.lengths
        if is_class and self._is_l2:
            center = rows.mean(axis=0)
            vectors, rows = vectors - center, rows - center
            lengths = _lengths(vectors)
        is_worth_it = len(vectors) * rows.size >= _PRODUCTS_FOR_GPU and count <= gpus.MOST_NEIGHBOURS
        if self._gpu is not None and is_worth_it:
            uploaded = gpus.upload_flat(rows, self._metric, self._gpu)
            values, found = gpus.search_on_gpu(uploaded, vectors, count)
        else:
            with matrix_product_from(_QUERIES_FOR_BLAS, len(vectors)):
                values, found = faiss.knn(vectors, rows, count, metric=self._metric)
        return Proposal(values if self._is_l2 else -values, np.where(found < 0, -1, found + start), lengths)

    def _augment_queries(self, queries: np.ndarray) -> np.ndarray:
        """Columns that make one matrix product the complete cost: (-2x, |x|², 1)·(y, 1, |y|²), or (-x)·y."""
        if not self._is_l2:
            return -queries
        norms = np.einsum("nd,nd->n", queries, queries)[:, None]
        return np.concatenate([-2 * queries, norms, np.ones_like(norms)], axis=1)

    def _augment_rows(self, start: int, stop: int) -> np.ndarray:
        rows = self._rows(start, stop)
        if not self._is_l2:
            return rows
        norms = np.einsum("nd,nd->n", rows, rows)[:, None]
        return np.concatenate([rows, np.ones_like(norms), norms], axis=1)


def keep_best(parts: list[Proposal], count: int) -> Proposal:
    """The `count` smallest costs of several proposals for the same queries, unordered;
    all of them if there are fewer."""
    if len(parts) == 1 and parts[0].costs.shape[1] <= count:
        return parts[0]
    costs = np.concatenate([part.costs for part in parts], axis=1)
    rows = np.concatenate([part.rows for part in parts], axis=1)
    lengths = np.max([part.lengths for part in parts], axis=0)
    if costs.shape[1] > count:
        best = np.argpartition(costs, count - 1, axis=1)[:, :count]
        costs, rows = np.take_along_axis(costs, best, axis=1), np.take_along_axis(rows, best, axis=1)
    return Proposal(costs, rows, lengths)


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Norms of float32 [n, dim], in float64: [n]."""
    return np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))


def heap_over(costs: np.ndarray, rows: np.ndarray) -> Any:
    """FAISS's heaps of the smallest costs, one per query, which use the two arrays [queries, count] as storage."""
    heap = faiss.float_maxheap_array_t()
    heap.nh, heap.k = costs.shape
    heap.val = faiss.swig_ptr(costs)
    heap.ids = faiss.swig_ptr(rows)
    heap.heapify()
    return heap


def _mask_same_labels(tile: np.ndarray, query_labels: np.ndarray, row_labels: np.ndarray) -> None:
    """Set +inf where a query (row of `tile`) and a vector (column) have the same label; both labels ascend."""
    for label in np.unique(query_labels):
        tile[_places_of(label, query_labels), _places_of(label, row_labels)] = np.inf


def _places_of(label: np.int64, labels: np.ndarray) -> slice:
    return slice(
        int(np.searchsorted(labels, label, side="left")), int(np.searchsorted(labels, label, side="right"))
    )
