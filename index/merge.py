"""Merge the answers of several shards into one: pure NumPy, the same for squared distances and products."""

from collections.abc import Sequence

import numpy as np

from index.config import Metric


def merge_top_k(
    ids: Sequence[np.ndarray], distances: Sequence[np.ndarray], k: int, metric: Metric
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of all answers to each query.

    Args:
        ids: int64 [n, k_i] per answer, -1 where there is none; k_i may be 0.
        distances: float [n, k_i] per answer, in the convention of the metric.

    Returns:
        (ids int64 [n, k], distances float64 [n, k]), best first: the smallest for l2, the largest for inner_product;
        ties are ordered by id. Missing entries are -1 with +inf (l2) or -inf (inner_product).
    """
    sign = 1.0 if metric == "l2" else -1.0
    all_ids = np.concatenate(ids, axis=1)
    costs = sign * np.concatenate(distances, axis=1).astype(np.float64)
    costs[all_ids < 0] = np.inf
    top_ids, top_costs = order_top_k(all_ids, costs, k)
    return top_ids, sign * top_costs


def order_top_k(ids: np.ndarray, costs: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k entries of each row with the least cost, in order; ties go to the smaller id.

    ids: int64 [n, c], costs: float64 [n, c], +inf where the id is -1. Returns both as [n, k], padded with -1
    and +inf where c < k.
    """
    order = np.lexsort((ids, costs), axis=-1)[:, :k]
    top_ids = np.full((len(ids), k), -1, dtype=np.int64)
    top_costs = np.full((len(ids), k), np.inf)
    top_ids[:, : order.shape[1]] = np.take_along_axis(ids, order, axis=1)
    top_costs[:, : order.shape[1]] = np.take_along_axis(costs, order, axis=1)
    return top_ids, top_costs
