"""Merge the answers of several shards into one: pure NumPy, the same for every metric."""

from collections.abc import Sequence

import numpy as np


def merge_top_k(answers: Sequence[tuple[np.ndarray, np.ndarray]], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of all answers to each query.

    Args:
        answers: at least one pair of ids int64 [n, k] and costs float64 [n, k], as `order_top_k` returns them.
        k: neighbours per query.

    Returns:
        (ids int64 [n, k], costs float64 [n, k]), the smallest cost first; ties are ordered by id. Missing entries are
        -1 with +inf.
    """
    if len(answers) == 1:
        return answers[0]
    ids, costs = (np.concatenate(arrays, axis=1) for arrays in zip(*answers, strict=True))
    return order_top_k(ids, costs, k)


def order_top_k(ids: np.ndarray, costs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k entries of each row with the least cost, in order; ties go to the smaller id.

    ids: int64 [n, c], costs: float64 [n, c], +inf where the id is -1. Returns both as [n, k], padded with -1
    and +inf where c < k.
    """
    num, width = ids.shape
    places = np.lexsort((ids, costs), axis=-1)[:, :k]
    if num > 1:
        places = places + width * np.arange(num)[:, None]
    best_ids, best_costs = ids.take(places), costs.take(places)
    if width >= k:
        return best_ids, best_costs
    top_ids = np.full((num, k), -1, dtype=np.int64)
    top_costs = np.full((num, k), np.inf)
    top_ids[:, :width], top_costs[:, :width] = best_ids, best_costs
    return top_ids, top_costs
