"""Second pass for queries whose float32 candidates are not proven to be the nearest.

One matrix product around each cell's centre gives a lower bound on each cost. Rows whose bound is low enough are
compared by their exact costs. The bounds are computed in float32 first, and in float64 for queries with too many such
rows.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from index.exact.cells import Cells, find_cells, one_cell
from index.exact.costs import Vectors, linear, query_points
from index.exact.rounding import FLOAT32, FLOAT64, gamma, product_error, squared_distance_error
from index.runtime import faiss

_QUERIES_AT_ONCE = 512
_ROWS_AT_ONCE = 4096  # with the above 8 MiB of float32, which fit in the cache
_QUERIES_A_THREAD = 256  # for fewer, threads cost more than they save
# Cells are computed once this many queries needed a second pass; before that, all rows form one cell.
_QUERIES_FOR_CELLS = 64
# Exact costs of a 64th of the rows take about as long as a float64 product with all of them.
_SHARE_JUDGED = 64
# Candidates beyond k whose exact costs lower the limit of a query that too many rows are below.
_SPARE = 8
# Costs, limits, centres and points are float64, each with its own rounding.
_FLOAT64_STEPS = 8
# What float32 may lose below its range, in units in which offsets and queries are about 1.
_UNDERFLOW = 2.0**-100
# Number of pairs that are kept before the best are selected, 24 bytes each.
_PAIRS_AT_ONCE = 1 << 22
# From this number of pairs on, equal rows are compared only once.
_PAIRS_FOR_TWINS = 1 << 16


class SecondLook:
    """Exact neighbours among the rows of a shard. Threads may share it.

    vectors: the shard's; labels, ids: int64 [rows].
    """

    def __init__(self, vectors: Vectors, labels: np.ndarray, ids: np.ndarray) -> None:
        self._vectors = vectors
        self._labels = labels
        self._ids = ids
        self.num_queries = 0
        """Number of queries that had a second pass so far."""

    def nearest(
        self,
        queries: np.ndarray,
        labels: np.ndarray,
        limits: np.ndarray,
        k: int,
        is_allowed: np.ndarray,
        *,
        is_masked: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the allowed rows for each query: rows int64 [n, k] and costs float64 [n, k], −1 and +inf
        where fewer are needed.

        Args:
            queries: float32 [n, dim].
            labels: int64 [n]; with `is_masked` rows of a query's own label are left out.
            limits: float64 [n]: rows that cost more are not needed; +inf where all are.
            k: at least 1.
            is_allowed: bool [rows].
            is_masked: whether labels count.
        """
        self.num_queries += len(queries)
        # Equal queries are searched once: in a collapsed embedding all of them are equal.
        keys = np.ascontiguousarray(queries + np.float32(0)).view(np.uint8)  # -0 is 0
        if is_masked:
            keys = np.concatenate([keys, labels[:, None].view(np.uint8)], axis=1)
        as_one = np.ascontiguousarray(keys).view(np.dtype((np.void, keys.shape[1]))).ravel()
        _, firsts, place = np.unique(as_one, return_index=True, return_inverse=True)
        of_query = np.full(len(firsts), -np.inf)
        np.maximum.at(of_query, place, limits)
        cells, is_allowed_of = self._cells_of(is_allowed)
        dtypes = (
            (np.float32, np.float64)
            if len(firsts) >= _QUERIES_FOR_CELLS or len(cells.radii) > 1
            else (np.float64,)
        )

        def answer(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            some = firsts[part]
            own = labels[some] if is_masked else None
            search = _Search(self._vectors, self._ids, self._labels, queries[some], own, of_query[part], k)
            left = np.arange(len(part))
            for dtype in dtypes:
                left = search.look(left, cells, is_allowed_of, dtype)
            return search.best()

        num_threads = max(1, min(faiss.omp_get_max_threads(), len(firsts) // _QUERIES_A_THREAD))
        num_parts = max(num_threads, -(-len(firsts) * k // _PAIRS_AT_ONCE))
        parts = np.array_split(np.arange(len(firsts)), num_parts)
        if num_threads == 1:
            answers = list(map(answer, parts))
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                answers = list(pool.map(answer, parts))
        rows, costs = (np.concatenate(arrays) for arrays in zip(*answers, strict=True))
        return rows[place], costs[place]

    def _cells_of(self, is_allowed: np.ndarray) -> tuple[Cells, np.ndarray | None]:
        """Cells with all allowed rows, and which of their rows count (None for all)."""
        rows = np.flatnonzero(is_allowed)
        if 4 * len(rows) < len(is_allowed) or self.num_queries < _QUERIES_FOR_CELLS:
            return one_cell(self._vectors, rows), None
        return self._cells, None if len(rows) == len(is_allowed) else is_allowed

    @functools.cached_property
    def _cells(self) -> Cells:
        return find_cells(self._vectors)


class _Search:
    """The queries of one call, the upper limit of each one's costs, and the pairs found so far."""

    def __init__(
        self,
        vectors: Vectors,
        ids: np.ndarray,
        labels_of_rows: np.ndarray,
        queries: np.ndarray,
        labels: np.ndarray | None,
        limits: np.ndarray,
        k: int,
    ) -> None:
        self._vectors, self._ids, self._queries, self._k = vectors, ids, queries, k
        self._labels, self._labels_of_rows = labels, labels_of_rows
        self._is_l2 = vectors.metric == "l2"
        self._points = query_points(queries, vectors.metric)
        self._lengths = np.sqrt(np.einsum("nd,nd->n", self._points, self._points))
        self.limits = limits
        """float64 [n]: rows that cost more are not needed"""
        # float64 [n, k]: the smallest costs found, unordered
        self._least = np.full((len(queries), k), np.inf)
        # (query, row, cost) of pairs within the limits: int64, int64, float64 [p]
        self._pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._num_pairs = 0

    def look(
        self, queries: np.ndarray, cells: Cells, is_allowed: np.ndarray | None, dtype: type
    ) -> np.ndarray:
        """Find all pairs within the limits of these queries, int64 [any];
        return queries with too many near rows for float32."""
        if not len(queries):
            return queries
        lowest, offsets = self._to_cells(queries, cells)
        is_left = np.zeros(len(self._queries), dtype=bool)
        metric = self._vectors.metric
        # A query's nearest cells first: they lower its limit for the other cells.
        for number in np.argsort(lowest.min(axis=0), kind="stable").tolist():
            rows = cells.of(number, is_allowed)
            for first in range(0, len(rows), _ROWS_AT_ONCE):
                some = rows[first : first + _ROWS_AT_ONCE]
                is_near = lowest[:, number] <= linear(self.limits[queries], metric)
                places = np.flatnonzero(is_near & ~is_left[queries])
                if not len(places):
                    break
                right, scale = self._right(some, cells.centres[number], cells.radii[number], dtype)
                for start in range(0, len(places), _QUERIES_AT_ONCE):
                    part = places[start : start + _QUERIES_AT_ONCE]
                    left = self._tile(
                        queries[part], some, cells.centres[number], offsets[part, number], right, scale
                    )
                    is_left[left] = True
        # These queries are searched again in float64, so their pairs are discarded.
        self._pairs = [
            (query[kept], row[kept], cost[kept])
            for query, row, cost in self._pairs
            for kept in [~is_left[query]]
        ]
        self._least[is_left] = np.inf
        return np.flatnonzero(is_left)

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows int64 [n, k] and costs float64 [n, k] of the best pairs of each query, in order."""
        self._choose()
        rows = np.full((len(self._queries), self._k), -1, dtype=np.int64)
        costs = np.full(rows.shape, np.inf)
        for query, row, cost in self._pairs:
            place = np.arange(len(query)) - np.searchsorted(query, query)
            rows[query, place], costs[query, place] = row, cost
        return rows, costs

    def _to_cells(self, queries: np.ndarray, cells: Cells) -> tuple[np.ndarray, np.ndarray]:
        """A lower bound on the (linear) cost of each query with any row of each cell, and the length of its factor:
        float64 [n, cells].

        The factor is multiplied by the rows' offsets from the centre: the query minus the centre for l2, otherwise
        the query.
        """
        points, lengths = self._points[queries], self._lengths[queries]
        dim = points.shape[1]
        of_centres = np.sqrt(np.einsum("md,md->m", cells.centres, cells.centres))
        products = points @ cells.centres.T
        if not self._is_l2:
            error = _FLOAT64_STEPS * product_error(dim, lengths[:, None], of_centres + cells.radii, FLOAT64)
            return -products - lengths[:, None] * cells.radii - error, np.broadcast_to(
                lengths[:, None], products.shape
            )
        squares = np.square(lengths)[:, None] + np.square(of_centres) - 2 * products
        error = squared_distance_error(dim, lengths[:, None], of_centres, FLOAT64)
        nearest = np.sqrt(np.maximum(squares - error, 0))
        away = np.maximum(nearest - cells.radii, 0)
        return np.square(away) * (1 - 1e-9), np.sqrt(np.maximum(squares, 0) + error)

    def _right(
        self, rows: np.ndarray, centre: np.ndarray, radius: float, dtype: type
    ) -> tuple[np.ndarray, float]:
        """The rows' side of the product, [rows, dim + 2], in units of a power of two near the radius,
        which comes with it."""
        scale = float(_power_of_two(np.array(radius or np.abs(centre).max() or 1.0)))
        offsets = (self._vectors.points(rows) - centre) / scale
        squares = np.einsum("nd,nd->n", offsets, offsets)
        slack = gamma(offsets.shape[1], FLOAT32 if dtype is np.float32 else FLOAT64) * 1.01
        lengths = np.sqrt(squares)
        columns = (
            (squares * (1 - slack), -2 * slack * lengths) if self._is_l2 else (0 * squares, -slack * lengths)
        )
        return np.column_stack([offsets, *columns]).astype(dtype), scale

    def _tile(
        self,
        queries: np.ndarray,
        rows: np.ndarray,
        centre: np.ndarray,
        offsets: np.ndarray,
        right: np.ndarray,
        scale: float,
    ) -> np.ndarray:
        """Add the pairs of these queries and rows that are within the limits;
        return queries with too many rows for float32.

        One product gives (2·)q·y' minus its rounding: a lower bound on the cost, up to a term of the query alone.
        """
        dtype, dim = right.dtype, self._points.shape[1]
        points = self._points[queries]
        # In units of the query's own power of two, so that nothing leaves the range of the dtype.
        own = _power_of_two(np.maximum(offsets, scale))
        if self._is_l2:
            factors = -2 * (points - centre) / own[:, None]
            base = np.square(points - centre).sum(axis=1)
        else:
            factors, base = -points / own[:, None], -(points @ centre)
        left = np.column_stack([factors, scale / own, offsets / own]).astype(dtype)
        tile = left @ right.T
        if self._labels is not None:
            tile[self._labels[queries][:, None] == self._labels_of_rows[rows]] = np.inf

        if self._is_l2:
            of_float64 = _FLOAT64_STEPS * squared_distance_error(dim, offsets, 2 * scale, FLOAT64)
        else:
            reach = np.sqrt(np.square(centre).sum()) + 2 * scale
            of_float64 = _FLOAT64_STEPS * product_error(dim, offsets, reach, FLOAT64)

        def below(some: np.ndarray | slice) -> np.ndarray:
            limits = linear(self.limits[queries[some]], self._vectors.metric)
            most = (limits - base[some] + of_float64[some]) / (own[some] * scale) + _UNDERFLOW
            largest = float(np.finfo(dtype).max) / 2
            most = np.nextafter(most.clip(-largest, largest).astype(dtype), dtype.type(np.inf))
            return np.asarray(tile[some] <= most[:, None])

        hits = below(slice(None))
        too_many = queries[:0]
        many = np.flatnonzero(np.count_nonzero(hits, axis=1) > 2 * (self._k + _SPARE))
        if len(many):
            self._tighten(queries[many], rows, tile[many])
            hits[many] = below(many)
            if dtype == np.float32:
                room = max(4 * (self._k + _SPARE), len(self._ids) // _SHARE_JUDGED)
                many = many[np.count_nonzero(hits[many], axis=1) > room]
                hits[many] = False
                too_many = queries[many]
        places, columns = np.nonzero(hits)
        self._add(queries[places], rows[columns])
        return too_many

    def _tighten(self, queries: np.ndarray, rows: np.ndarray, tile: np.ndarray) -> None:
        """Lower the limits of these queries to the k-th exact cost among the rows that look best in the tile."""
        if len(rows) < self._k:
            return
        count = min(self._k + _SPARE, len(rows))
        columns = np.argpartition(tile, count - 1, axis=1)[:, :count]
        costs = self._vectors.costs(self._queries[queries], rows[columns])
        costs[np.isinf(np.take_along_axis(tile, columns, axis=1))] = np.inf
        kth = np.partition(costs, self._k - 1, axis=1)[:, self._k - 1]
        self.limits[queries] = np.minimum(self.limits[queries], kth)

    def _add(self, queries: np.ndarray, rows: np.ndarray) -> None:
        """Compute the exact costs of new pairs, ordered by query;
        lower the limits to the k-th best, and keep pairs within them."""
        if not len(queries):
            return
        if len(queries) >= _PAIRS_FOR_TWINS:
            keys = queries * len(self._ids) + self._vectors.first_twins[rows]
            keys, places = np.unique(keys, return_inverse=True)
            costs = self._judge(keys // len(self._ids), keys % len(self._ids))[places]
        else:
            costs = self._judge(queries, rows)
        firsts = np.flatnonzero(np.r_[True, queries[1:] != queries[:-1]])
        counts = np.diff(np.r_[firsts, len(queries)])
        met = queries[firsts]
        found = np.full((len(met), self._k + int(counts.max())), np.inf)
        found[:, : self._k] = self._least[met]
        found[
            np.repeat(np.arange(len(met)), counts),
            self._k + np.arange(len(queries)) - np.repeat(firsts, counts),
        ] = costs
        found = np.partition(found, self._k - 1, axis=1)
        self._least[met] = found[:, : self._k]
        self.limits[met] = np.minimum(self.limits[met], found[:, self._k - 1])
        is_within = costs <= self.limits[queries]
        self._pairs.append((queries[is_within], rows[is_within], costs[is_within]))
        self._num_pairs += len(self._pairs[-1][0])
        if self._num_pairs > _PAIRS_AT_ONCE:
            self._choose()

    def _judge(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._vectors.costs(self._queries[queries], rows[:, None])[:, 0]

    def _choose(self) -> None:
        """Keep the k best pairs of each query, ordered by query."""
        if not self._pairs:
            return
        query, row, cost = (np.concatenate(arrays) for arrays in zip(*self._pairs, strict=True))
        order = np.lexsort((self._ids[row], cost, query))
        query, row, cost = query[order], row[order], cost[order]
        place = np.arange(len(query)) - np.searchsorted(query, query)
        is_best = place < self._k
        self._pairs = [(query[is_best], row[is_best], cost[is_best])]
        self._num_pairs = int(is_best.sum())


def _power_of_two(numbers: np.ndarray) -> np.ndarray:
    """The largest power of two that is at most `numbers`, which are above 0; float64 of the same shape."""
    return np.exp2(np.floor(np.log2(numbers)))
