"""The cost of a pair of vectors, smaller is nearer: the definition of "exact" in this project.

    l2              ‖x − y‖² by direct differences
    inner_product   −x·y
    cosine          −s·(x·y)² / (‖x‖²·‖y‖²) with s the sign of x·y: same order as the cosine, without square roots

Costs are computed in float64 from the original float32 vectors. A cost depends only on its two vectors, not on other
queries, shards or threads. Equal costs are ordered by id.
"""

import functools
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from index.config import Metric
from index.runtime import faiss

# Number of float64 values per block while candidates are ranked: 256 KiB fit in the cache. 2,048 queries with 16
# candidates of dim 256 took 36 ms with it, and about 100 ms with 16 MiB.
_NUMBERS_AT_ONCE = 1 << 15
_QUERIES_A_THREAD = 512  # with fewer, threads cost more than they save


class Vectors:
    """The original vectors, float32 [rows, dim], and the quantities that a metric derives from them."""

    def __init__(self, raw: np.ndarray, metric: Metric) -> None:
        self.raw = np.asarray(raw)
        self.metric = metric

    @functools.cached_property
    def squares(self) -> np.ndarray:
        """‖y‖² of each row: float64 [rows]; one pass over the vectors, at first use."""
        return squares_of(self.raw)

    @functools.cached_property
    def first_twins(self) -> np.ndarray:
        """For each row the number of a row with the same bytes, one for all such rows: int64; a sort of the vectors,
        at first use."""
        raw = np.ascontiguousarray(self.raw)
        as_one = raw.view(np.dtype((np.void, raw.shape[1] * raw.itemsize))).ravel()
        _, firsts, places = np.unique(as_one, return_index=True, return_inverse=True)
        return np.asarray(firsts[places])

    def costs(self, queries: np.ndarray, rows: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Costs of `queries` float32 [n, dim] with `rows` int64 [n, c]: float64 [n, c]; undefined where a row is −1."""
        num, width = rows.shape
        out = np.empty(rows.shape) if out is None else out
        dim, is_l2 = self.raw.shape[1], self.metric == "l2"
        at_once = max(1, _NUMBERS_AT_ONCE // max(width * dim, 1))
        held = np.empty((min(at_once, num), width, dim))
        combine = np.subtract if is_l2 else np.multiply
        for first in range(0, num, at_once):
            some = slice(first, first + at_once)
            vectors = self.raw.take(rows[some], axis=0)
            # [queries, candidates, dim]; float32 to float64 happens inside.
            terms = held[: len(vectors)]
            combine(vectors, queries[some, None], terms, dtype=np.float64)
            if is_l2:
                np.einsum("ncd,ncd->nc", terms, terms, out=out[some])
            else:
                terms.sum(axis=2, out=out[some])
        if self.metric == "cosine":
            out *= np.abs(out)
            out /= self.squares[rows]
            out /= squares_of(queries)[:, None]
        return out if is_l2 else np.negative(out, out=out)

    def costs_in_threads(self, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """As `costs`, by FAISS's number of threads if there are many queries."""
        num_threads = len(rows) // _QUERIES_A_THREAD
        if num_threads > 1:
            num_threads = min(faiss.omp_get_max_threads(), num_threads)
        if num_threads <= 1:
            return self.costs(queries, rows)
        costs = np.empty(rows.shape)
        with ThreadPoolExecutor(num_threads) as pool:
            cuts = (np.array_split(array, num_threads) for array in (queries, rows, costs))
            list(pool.map(self.costs, *cuts))
        return costs

    def points(self, rows: np.ndarray) -> np.ndarray:
        """`rows` int64 [m] as the metric compares them, float64 [m, dim]: of length 1 for cosine."""
        points = self.raw[rows].astype(np.float64)
        return points / np.sqrt(self.squares[rows])[:, None] if self.metric == "cosine" else points


def query_points(queries: np.ndarray, metric: Metric) -> np.ndarray:
    """Queries float32 [n, dim] as the metric compares them, float64 [n, dim]: of length 1 for cosine."""
    points = queries.astype(np.float64)
    return points / np.sqrt(squares_of(queries))[:, None] if metric == "cosine" else points


def squares_of(vectors: np.ndarray) -> np.ndarray:
    """‖x‖² of float32 [n, dim]: float64 [n]; summed as a product in `Vectors.costs`, so that a vector's cosine with
    itself is 1."""
    squares = np.empty(len(vectors))
    at_once = max(1, _NUMBERS_AT_ONCE // vectors.shape[1])
    for first in range(0, len(vectors), at_once):
        some = slice(first, first + at_once)
        np.sum(np.square(vectors[some], dtype=np.float64), axis=1, out=squares[some])
    return squares


def linear(costs: np.ndarray, metric: Metric) -> np.ndarray:
    """Costs as squared distances or negative products: for cosine the negative cosine; ±inf is kept."""
    return np.sign(costs) * np.sqrt(np.abs(costs)) if metric == "cosine" else costs
