"""One shard: the exact nearest of a contiguous range of positions.

Float32 arithmetic only proposes: FAISS (or a masked matrix product) names k + 10 candidates on centred vectors,
and direct differences in float64 on the raw vectors decide. Squared distances and products are both held as a
*cost*, the smaller the better, so that one path serves both metrics.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from index import versions
from index.config import Metric
from index.merge import order_top_k
from index.versions import Manifest

# Candidates beyond k that float64 decides about. With none, 27% of rows had a wrong neighbour set on embeddings
# of norm 16 and spread 0.01; with 10, no row had.
MARGIN = 10
# FAISS searches fewer queries than this faster one by one than by a matrix product (20,000 x 128, one thread:
# 1 query 1.4 against 4.5 ms, 4 queries 4.3 against 4.2, 64 queries 58 against 11).
_QUERIES_FOR_BLAS = 4
_QUERIES_AT_ONCE = 4096
_TILE_QUERIES = 512
_TILE_ROWS = 4096  # with the above 8 MiB of float32, which stays in the cache
_RERANK_NUMBERS = 1 << 21  # float64 numbers held at once while candidates are judged: 16 MiB

_blas_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Task:
    """One rectangle to search: some queries against a range of positions."""

    query_start: int
    """First query of the request."""

    query_stop: int
    """One beyond the last query."""

    start: int
    """First position."""

    stop: int
    """One beyond the last position."""

    is_masked: bool = False
    """Leave out pairs of one label. The request's labels must ascend over these queries."""

    is_class: bool = False
    """The range is one class: it is centred by its own mean, which keeps tight classes far from the origin exact."""


@dataclass(frozen=True, slots=True)
class Request:
    """What every shard is asked; plain arrays, so that it travels to actors without copies."""

    queries: np.ndarray
    """float32 [n, dim]."""

    labels: np.ndarray
    """int64 [n]; read only by masked tasks."""

    skip: np.ndarray
    """int64 [n]: the position that is left out of a query's answer, -1 for none."""

    k: int
    """Answers a query."""

    tasks: tuple[Task, ...]
    """Tasks of the same queries stand side by side; their ranges are disjoint."""


