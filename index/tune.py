"""Tune a built index: find the cheapest search parameters that reach a required recall.

Recall rises with every parameter, so bisection finds the smallest sufficient value. Among sufficient pairs (clusters or
graph candidates visited, candidates re-ranked) the fastest one by measurement is chosen.
"""

import time
from dataclasses import dataclass

import numpy as np

from index import versions
from index.base.errors import RequestError
from index.config import Kind
from index.results import SearchResult
from index.search import LocalIndex, ShardedIndex

_LARGEST = {"ef_search": 4096}
_K_FACTORS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was measured."""

    parameters: dict[str, int]
    """nprobe, ef_search, k_factor: those that the kind has."""

    recall: float
    """Share of the k true neighbours that are found, 0 to 1;
    a neighbour at the same distance as the last one counts."""

    seconds: float
    """Time a query."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """All measurements, in order, and the choice."""

    trials: list[Trial]
    """Every setting that was tried."""

    chosen: Trial
    """The fastest setting that reaches the required recall, or the best one if none does."""

    is_reached: bool
    """Whether `chosen` reaches the required recall."""


def tune(index: LocalIndex, recall: float, k: int, sample: int = 1000, seed: int = 0) -> Tuning:
    """Measure search parameters of `index` on `sample` of its own vectors, each excluded from its own answer.

    The index is not changed. The true neighbours are searched exactly, which costs `sample` passes over all vectors;
    each trial then costs a search. Raises RequestError for a flat index, which has no parameters, and for invalid
    numbers.
    """
    if not index.parameters:
        raise RequestError(
            f"the index {index.path} is flat: it finds the true neighbours and has nothing to tune"
        )
    if not 0 < recall <= 1:
        raise RequestError(f"recall={recall:g} must be above 0 and at most 1")
    measure = Measurer(index, find_truth(index, k, sample, seed))
    effort = next((name for name in ("nprobe", "ef_search") if name in index.parameters), None)
    fitting: list[Trial] = []
    for k_factor in _K_FACTORS if has_codes(index.manifest.kind) else _K_FACTORS[:1]:
        if effort is None:
            best = measure({"k_factor": k_factor})
        else:
            best = _bisect(measure, effort, measure.largest(effort), k_factor, recall)
        if best.recall >= recall:
            fitting.append(best)
            # With more candidates, fewer clusters suffice; once that no longer pays, still more candidates will not.
            if len(fitting) > 1 and fitting[-1].seconds > fitting[-2].seconds:
                break
    if fitting:
        return Tuning(measure.trials, min(fitting, key=lambda trial: trial.seconds), True)
    return Tuning(
        measure.trials, max(measure.trials, key=lambda trial: (trial.recall, -trial.seconds)), False
    )


def measure_recall(index: ShardedIndex, k: int, sample: int, seed: int = 0) -> float:
    """The share of the k true neighbours of `sample` own vectors that `index` finds with its own search parameters.

    Costs `sample` passes over all vectors and one search. Raises RequestError as `find_truth` does, and for an index
    that was changed since it was published.
    """
    truth = find_truth(index, k, sample, seed)
    queries, ids = _vectors_at(index, truth.positions), index.ids[truth.positions]
    return truth.num_found(index, index.search(queries, k, query_ids=ids)) / truth.num_true


def store(index: LocalIndex, parameters: dict[str, int]) -> None:
    """Write the parameters into the version's manifest; indexes opened afterwards search with them."""
    versions.write_parameters(index.path, versions.read_manifest(index.path), parameters)


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """Some vectors of an index and the distances of their true neighbours:
    equal for every index of these vectors and labels."""

    positions: np.ndarray
    """int64 [n], ascending: the query vectors, each excluded from its own answer."""

    k: int
    """Neighbours a query."""

    last: np.ndarray
    """float64 [n]: cost of the last true neighbour, a squared distance or a negative product; −inf if there is none."""

    num_true: int
    """True neighbours of all queries together."""

    def num_found(self, index: ShardedIndex, found: SearchResult, queries: slice = slice(None)) -> int:
        """The number of true neighbours in the answer to some of the queries."""
        costs = _sign_of(index) * found.exact_distances
        return int(((found.ids >= 0) & (costs <= self.last[queries, None])).sum())


