"""The vectors of a shard, searched one against all: FAISS on slices, in float32.

Rows of two labels that must not meet are kept apart by slices where that goes, else by a masked matrix product.
Squared distances and products are both held as a *cost*, the smaller the better.
"""

import functools
from typing import Any

import numpy as np

from index import gpu as gpus
from index.base.errors import RequestError
from index.config import Metric
from index.runtime import faiss, matrix_product_from

# FAISS searches fewer queries than this faster one by one than by a matrix product (20,000 x 128, one thread:
# 1 query 1.4 against 4.5 ms, 4 queries 4.3 against 4.2, 64 queries 58 against 11).
_QUERIES_FOR_BLAS = 4
_TILE_QUERIES = 512
_TILE_ROWS = 4096  # with the above 8 MiB of float32, which stays in the cache
# Rows copied at once where no copy of all is kept, and rows of one index on a GPU. There, larger ones make fewer searches, and
# more to upload for a range that ends inside one: 64 MiB at dim 256.
_ROWS_AT_ONCE = 1 << 16
# Products of numbers below which a CPU has the answer before a GPU has the rows; an estimate, not measured.
_PRODUCTS_FOR_GPU = 1 << 26


class FlatRows:
    """Rows of a shard, searched exactly up to float32's rounding.

    raw: float32 [rows, dim]; labels: int64 [rows]; mean: float32 [dim] that is taken off first, or None.
    With `keep_copy`, the rows without their mean stay in memory, and on a GPU as well if one is named (by its number);
    otherwise they are made, and uploaded, piece by piece.
    """

    def __init__(
        self,
        raw: np.ndarray,
        labels: np.ndarray,
        metric: Metric,
        mean: np.ndarray | None,
        *,
        keep_copy: bool,
        gpu: int | None = None,
    ) -> None:
        self._raw = raw
        self._labels = labels
        self._is_l2 = metric == "l2"
        self._metric = faiss.METRIC_L2 if self._is_l2 else faiss.METRIC_INNER_PRODUCT
        self._mean = mean
        self._keep_copy = keep_copy and mean is not None
        self._gpu = gpu
        self._is_on_gpu = keep_copy and gpu is not None

    def prepare(self) -> None:
        """Make the copies that stay, which the first search makes otherwise."""
        if self._keep_copy:
            _ = self._copy
        if self._is_on_gpu:
            _ = self._on_gpu

    def centre(self, queries: np.ndarray) -> np.ndarray:
        """Queries as the rows are held; the other methods take these."""
        return queries if self._mean is None else queries - self._mean

    def nearest(
        self, queries: np.ndarray, start: int, stop: int, count: int, *, is_class: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of rows [start, stop): costs float32 and rows int64 [n, count]; at least `count` rows.

        `is_class` takes the mean of these rows off first, which keeps tight classes far from the origin exact.
        """
        if is_class or (self._gpu is None and (self._keep_copy or self._mean is None)):
            return self._nearest_of(queries, self._rows(start, stop), count, start, is_class=is_class)
        parts = []
        for piece in range(start // _ROWS_AT_ONCE, -(-stop // _ROWS_AT_ONCE)):
            first, last = piece * _ROWS_AT_ONCE, min((piece + 1) * _ROWS_AT_ONCE, len(self._raw))
            is_whole = start <= first and last <= stop
            first, last = max(first, start), min(last, stop)
            most = min(count, last - first)
            if self._is_on_gpu and is_whole and most <= gpus.MOST_NEIGHBOURS:
                values, rows = gpus.search_on_gpu(self._on_gpu[piece], queries, most)
                parts.append((values if self._is_l2 else -values, rows + first))
            else:
                parts.append(self._nearest_of(queries, self._rows(first, last), most, first))
        return keep_best(parts, count)

    def nearest_among(
        self, queries: np.ndarray, rows: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of the rows named, int64 [m], m at least `count`, as in `nearest`."""
        parts = []
        for first in range(0, len(rows), _ROWS_AT_ONCE):
            some = rows[first : first + _ROWS_AT_ONCE]
            vectors = self.centre(self._raw[some])
            costs, places = self._nearest_of(queries, vectors, min(count, len(some)), 0)
            parts.append((costs, some[places]))
        return keep_best(parts, count)

    def nearest_of_other_labels(
        self, queries: np.ndarray, labels: np.ndarray, start: int, stop: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of rows [start, stop) with another label than the query's; labels int64 [n] ascend.

        Row −1 where there are fewer than `count`.
        """
        costs = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        for first in range(0, len(queries), _TILE_QUERIES):
            part = slice(first, first + _TILE_QUERIES)
            heap = heap_over(costs[part], rows[part])
            left = self._augment_queries(queries[part])
            for row in range(start, stop, _TILE_ROWS):
                end = min(row + _TILE_ROWS, stop)
                tile = left @ self._augment_rows(row, end).T
                _mask_same_labels(tile, labels[part], self._labels[row:end])
                # The heap takes only costs below float32's largest number, so masked pairs never enter.
                heap.addn(end - row, faiss.swig_ptr(tile), row, 0, len(tile))
            heap.reorder()
        return costs, rows

    @functools.cached_property
    def _copy(self) -> np.ndarray:
        """All rows without their mean, made at the first search: who only reads vectors pays for no copy."""
        return np.asarray(self._raw - self._mean)

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
                f"index.device=gpu: {num} vectors of {dim} numbers, {num * dim * 4 / 1e9:.2g} GB, are more than the GPU has room for: "
                f"{' '.join(str(error).split())[-120:]} (index.device=cpu, or more GPUs with a part of index.shards each)"
            ) from None

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._copy[start:stop] if self._keep_copy else self.centre(self._raw[start:stop])

    def _nearest_of(
        self, queries: np.ndarray, rows: np.ndarray, count: int, start: int, *, is_class: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        if is_class and self._is_l2:
            center = rows.mean(axis=0)
            queries, rows = queries - center, rows - center
        is_worth_it = len(queries) * rows.size >= _PRODUCTS_FOR_GPU and count <= gpus.MOST_NEIGHBOURS
        if self._gpu is not None and is_worth_it:
            uploaded = gpus.upload_flat(rows, self._metric, self._gpu)
            values, found = gpus.search_on_gpu(uploaded, queries, count)
        else:
            with matrix_product_from(_QUERIES_FOR_BLAS, len(queries)):
                values, found = faiss.knn(queries, rows, count, metric=self._metric)
        return (values if self._is_l2 else -values), found + start

    def _augment_queries(self, queries: np.ndarray) -> np.ndarray:
        """Columns that make one matrix product the whole cost: (-2x, |x|², 1)·(y, 1, |y|²), or (-x)·y."""
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


def keep_best(parts: list[tuple[np.ndarray, np.ndarray]], count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` least costs of several (costs, rows), in no order; all of them where there are fewer."""
    if len(parts) == 1 and parts[0][0].shape[1] <= count:
        return parts[0]
    costs, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*parts, strict=True))
    if costs.shape[1] <= count:
        return costs, rows
    best = np.argpartition(costs, count - 1, axis=1)[:, :count]
    return np.take_along_axis(costs, best, axis=1), np.take_along_axis(rows, best, axis=1)


def heap_over(costs: np.ndarray, rows: np.ndarray) -> Any:
    """FAISS's heaps of the smallest costs, one a query, that live in the two arrays [queries, count]."""
    heap = faiss.float_maxheap_array_t()
    heap.nh, heap.k = costs.shape
    heap.val = faiss.swig_ptr(costs)
    heap.ids = faiss.swig_ptr(rows)
    heap.heapify()
    return heap


def _mask_same_labels(tile: np.ndarray, query_labels: np.ndarray, row_labels: np.ndarray) -> None:
    """Put +inf where a query (row of `tile`) and a vector (column) have one label; both labels ascend."""
    for label in np.unique(query_labels):
        tile[_places_of(label, query_labels), _places_of(label, row_labels)] = np.inf


def _places_of(label: np.int64, labels: np.ndarray) -> slice:
    return slice(
        int(np.searchsorted(labels, label, side="left")), int(np.searchsorted(labels, label, side="right"))
    )
