"""The merge alone: answers of any shards, merged, are the best of all of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.merge import merge_top_k, order_top_k

# Entries of one shard for three queries: cost, and whether it is padding.
shards_of_three = st.integers(0, 6).flatmap(
    lambda width: st.tuples(
        *[st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=width, max_size=width)] * 3
    )
)


@settings(max_examples=150)
@given(shards=st.lists(shards_of_three, min_size=1, max_size=4), k=st.integers(1, 8))
def test_merged_equals_sorting_everything(shards, k) -> None:
    number, answers = 99, []
    everything: list[list[tuple[float, int]]] = [[], [], []]
    for shard in shards:
        ids = np.full((3, len(shard[0])), -1, dtype=np.int64)
        costs = np.full(ids.shape, np.inf)
        for query, row in enumerate(shard):
            for place, (cost, is_padding) in enumerate(row):
                number -= 1
                if not is_padding:
                    ids[query, place], costs[query, place] = number, cost
                    everything[query].append((float(cost), number))
        answers.append(order_top_k(ids, costs, k))
    merged_ids, merged_costs = merge_top_k(answers, k)
    best = [sorted(found)[:k] + [(np.inf, -1)] * (k - len(found)) for found in everything]
    assert merged_ids.tolist() == [[number for _, number in row] for row in best]
    assert merged_costs.tolist() == [[cost for cost, _ in row] for row in best]