def find_truth(index: ShardedIndex, k: int, sample: int = 1000, seed: int = 0) -> Truth:
    """Draw `sample` vectors of `index` by `seed` and find their k true neighbours: `sample` passes over all vectors.

    Raises RequestError if there is no vector to draw or no neighbour to find.
    """
    if sample < 1 or index.num_vectors < 2:
        raise RequestError(
            f"sample={sample} of {index.num_vectors} vectors leaves nothing to measure; there must be 1 of 2 or more"
        )
    positions = np.sort(
        np.random.default_rng(seed).choice(index.num_vectors, min(sample, index.num_vectors), replace=False)
    )
    true = index.search(_vectors_at(index, positions), k, query_ids=index.ids[positions], exact=True)
    # If there are fewer than k neighbours, the last existing one.
    costs = np.where(true.ids >= 0, _sign_of(index) * true.exact_distances, -np.inf)
    return Truth(positions, k, costs.max(axis=1), int((true.ids >= 0).sum()))


class Measurer:
    """Measures search parameters of one index against the truth; each setting only once.

    at_once: queries per search; 0: all. least_s: a faster search is repeated for this many seconds, and the fastest run
    counts, since the first one may read cold files and caches.
    """

    def __init__(self, index: LocalIndex, truth: Truth, *, at_once: int = 0, least_s: float = 0.0) -> None:
        self._index, self._truth, self._least_s = index, truth, least_s
        self._queries, self._ids = _vectors_at(index, truth.positions), index.ids[truth.positions]
        self._at_once = at_once or len(self._ids)
        self.trials: list[Trial] = []

    def largest(self, name: str) -> int:
        """The largest useful value: every cluster; 4096 candidates of a graph."""
        return _LARGEST.get(name) or self._index.num_clusters

    def __call__(self, parameters: dict[str, int]) -> Trial:
        """Recall and time of a setting."""
        for trial in self.trials:
            if trial.parameters == parameters:
                return trial
        num_hits, seconds = self._search(parameters)
        if seconds < self._least_s:
            again: list[float] = []
            while sum(again) < self._least_s:
                again.append(self._search(parameters)[1])
            seconds = min(again)
        self.trials.append(Trial(parameters, num_hits / self._truth.num_true, seconds / len(self._ids)))
        return self.trials[-1]

    def _search(self, parameters: dict[str, int]) -> tuple[int, float]:
        """The number of true neighbours found by all queries, and the seconds of the searches."""
        num_hits, seconds = 0, 0.0
        for start in range(0, len(self._ids), self._at_once):
            some = slice(start, start + self._at_once)
            queries, ids = self._queries[some], self._ids[some]
            began = time.perf_counter()
            found = self._index.search(queries, self._truth.k, query_ids=ids, parameters=parameters)
            seconds += time.perf_counter() - began
            num_hits += self._truth.num_found(self._index, found, some)
        return num_hits, seconds


def _sign_of(index: ShardedIndex) -> float:
    return 1.0 if index.metric == "l2" else -1.0


def _bisect(measure: Measurer, name: str, largest: int, k_factor: int, recall: float) -> Trial:
    """The smallest value of parameter `name` that reaches the recall, or the largest where none does."""

    def measured(value: int) -> Trial:
        return measure({name: value, "k_factor": k_factor})

    # Doubling first: large values are the slow ones, and most searches need none of them.
    low, high = 0, 1
    while measured(high).recall < recall:
        if high == largest:
            return measured(high)
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        if measured(middle).recall >= recall:
            high = middle
        else:
            low = middle
    return measured(high)


def _vectors_at(index: ShardedIndex, positions: np.ndarray) -> np.ndarray:
    """The stored vectors at these positions, ascending: float32 [n, dim]."""
    parts = []
    for shard in range(len(index.manifest.shard_starts)):
        start, stop = index.manifest.shard_range(shard)
        own = positions[slice(*np.searchsorted(positions, (start, stop)))]
        parts.append(index.vectors(start, stop, as_given=True)[own - start])
    return np.concatenate(parts)


def has_codes(kind: Kind) -> bool:
    """Whether FAISS ranks by compressed vectors, so that more candidates raise the recall."""
    return kind in ("ivf_pq", "factory")
