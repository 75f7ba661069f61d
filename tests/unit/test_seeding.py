"""Randomness as a pure function of its counters."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fsl_dist.seeding import generator, uniforms


@given(seed=st.integers(0, 2**40), epoch=st.integers(0, 100), order=st.permutations(range(8)))
def test_a_samples_numbers_do_not_depend_on_its_batch(seed: int, epoch: int, order: list[int]) -> None:
    ids = np.array([0, 1, 5, 17, 1000, 2**31, 2**40, 3])
    whole = uniforms(seed, "augment", epoch, ids, 4)
    assert (uniforms(seed, "augment", epoch, ids[order], 4) == whole[order]).all()
    assert (uniforms(seed, "augment", epoch, ids[:1], 4) == whole[:1]).all()


def test_numbers_are_uniform_and_streams_apart() -> None:
    numbers = uniforms(0, "augment", 0, np.arange(20_000), 3)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    # Mean of 20,000 uniforms: standard deviation 0.002.
    np.testing.assert_allclose(numbers.mean(axis=0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(numbers.T) - np.eye(3)).max() < 0.03
    others = [
        uniforms(1, "augment", 0, np.arange(20_000), 3),
        uniforms(0, "augment", 1, np.arange(20_000), 3),
        uniforms(0, "flip", 0, np.arange(20_000), 3),
    ]
    for other in others:
        assert abs(np.corrcoef(numbers[:, 0], other[:, 0])[0, 1]) < 0.03


def test_generators_differ_by_purpose_and_counter() -> None:
    draws = {
        generator(*key).integers(2**62) for key in [(0, "a"), (0, "b"), (1, "a"), (0, "a", 0), (0, "a", 1)]
    }
    assert len(draws) == 5
    assert generator(3, "a", 1, 2).integers(2**62) == generator(3, "a", 1, 2).integers(2**62)
