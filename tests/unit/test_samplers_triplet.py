"""CHAI's triplets against an enumeration of everything that a sampling allows."""

import time
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.samplers.triplet import (
    count_anchors,
    draw_triplets,
    find_divided_group,
    gather_images,
    sampling_keys,
    triplet_steps,
    triplets_of_step,
)

Triplet = tuple[int, int, int]


def is_allowed(sampling: str, triplet: Triplet, diseases: list[int], groups: list[int]) -> bool:
    """The rules as CHAI section 2.2 has them, for three images of which any may lack a label (−1)."""
    a, b, c = triplet
    same_disease = diseases[a] == diseases[b] != -1
    same_group = groups[a] == groups[b] != -1
    other_disease = all(diseases[c] != diseases[x] and -1 not in (diseases[c], diseases[x]) for x in (a, b))
    other_group = all(groups[c] != groups[x] and -1 not in (groups[c], groups[x]) for x in (a, b))
    return (
        a != b
        and {
            "disease": same_disease and other_disease,
            "hierarchical": same_disease and same_group and other_disease,
            "non_hierarchical": same_group and other_group,
        }[sampling]
    )


def chances(sampling: str, diseases: list[int], groups: list[int]) -> dict[Triplet, float]:
    """Probability of every triplet: uniform over anchors, then over the anchor's positives, then over the unlike images."""
    images = range(len(diseases))
    allowed = [t for t in product(images, repeat=3) if is_allowed(sampling, t, diseases, groups)]
    anchors = {a for a, _, _ in allowed}
    mates = Counter(a for a, _ in {(a, b) for a, b, _ in allowed})
    others = Counter(a for a, _ in {(a, c) for a, _, c in allowed})
    return {t: 1 / len(anchors) / mates[t[0]] / others[t[0]] for t in allowed}


def keys_of(sampling: str, diseases: list[int], groups: list[int]):
    (keys,) = sampling_keys(sampling, np.array(diseases), np.array(groups), np.full(len(groups), -1))
    return keys


def nested(seed: int, num: int) -> tuple[list[int], list[int]]:
    """Labels of `num` images, each group inside one disease, some images without one or both labels."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(-1, 6, size=num)
    diseases = np.where(groups >= 0, groups // 2, rng.integers(-1, 3, size=num))
    diseases[rng.random(num) < 0.2] = -1
    return diseases.tolist(), groups.tolist()


# Diseases 0 and 1 with two groups each and a third with one; images 8 … 11 lack a label or both.
DISEASES = [0, 0, 0, 0, 1, 1, 1, 2, 0, 1, -1, -1]
GROUPS = [0, 0, 1, 1, 2, 2, 3, 4, -1, -1, 2, -1]


@pytest.mark.parametrize("sampling", ["disease", "hierarchical", "non_hierarchical"])
def test_every_allowed_triplet_is_drawn_as_often_as_its_chance(sampling: str) -> None:
    expected = chances(sampling, DISEASES, GROUPS)
    keys, num = keys_of(sampling, DISEASES, GROUPS), 60_000
    assert count_anchors(keys) == len({a for a, _, _ in expected})
    drawn = Counter(map(tuple, draw_triplets(keys, num, np.random.default_rng(0)).tolist()))
    assert set(drawn) == set(expected)
    statistic = sum((drawn[t] - num * p) ** 2 / (num * p) for t, p in expected.items())
    # χ² has mean df and variance 2·df: five standard deviations.
    df = len(expected) - 1
    assert abs(statistic - df) < 5 * (2 * df) ** 0.5


def test_cousins_are_never_unlike_in_hierarchical_and_are_in_non_hierarchical() -> None:
    found = {}
    for sampling in ("hierarchical", "non_hierarchical"):
        triplets = draw_triplets(keys_of(sampling, DISEASES, GROUPS), 2000, np.random.default_rng(0)).tolist()
        found[sampling] = sum(DISEASES[a] == DISEASES[c] != -1 for a, _, c in triplets)
    assert found["hierarchical"] == 0
    assert found["non_hierarchical"] > 100


@settings(max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 14),
    sampling=st.sampled_from(["disease", "hierarchical", "non_hierarchical"]),
)
def test_only_allowed_triplets_are_drawn_whatever_is_missing(seed: int, num: int, sampling: str) -> None:
    diseases, groups = nested(seed, num)
    expected = chances(sampling, diseases, groups)
    keys = keys_of(sampling, diseases, groups)
    assert count_anchors(keys) == len({a for a, _, _ in expected})
    if expected:
        drawn = draw_triplets(keys, 200, np.random.default_rng(seed))
        assert drawn.dtype == np.int64
        assert set(map(tuple, drawn.tolist())) <= set(expected)


def test_joint_is_diseases_and_blind_groups() -> None:
    blind = np.array([0, 1, 0, 1, -1])
    diseases, groups = np.array([0, 0, 1, 1, 1]), np.full(5, -1)
    by_disease, by_blind = sampling_keys("joint", diseases, groups, blind)
    a, b, c = draw_triplets(by_disease, 300, np.random.default_rng(0)).T
    assert (diseases[a] == diseases[b]).all()
    assert (diseases[a] != diseases[c]).all()
    assert 4 in a
    a, b, c = draw_triplets(by_blind, 300, np.random.default_rng(0)).T
    assert (blind[a] == blind[b]).all()
    assert (blind[a] != blind[c]).all()
    assert 4 not in np.stack([a, b, c])


def test_a_group_of_two_diseases_is_found() -> None:
    diseases, groups = np.array(DISEASES), np.array(GROUPS)
    assert find_divided_group(diseases, groups) is None
    diseases[5] = 2
    assert find_divided_group(diseases, groups) == (2, 1, 2)
    # Images without a disease divide nothing.
    diseases[5] = -1
    assert find_divided_group(diseases, groups) is None
    assert find_divided_group(np.array([], dtype=np.int64), np.array([], dtype=np.int64)) is None


def test_draws_follow_the_generator_alone() -> None:
    keys = keys_of("disease", DISEASES, GROUPS)
    first, again, other = (draw_triplets(keys, 50, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_paper_full_of_triplets_over_a_large_catalogue_takes_no_time() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(300, size=100_000)
    keys = keys_of("hierarchical", (groups // 10).tolist(), groups.tolist())
    started = time.process_time()
    triplets = draw_triplets(keys, 150_000, rng)
    assert time.process_time() - started < 3  # 0.1 s on an idle core
    a, b, c = groups[triplets.T]
    assert (a == b).all()
    assert (a // 10 != c // 10).all()


@settings(max_examples=30)
@given(num=st.integers(1, 60), per_step=st.integers(1, 70), seed=st.integers(0, 99), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_triplet_once(num: int, per_step: int, seed: int, epoch: int) -> None:
    steps = triplet_steps(num, per_step)
    parts = [triplets_of_step(num, per_step, seed=seed, epoch=epoch, step=step) for step in range(steps)]
    sizes = [len(part) for part in parts]
    assert max(sizes) <= per_step
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(parts).tolist()) == list(range(num))


@settings(max_examples=30)
@given(num=st.integers(1, 20), seed=st.integers(0, 999))
def test_each_image_of_a_step_comes_once(num: int, seed: int) -> None:
    triplets = np.random.default_rng(seed).integers(12, size=(num, 3)) * 5
    ids, positions = gather_images(triplets)
    assert len(np.unique(ids)) == len(ids)
    np.testing.assert_array_equal(ids[positions], triplets)
    assert ids[: len(set(triplets[:, 0].tolist()))].tolist() == list(dict.fromkeys(triplets[:, 0].tolist()))
