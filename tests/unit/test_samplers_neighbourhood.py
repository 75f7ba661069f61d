"""Anchors and their neighbours: every anchor once, every image once, every pointer right."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.errors import ConfigError
from fsl_dist.samplers.neighbourhood import anchors_per_step, gather_neighbourhood


@settings(max_examples=60)
@given(
    num_anchors=st.integers(0, 6),
    num_same=st.integers(0, 4),
    num_other=st.integers(0, 4),
    seed=st.integers(0, 2**32),
)
def test_positions_point_at_the_ids_of_the_table(
    num_anchors: int, num_same: int, num_other: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    anchors = rng.choice(12, num_anchors, replace=False)
    same = rng.integers(-1, 12, (num_anchors, num_same))
    other = rng.integers(-1, 12, (num_anchors, num_other))
    found = gather_neighbourhood(anchors, same, other)

    assert len(np.unique(found.ids)) == len(found.ids)
    expected = {*anchors.tolist(), *same.ravel().tolist(), *other.ravel().tolist()} - {-1}
    assert set(found.ids.tolist()) == expected
    assert found.ids[: len(anchors)].tolist() == anchors.tolist()
    padded = np.append(found.ids, -1)  # position −1 reads the last entry
    np.testing.assert_array_equal(padded[found.anchor], anchors)
    np.testing.assert_array_equal(padded[found.same], same)
    np.testing.assert_array_equal(padded[found.other], other)
    assert {found.anchor.dtype, found.same.dtype, found.other.dtype} == {np.dtype(np.int64)}


@pytest.mark.parametrize(("batch_size", "anchors"), [(11, 1), (21, 1), (22, 2), (96, 8)])
def test_anchors_per_step_rounds_down(batch_size: int, anchors: int) -> None:
    assert anchors_per_step(batch_size, 5, 5) == anchors


def test_a_batch_without_room_for_one_anchor_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        anchors_per_step(10, 5, 5)
    assert str(error.value) == (
        "training.batch_size=10 is too small for an anchor with its neighbours: method.k_same=5 and method.m_other=5 "
        "make 11 images per anchor; set training.batch_size to 11 or more"
    )
