"""Tuning a built index: the cheapest search parameters that find a wanted share of the true neighbours.

Recall rises with every parameter, so the smallest value that suffices is found by bisection; among pairs that suffice
(clusters or graph walked, candidates judged) the one measured to be fastest is taken.
"""

import time
from dataclasses import dataclass

import numpy as np

from index import versions
from index.errors import RequestError
from index.search import LocalIndex

_LARGEST = {"ef_search": 4096}
_K_FACTORS = (1, 2, 4, 8, 16, 32, 64)


@dataclass(frozen=True, slots=True)
class Trial:
    """One setting that was measured."""

    parameters: dict[str, int]
    """nprobe, ef_search, k_factor: those that the kind has."""

    recall: float
    """Share of the k true neighbours that are found, 0 to 1; one at the same distance as the last counts."""

    seconds: float
    """Time a query."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """What was measured, in that order, and what was chosen."""

    trials: list[Trial]
    """Every setting that was tried."""

    chosen: Trial
    """The fastest that reaches the recall asked for, or the best where none does."""

    is_reached: bool
    """Whether `chosen` has the recall asked for."""


def tune(index: LocalIndex, recall: float, k: int, sample: int = 1000, seed: int = 0) -> Tuning:
    """Measure settings of `index` on `sample` of its own vectors, each left out of its own answer; changes nothing.

    The true neighbours are searched exactly, so this costs `sample` passes over all vectors, and then a search a trial.
    Raises RequestError for a flat index, which has nothing to tune, and for numbers that make no sense.
    """
    if not index.parameters:
        raise RequestError(
            f"the index {index.path} is flat: it finds the true neighbours and has nothing to tune"
        )
    if not 0 < recall <= 1:
        raise RequestError(f"recall={recall:g} must be above 0 and at most 1")
    if sample < 1 or index.num_vectors < 2:
        raise RequestError(
            f"sample={sample} of {index.num_vectors} vectors leaves nothing to measure; there must be 1 of 2 or more"
        )
    positions = np.sort(
        np.random.default_rng(seed).choice(index.num_vectors, min(sample, index.num_vectors), replace=False)
    )
    queries = _vectors_at(index, positions)
    measure = _Measurer(index, queries, index.ids[positions], k)
    effort = next((name for name in ("nprobe", "ef_search") if name in index.parameters), None)
    fitting: list[Trial] = []
    for k_factor in _K_FACTORS if _has_codes(index) else _K_FACTORS[:1]:
        if effort is None:
            best = measure({"k_factor": k_factor})
        else:
            best = _bisect(measure, effort, measure.largest(effort), k_factor, recall)
        if best.recall >= recall:
            fitting.append(best)
            # More candidates let fewer clusters do; where that no longer pays, still more will not.
            if len(fitting) > 1 and fitting[-1].seconds > fitting[-2].seconds:
                break
    if fitting:
        return Tuning(measure.trials, min(fitting, key=lambda trial: trial.seconds), True)
    return Tuning(
        measure.trials, max(measure.trials, key=lambda trial: (trial.recall, -trial.seconds)), False
    )


def store(index: LocalIndex, parameters: dict[str, int]) -> None:
    """Write the parameters into the version's manifest; whoever opens it from now on searches with them."""
    versions.write_parameters(index.path, versions.read_manifest(index.path), parameters)


class _Measurer:
    """Measures settings on one sample; the same setting once."""

    def __init__(self, index: LocalIndex, queries: np.ndarray, ids: np.ndarray, k: int) -> None:
        self._index, self._queries, self._ids, self._k = index, queries, ids, k
        true = index.search(queries, k, query_ids=ids, exact=True)
        self._sign = 1.0 if index.metric == "l2" else -1.0
        # Distance of the last true neighbour; of the last there is, where there are fewer than k.
        costs = np.where(true.ids >= 0, self._sign * true.distances, -np.inf)
        self._last = costs.max(axis=1, keepdims=True)
        self._num_true = int((true.ids >= 0).sum())
        self.trials: list[Trial] = []

    def largest(self, name: str) -> int:
        """The largest value worth trying: every cluster; 4096 candidates of a graph."""
        return _LARGEST.get(name) or self._index.num_clusters

    def __call__(self, parameters: dict[str, int]) -> Trial:
        for trial in self.trials:
            if trial.parameters == parameters:
                return trial
        start = time.perf_counter()
        found = self._index.search(self._queries, self._k, query_ids=self._ids, parameters=parameters)
        seconds = (time.perf_counter() - start) / len(self._queries)
        hits = int(((found.ids >= 0) & (self._sign * found.distances <= self._last)).sum())
        self.trials.append(Trial(parameters, hits / self._num_true, seconds))
        return self.trials[-1]


def _bisect(measure: _Measurer, name: str, largest: int, k_factor: int, recall: float) -> Trial:
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


def _vectors_at(index: LocalIndex, positions: np.ndarray) -> np.ndarray:
    """The stored vectors at these positions, ascending: float32 [n, dim]."""
    parts = []
    for shard in range(len(index.manifest.shard_starts)):
        start, stop = index.manifest.shard_range(shard)
        own = positions[slice(*np.searchsorted(positions, (start, stop)))]
        parts.append(index.vectors(start, stop)[own - start])
    return np.concatenate(parts)


def _has_codes(index: LocalIndex) -> bool:
    """Whether FAISS ranks by something coarser than the vectors, so that more candidates find more."""
    return index.manifest.kind in ("ivf_pq", "factory")