class Shard:
    """The vectors of positions [start, start + rows), raw on disk and centred in memory.

    vectors: float32 [rows, dim]; ids, labels: int64 [rows]; mean: float [dim] or None (inner_product).
    Memory: one float32 copy of the shard for l2, none for inner_product.
    """

    def __init__(
        self,
        start: int,
        vectors: np.ndarray,
        ids: np.ndarray,
        labels: np.ndarray,
        metric: Metric,
        mean: np.ndarray | None,
    ) -> None:
        self.start = start
        self.stop = start + len(vectors)
        self._raw = vectors
        self._ids = ids
        self._labels = labels
        self._metric: Metric = metric
        self._mean = None if mean is None else mean.astype(np.float32)

    @functools.cached_property
    def _ranked(self) -> np.ndarray:
        """The vectors FAISS sees, made at the first search: who only reads vectors pays for no copy."""
        return self._raw if self._mean is None else np.asarray(self._raw - self._mean)

    @classmethod
    def open(cls, folder: Path, manifest: Manifest, shard: int) -> "Shard":
        """Open a shard of a version from disk. Raises VersionError."""
        start, stop = manifest.shard_range(shard)
        return cls(
            start,
            versions.read_shard(folder, manifest, shard),
            versions.read_ids(folder, manifest)[start:stop],
            versions.read_labels(folder, manifest)[start:stop],
            manifest.metric,
            None if manifest.mean is None else np.array(manifest.mean),
        )

    def answer(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """This shard's k best for each query: ids int64 [n, k] and costs float64 [n, k], best first.

        A cost is the squared distance (l2) or the negative product (inner_product); -1 and +inf fill up.
        """
        ids = np.full((len(request.queries), request.k), -1, dtype=np.int64)
        costs = np.full((len(request.queries), request.k), np.inf)
        for (first, last), group in itertools.groupby(
            request.tasks, key=lambda task: (task.query_start, task.query_stop)
        ):
            tasks = list(group)
            for start in range(first, last, _QUERIES_AT_ONCE):
                part = slice(start, min(start + _QUERIES_AT_ONCE, last))
                candidates = self._propose(request, part, tasks)
                if candidates is not None:
                    ids[part], costs[part] = self._decide(request, part, candidates)
        return ids, costs

    def _propose(self, request: Request, part: slice, tasks: list[Task]) -> np.ndarray | None:
        """Rows of this shard that may be among the k best: int64 [queries, at most k + 11], -1 for none."""
        queries = request.queries[part]
        if self._mean is not None:
            queries = queries - self._mean
        width = request.k + MARGIN + 1  # one more for the position that is left out
        costs, rows = [], []
        for task in tasks:
            start, stop = max(task.start, self.start) - self.start, min(task.stop, self.stop) - self.start
            if start >= stop:
                continue
            count = min(width, stop - start)
            if task.is_masked:
                found = self._nearest_of_other_labels(queries, request.labels[part], start, stop, count)
            else:
                found = self._nearest(queries, start, stop, count, task.is_class)
            costs.append(found[0])
            rows.append(found[1])
        if not rows:
            return None
        proposed = np.concatenate(rows, axis=1)
        if proposed.shape[1] <= width:
            return proposed
        best = np.argpartition(np.concatenate(costs, axis=1), width - 1, axis=1)[:, :width]
        return np.take_along_axis(proposed, best, axis=1)

    def _nearest(
        self, queries: np.ndarray, start: int, stop: int, count: int, is_class: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        ranked = self._ranked[start:stop]
        if self._metric == "inner_product":
            with _blas_from(_QUERIES_FOR_BLAS, queries):
                products, rows = faiss.knn(queries, ranked, count, metric=faiss.METRIC_INNER_PRODUCT)
            return -products, rows + start
        if is_class:
            center = ranked.mean(axis=0)
            queries, ranked = queries - center, ranked - center
        with _blas_from(_QUERIES_FOR_BLAS, queries):
            squares, rows = faiss.knn(queries, ranked, count)
        return squares, rows + start

    def _nearest_of_other_labels(
        self, queries: np.ndarray, labels: np.ndarray, start: int, stop: int, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        costs = np.empty((len(queries), count), dtype=np.float32)
        rows = np.empty((len(queries), count), dtype=np.int64)
        for first in range(0, len(queries), _TILE_QUERIES):
            part = slice(first, first + _TILE_QUERIES)
            heap = _heap_over(costs[part], rows[part])
            left = self._augment_queries(queries[part])
            for row in range(start, stop, _TILE_ROWS):
                end = min(row + _TILE_ROWS, stop)
                tile = left @ self._augment_rows(row, end).T
                _mask_same_labels(tile, labels[part], self._labels[row:end])
                # The heap takes only costs below float32's largest number, so masked pairs never enter.
                heap.addn(end - row, faiss.swig_ptr(tile), row, 0, len(tile))
            heap.reorder()
        return costs, rows

    def _augment_queries(self, queries: np.ndarray) -> np.ndarray:
        """Columns that make one matrix product the whole cost: (-2x, |x|², 1)·(y, 1, |y|²), or (-x)·y."""
        if self._metric == "inner_product":
            return -queries
        norms = np.einsum("nd,nd->n", queries, queries)[:, None]
        return np.concatenate([-2 * queries, norms, np.ones_like(norms)], axis=1)

    def _augment_rows(self, start: int, stop: int) -> np.ndarray:
        rows = self._ranked[start:stop]
        if self._metric == "inner_product":
            return rows
        norms = np.einsum("nd,nd->n", rows, rows)[:, None]
        return np.concatenate([rows, np.ones_like(norms), norms], axis=1)

    def _decide(self, request: Request, part: slice, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Order candidates by float64 costs of the raw vectors: ids [queries, k] and costs [queries, k]."""
        queries, skip = request.queries[part], request.skip[part]
        costs = np.empty(rows.shape)
        at_once = max(1, _RERANK_NUMBERS // (rows.shape[1] * queries.shape[1]))
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            # [queries, candidates, dim]
            vectors = self._raw[rows[some]].astype(np.float64)
            against = queries[some, None, :].astype(np.float64)
            if self._metric == "l2":
                vectors -= against
                costs[some] = np.einsum("ncd,ncd->nc", vectors, vectors)
            else:
                vectors *= against
                costs[some] = -vectors.sum(axis=2)
        ids = self._ids[rows]
        left_out = (rows < 0) | (rows + self.start == skip[:, None])
        ids[left_out] = -1
        costs[left_out] = np.inf
        return order_top_k(ids, costs, request.k)


@contextlib.contextmanager
def _blas_from(num_queries: int, queries: np.ndarray) -> Iterator[None]:
    """Let FAISS use the matrix product from this many queries on; its own rule is 8 times slower between."""
    with _blas_lock:
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= num_queries else 1 << 30
        try:
            yield
        finally:
            faiss.cvar.distance_compute_blas_threshold = before


def _heap_over(costs: np.ndarray, rows: np.ndarray) -> Any:
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
