"""The vectors of a shard, searched one against all: FAISS on slices, in float32.

Rows of two labels that must not meet are kept apart by slices where that goes, else by a masked matrix product.
Squared distances and products are both held as a *cost*, the smaller the better.
"""

import functools
from typing import Any, Literal

import faiss
import numpy as np

from index.blas import matrix_product_from
from index.config import Device, Metric
from index.errors import RequestError

# FAISS searches fewer queries than this faster one by one than by a matrix product (20,000 x 128, one thread:
# 1 query 1.4 against 4.5 ms, 4 queries 4.3 against 4.2, 64 queries 58 against 11).
_QUERIES_FOR_BLAS = 4
_TILE_QUERIES = 512
_TILE_ROWS = 4096  # with the above 8 MiB of float32, which stays in the cache
_ROWS_AT_ONCE = 1 << 16  # rows copied at once where no copy of all is kept
_GPU_NEIGHBOURS = 2048  # FAISS's GPU search gives no more


def choose_device(device: Device) -> Literal["cpu", "gpu"]:
    """Where to search. Raises RequestError for a GPU that FAISS does not see."""
    if device == "gpu" and faiss.get_num_gpus() == 0:
        raise RequestError("index.device=gpu: FAISS sees no GPU on this machine (index.device=cpu, or auto)")
    return "gpu" if device == "gpu" else "cpu"


@functools.cache
def gpu_resources() -> Any:
    """FAISS's scratch memory on the GPU, one for the process."""
    return faiss.StandardGpuResources()


class FlatRows:
    """Rows of a shard, searched exactly up to float32's rounding.

    raw: float32 [rows, dim]; labels: int64 [rows]; mean: float32 [dim] that is taken off first, or None.
    With `keep_copy`, the rows without their mean stay in memory; otherwise they are made piece by piece.
    """

    def __init__(
        self,
        raw: np.ndarray,
        labels: np.ndarray,
        metric: Metric,
        mean: np.ndarray | None,
        *,
        keep_copy: bool,
        device: Literal["cpu", "gpu"] = "cpu",
    ) -> None:
        self._raw = raw
        self._labels = labels
        self._is_l2 = metric == "l2"
        self._mean = mean
        self._keep_copy = keep_copy and mean is not None
        self._device = device

    def centre(self, queries: np.ndarray) -> np.ndarray:
        """Queries as the rows are held; the other methods take these."""
        return queries if self._mean is None else queries - self._mean

    def nearest(
        self, queries: np.ndarray, start: int, stop: int, count: int, *, is_class: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The nearest of rows [start, stop): costs float32 and rows int64 [n, count]; at least `count` rows.

        `is_class` takes the mean of these rows off first, which keeps tight classes far from the origin exact.
        """
        if is_class or self._keep_copy or self._mean is None:
            return self._nearest_of(queries, self._rows(start, stop), count, start, is_class=is_class)
        parts = []
        for first in range(start, stop, _ROWS_AT_ONCE):
            last = min(first + _ROWS_AT_ONCE, stop)
            parts.append(self._nearest_of(queries, self._rows(first, last), min(count, last - first), first))
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

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._copy[start:stop] if self._keep_copy else self.centre(self._raw[start:stop])

    def _nearest_of(
        self, queries: np.ndarray, rows: np.ndarray, count: int, start: int, *, is_class: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        if is_class and self._is_l2:
            center = rows.mean(axis=0)
            queries, rows = queries - center, rows - center
        metric = faiss.METRIC_L2 if self._is_l2 else faiss.METRIC_INNER_PRODUCT
        if self._device == "gpu" and count <= _GPU_NEIGHBOURS:
            values, found = faiss.knn_gpu(gpu_resources(), queries, rows, count, metric=metric)
        else:
            with matrix_product_from(_QUERIES_FOR_BLAS, len(queries)):
                values, found = faiss.knn(queries, rows, count, metric=metric)
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
