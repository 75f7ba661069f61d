"""The merge alone: answers of any shards, merged, are the best of all of them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.merge import merge_top_k

answers = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=6)


@settings(max_examples=150)
@given(shards=st.lists(answers, min_size=1, max_size=4), k=st.integers(1, 8), is_l2=st.booleans())
def test_merged_equals_sorting_everything(shards, k, is_l2) -> None:
    ids, distances, everything = [], [], []
    number = 50
    for shard in shards:
        row_ids, row_distances = [], []
        for distance, is_padding in shard:
            number -= 1
            row_ids.append(-1 if is_padding else number)
            row_distances.append(float(distance))
            if not is_padding:
                everything.append((distance if is_l2 else -distance, number))
        ids.append(np.array([row_ids], np.int64).reshape(1, -1))
        distances.append(np.array([row_distances], np.float32).reshape(1, -1))
    merged_ids, merged_distances = merge_top_k(ids, distances, k, "l2" if is_l2 else "inner_product")
    sign = 1 if is_l2 else -1
    best = sorted(everything)[:k] + [(np.inf, -1)] * (k - len(everything))
    assert merged_ids.tolist() == [[number for _, number in best]]
    assert merged_distances.tolist() == [[sign * cost for cost, _ in best]]
