"""Near anchors: every anchor once, the same for any caller, and steps with fewer images than shuffled ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fsl_dist.samplers.near_order import near_order


def count_images(order: NDArray[np.int64], neighbours: NDArray[np.int64], per_step: int) -> int:
    """Images of all steps of an epoch, those twice in a step counted once: a loop over sets."""
    steps = [order[start : start + per_step].tolist() for start in range(0, len(order), per_step)]
    hoods = [{anchor, *row} - {-1} for anchor, row in enumerate(neighbours.tolist())]
    return sum(len(set().union(*(hoods[anchor] for anchor in step))) for step in steps)


def clustered(num_clusters: int, size: int, seed: int) -> NDArray[np.int64]:
    """Every anchor's 5 neighbours out of its own cluster, clusters scattered over the positions: int64 [N, 5]."""
    rng = np.random.default_rng(seed)
    place = rng.permutation(num_clusters * size).reshape(num_clusters, size)
    rows = np.empty((num_clusters * size, 5), dtype=np.int64)
    for cluster in place:
        for anchor in cluster:
            rows[anchor] = rng.choice(cluster[cluster != anchor], 5, replace=False)
    return rows


@settings(max_examples=60)
@given(
    num=st.integers(1, 60),
    width=st.integers(0, 6),
    per_step=st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
def test_every_anchor_once_whatever_the_table(num: int, width: int, per_step: int, seed: int) -> None:
    neighbours = np.random.default_rng(seed).integers(-1, num, (num, width))
    order = near_order(neighbours, per_step, seed=seed, epoch=2)
    assert sorted(order.tolist()) == list(range(num))
    again = near_order(neighbours.copy(), per_step, seed=seed, epoch=2)
    assert again.tolist() == order.tolist()


@settings(max_examples=10)
@given(per_step=st.sampled_from([4, 8, 12]), seed=st.integers(0, 2**32))
def test_steps_of_near_anchors_hold_fewer_images(per_step: int, seed: int) -> None:
    neighbours = clustered(20, 12, seed)
    shuffled = count_images(np.random.default_rng(seed + 1).permutation(240), neighbours, per_step)
    near = count_images(near_order(neighbours, per_step, seed=seed, epoch=0), neighbours, per_step)
    assert near <= 0.65 * shuffled


def test_an_epoch_has_other_steps_than_the_last() -> None:
    neighbours = clustered(10, 12, 0)
    first, second = (near_order(neighbours, 8, seed=0, epoch=epoch).reshape(-1, 8) for epoch in (0, 1))
    groups = [{frozenset(step) for step in order.tolist()} for order in (first, second)]
    assert len(groups[0] & groups[1]) < 5
    assert first.ravel().tolist() != near_order(neighbours, 8, seed=1, epoch=0).tolist()


@pytest.mark.parametrize("num_hubs", [1, 3])
def test_anchors_that_hang_on_a_few_hubs_do_not_make_a_level_each(num_hubs: int) -> None:
    """Stars: no two anchors but a hub's partner can be joined, so the tree must end."""
    num = 20_000
    neighbours = np.random.default_rng(0).integers(num_hubs, size=(num, 1))
    assert sorted(near_order(neighbours, 8, seed=0, epoch=0).tolist()) == list(range(num))
