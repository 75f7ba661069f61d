"""Scans: complete and disjoint for any world, and the same batches whatever the world."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fsl_dist.samplers.scan import scan_batches, share_of_rank, split_evenly


@settings(max_examples=150)
@given(num=st.integers(0, 300), batch_size=st.integers(1, 70), world_size=st.integers(1, 9))
@example(num=3, batch_size=2, world_size=5)
def test_ranks_scan_the_batches_that_one_rank_scans(num: int, batch_size: int, world_size: int) -> None:
    alone = [batch.tolist() for batch in scan_batches(0, num, batch_size)]
    shared = []
    for rank in range(world_size):
        start, stop = share_of_rank(num, batch_size, rank, world_size)
        assert 0 <= start <= stop <= num
        shared += [batch.tolist() for batch in scan_batches(start, stop, batch_size)]
    assert shared == alone
    assert [sample for batch in alone for sample in batch] == list(range(num))
    assert all(len(batch) == batch_size for batch in alone[:-1])


def test_batches_are_counted_from_start() -> None:
    batches = list(scan_batches(5, 12, 3))
    assert [batch.tolist() for batch in batches] == [[5, 6, 7], [8, 9, 10], [11]]
    assert batches[0].dtype == np.int64


@settings(max_examples=60)
@given(num=st.integers(0, 10**12), world_size=st.integers(1, 64))
def test_shares_differ_by_one_at_most(num: int, world_size: int) -> None:
    boundaries = split_evenly(num, world_size)
    assert boundaries.shape == (world_size + 1,)
    assert (boundaries[0], boundaries[-1]) == (0, num)
    assert np.diff(boundaries).min() >= 0
    assert np.ptp(np.diff(boundaries)) <= 1
