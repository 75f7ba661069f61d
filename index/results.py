"""What searches answer."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Neighbours of n queries."""

    ids: np.ndarray
    """int64 [n, k], best first; -1 where fewer than k were found."""

    distances: np.ndarray
    """float32 [n, k]: squared distances (l2), products (inner_product) or cosines; +inf or -inf where the id is -1.

    Rounded: below 1.4e-45 a distance is 0 here."""

    num_missing: int
    """Number of ids that are -1, over all queries."""

    missing_shards: tuple[int, ...] = ()
    """Shards that did not answer, where partial answers were allowed: their vectors are not among the ids."""

    exact_distances: np.ndarray = field(default_factory=lambda: np.empty(0))
    """float64 [n, k]: the distances before they were rounded to float32; the order is by these, so compare these"""

    def __post_init__(self) -> None:
        if self.exact_distances.shape != self.distances.shape:
            object.__setattr__(self, "exact_distances", self.distances.astype(np.float64))

    def __repr__(self) -> str:
        missing = f", {self.num_missing} missing" if self.num_missing else ""
        return f"SearchResult({self.ids.shape[1]} neighbours of {self.ids.shape[0]} queries{missing}: ids, distances)"


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The result of `neighbours`, used for mining: neighbours of the query's own class and of all others;
    -1 if too few."""

    same_ids: np.ndarray
    """int64 [n, num_same], best first."""

    same_distances: np.ndarray
    """float32 [n, num_same], as in SearchResult."""

    other_ids: np.ndarray
    """int64 [n, num_other], best first."""

    other_distances: np.ndarray
    """float32 [n, num_other], as in SearchResult."""

    missing_shards: tuple[int, ...] = ()
    """As in SearchResult, of either search."""


def make_result(ids: np.ndarray, distances: np.ndarray, missing_shards: tuple[int, ...]) -> SearchResult:
    """The result of these ids, int64 [n, k], and distances, float64 [n, k]."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = distances.astype(np.float32)
    return SearchResult(ids, rounded, int(np.count_nonzero(ids < 0)), missing_shards, distances)
