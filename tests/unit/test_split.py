"""Splits: disjoint and complete, counts as promised, units undivided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.selection import Selection
from fsl_dist.data.split import (
    NOVEL,
    TEST,
    TRAIN,
    VAL,
    DividedUnitError,
    find_divided_unit,
    holdout,
    split_base_novel,
    split_classes,
    split_stratified,
)
from fsl_dist.errors import RequestError

FRACTIONS = st.sampled_from([(0.7, 0.1, 0.2), (0.6, 0.2, 0.2), (0.5, 0.5, 0.0), (0.34, 0.33, 0.33)])


@st.composite
def labelled_samples(draw):
    counts = draw(st.lists(st.integers(1, 30), min_size=1, max_size=8))
    labels = np.repeat(np.arange(len(counts)), counts)
    shuffle = np.random.default_rng(draw(st.integers(0, 100))).permutation(len(labels))
    return labels[shuffle]


def counts_of(labels, sides):
    return np.array([np.bincount(sides[labels == label], minlength=4) for label in range(labels.max() + 1)])


@settings(max_examples=60, deadline=None)
@given(labels=labelled_samples(), fractions=FRACTIONS, seed=st.integers(0, 50))
def test_stratified_gives_every_class_the_rounded_shares(labels, fractions, seed):
    assigned = split_stratified(labels, None, fractions, seed)
    for label, found in enumerate(counts_of(labels, assigned.sides)):
        size = int(np.sum(labels == label))
        val = max(1, int(np.floor(fractions[1] * size + 0.5))) if fractions[1] else 0
        test = max(1, int(np.floor(fractions[2] * size + 0.5))) if fractions[2] else 0
        if val + test >= size:
            assert label in assigned.small_classes
            val = test = 0
        else:
            assert label not in assigned.small_classes
        assert found.tolist() == [size - val - test, val, test, 0]


@settings(max_examples=60, deadline=None)
@given(
    labels=labelled_samples(),
    fractions=FRACTIONS,
    seed=st.integers(0, 50),
    num_units=st.integers(1, 40),
    unit_seed=st.integers(0, 50),
)
def test_stratified_keeps_units_together_and_every_class_in_train(
    labels, fractions, seed, num_units, unit_seed
):
    # −1 (a unit of its own) occurs too; units cross classes freely.
    units = np.random.default_rng(unit_seed).integers(-1, num_units, len(labels))
    assigned = split_stratified(labels, units, fractions, seed)
    assert set(assigned.sides.tolist()) <= {TRAIN, VAL, TEST}
    for unit in range(num_units):
        assert len(set(assigned.sides[units == unit].tolist())) <= 1
    assert np.all(counts_of(labels, assigned.sides)[:, TRAIN] >= 1)
    for label in assigned.small_classes:
        assert np.all(assigned.sides[labels == label] == TRAIN)


def test_units_of_one_sample_each_give_the_exact_counts():
    labels = np.repeat([0, 1], [30, 17])
    alone = split_stratified(labels, np.arange(47), (0.7, 0.1, 0.2), 3)
    assert counts_of(labels, alone.sides).tolist() == [[21, 3, 6, 0], [12, 2, 3, 0]]


def test_units_come_near_the_shares():
    # 100 lesions of 1 … 5 photographs in one class
    sizes = np.random.default_rng(0).integers(1, 6, 100)
    units = np.repeat(np.arange(100), sizes)
    sides = split_stratified(np.zeros(len(units), dtype=np.int64), units, (0.7, 0.1, 0.2), 0).sides
    shares = np.bincount(sides, minlength=3) / len(units)
    assert np.abs(shares[:3] - [0.7, 0.1, 0.2]).max() < 0.02


def test_the_seed_decides_who_goes_where():
    labels = np.zeros(40, dtype=np.int64)
    one, same, other = (split_stratified(labels, None, (0.7, 0.1, 0.2), seed).sides for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_base_novel_takes_the_largest_classes_and_ties_by_name():
    labels = np.repeat([0, 1, 2, 3, 4], [12, 40, 12, 27, 3])
    assigned = split_base_novel(labels, None, 3, seed=0)
    # 40 → 8 and 8; 27 → 5.4 rounded down, 5 and 5; of the two classes of 12 the first is base: 5 and 5, 2 left
    assert counts_of(labels, assigned.sides).tolist() == [
        [2, 5, 5, 0],
        [24, 8, 8, 0],
        [0, 0, 0, 12],
        [17, 5, 5, 0],
        [0, 0, 0, 3],
    ]
    assert assigned.small_classes.tolist() == []


def test_base_novel_class_without_training_images_goes_to_train():
    labels = np.repeat([0, 1, 2], [11, 10, 2])
    assigned = split_base_novel(labels, None, 2, seed=0)
    assert counts_of(labels, assigned.sides).tolist() == [[1, 5, 5, 0], [10, 0, 0, 0], [0, 0, 0, 2]]
    assert assigned.small_classes.tolist() == [1]


@pytest.mark.parametrize("num_base", [0, 3, 7])
def test_base_novel_needs_both_kinds(num_base):
    with pytest.raises(RequestError, match=rf"num_base={num_base} must be in 1 … 2"):
        split_base_novel(np.repeat([0, 1, 2], 20), None, num_base, 0)


def test_base_novel_refuses_a_unit_with_both_kinds_of_class():
    labels = np.repeat([0, 1], [20, 5])
    units = np.arange(25)
    units[24] = 3
    with pytest.raises(DividedUnitError, match="unit 3 to keep together has samples of base and novel"):
        split_base_novel(labels, units, 1, 0)


def test_base_novel_with_units_keeps_a_class_in_train():
    # One unit of 12 fits no share: dealt to train, not to validation.
    labels = np.repeat([0, 1], [12, 2])
    assigned = split_base_novel(labels, np.repeat([0, 1], [12, 2]), 1, 0)
    assert counts_of(labels, assigned.sides)[0].tolist() == [12, 0, 0, 0]
    assert assigned.small_classes.tolist() == [0]


@settings(max_examples=40, deadline=None)
@given(num_classes=st.integers(3, 30), fractions=FRACTIONS, seed=st.integers(0, 50))
def test_classes_are_disjoint_and_complete(num_classes, fractions, seed):
    labels = np.repeat(np.arange(num_classes), 2)
    sides = split_classes(labels, None, fractions, seed).sides
    assert np.array_equal(sides[0::2], sides[1::2])
    for side in (VAL, TEST):
        share = fractions[side] * num_classes
        num = int(np.sum(sides[0::2] == side))
        assert num == (0 if share == 0 else max(1, int(share + 0.5)))
    assert NOVEL not in sides


def test_classes_refuses_a_unit_that_crosses_and_takes_one_that_does_not():
    labels = np.arange(10)
    sides = split_classes(labels, None, (0.6, 0.2, 0.2), 0).sides
    units = np.arange(10)
    inside = np.flatnonzero(sides == TRAIN)[:2]
    units[inside[1]] = units[inside[0]]
    assert np.array_equal(split_classes(labels, units, (0.6, 0.2, 0.2), 0).sides, sides)
    units[np.flatnonzero(sides == VAL)[0]] = units[inside[0]]
    with pytest.raises(DividedUnitError, match=f"unit {units[inside[0]]} .*classes of two splits"):
        split_classes(labels, units, (0.6, 0.2, 0.2), 0)


def test_classes_needs_enough_classes():
    with pytest.raises(RequestError, match="needs 3 classes or more; there are 2"):
        split_classes(np.array([0, 1]), None, (0.6, 0.2, 0.2), 0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.6, -0.1), (0, 0.5, 0.5), (0.5, 0.2, 0.2)])
def test_fractions_are_checked(fractions):
    with pytest.raises(RequestError, match="must be three numbers for train, val and test"):
        split_stratified(np.zeros(9, dtype=np.int64), None, fractions, 0)


def test_find_divided_unit_ignores_samples_without_one():
    assert find_divided_unit(np.array([-1, -1, 4, 4]), np.array([0, 1, 1, 1])) is None
    assert find_divided_unit(np.array([7, -1, 4, 4, 7]), np.array([0, 1, 1, 2, 1])) == 4
    assert find_divided_unit(None, np.array([0, 1])) is None


@settings(max_examples=40, deadline=None)
@given(labels=labelled_samples(), fraction=st.sampled_from([0.0, 0.1, 0.3]), grouped=st.booleans())
def test_holdout_divides_a_selection_by_group(labels, fraction, grouped):
    # ids 100 … in a larger catalogue; labels are not 0 … n
    labels = np.sort(labels) * 3 + 5
    ids = np.arange(100, 100 + len(labels))
    groups = np.full(200 + len(labels), -1)
    if grouped:
        groups[ids] = np.random.default_rng(0).integers(0, 25, len(ids))
    selection = Selection.from_labels(ids, labels)
    rest, held = holdout(selection, groups, fraction, seed=4)
    assert sorted([*rest.ids, *held.ids]) == ids.tolist()
    for part in (rest, held):
        assert np.array_equal(part.sample_labels, labels[part.ids - 100])
    assert rest.labels.tolist() == selection.labels.tolist()
    if grouped:
        assert not set(groups[rest.ids]) & set(groups[held.ids])
    elif fraction:
        for label, count in zip(selection.labels, selection.counts, strict=True):
            expected = max(1, int(fraction * count + 0.5)) if count > 1 else 0
            assert np.sum(held.sample_labels == label) == (expected if expected < count else 0)
    else:
        assert len(held) == 0
