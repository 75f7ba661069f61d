"""Stratified, shuffled and class-balanced batches."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.selection import Selection
from fsl_dist.samplers.shuffled import (
    class_balanced_batch,
    shuffled_batch,
    shuffled_order,
    shuffled_steps,
)
from fsl_dist.samplers.stratified import share_evenly, stratified_batch, stratified_steps


def selection_of(counts: list[int]) -> Selection:
    """Classes 0, 1 … with these many images; ids are spaced by 3 so that no position passes for an id."""
    labels = np.repeat(np.arange(len(counts)), counts)
    return Selection.from_labels(7 + 3 * np.arange(len(labels)), labels)


def classes_of(selection: Selection, ids: np.ndarray) -> np.ndarray:
    return selection.sample_labels[np.searchsorted(selection.ids, ids)]


@settings(max_examples=80)
@given(
    counts=st.lists(st.integers(1, 15), min_size=1, max_size=14),
    batch_size=st.integers(1, 60),
    num_classes=st.integers(1, 12),
    seed=st.integers(0, 2**32),
    step=st.integers(0, 50),
)
def test_stratified_batch_is_as_even_as_the_classes_allow(
    counts: list[int], batch_size: int, num_classes: int, seed: int, step: int
) -> None:
    selection = selection_of(counts)
    key = {"batch_size": batch_size, "num_classes": num_classes, "seed": seed, "epoch": 2, "step": step}
    batch = stratified_batch(selection, **key)

    assert batch.dtype == np.int64
    assert np.isin(batch, selection.ids).all()
    assert len(np.unique(batch)) == len(batch)
    drawn, sizes = np.unique(classes_of(selection, batch), return_counts=True)
    assert len(drawn) == min(num_classes, len(counts), batch_size)
    limits = np.array(counts)[drawn]
    assert len(batch) == min(batch_size, limits.sum())
    # A class below another by more than one has given all it has.
    assert (sizes[sizes < sizes.max() - 1] == limits[sizes < sizes.max() - 1]).all()
    np.testing.assert_array_equal(batch, stratified_batch(selection, **key))


def test_stratified_batch_of_the_paper_has_nine_tens() -> None:
    selection = selection_of([30] * 20)
    batch = stratified_batch(selection, batch_size=90, seed=0, epoch=0, step=0)
    _, sizes = np.unique(classes_of(selection, batch), return_counts=True)
    assert sizes.tolist() == [10] * 9


def test_stratified_batch_spreads_classes_over_its_parts() -> None:
    selection = selection_of([40] * 9)
    batch = stratified_batch(selection, batch_size=90, seed=1, epoch=0, step=0)
    for half in (batch[:45], batch[45:]):
        _, sizes = np.unique(classes_of(selection, half), return_counts=True)
        assert sizes.tolist() == [5] * 9


def test_stratified_batches_differ_by_seed_epoch_and_step() -> None:
    selection = selection_of([30] * 20)
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    batches = {
        tuple(stratified_batch(selection, batch_size=18, seed=s, epoch=e, step=t).tolist())
        for s, e, t in keys
    }
    assert len(batches) == 4


def test_every_class_is_drawn_by_stratified_batches() -> None:
    selection = selection_of([2, 50, 5, 9, 100])
    drawn = [
        np.unique(
            classes_of(
                selection,
                stratified_batch(selection, batch_size=6, num_classes=2, seed=0, epoch=0, step=step),
            )
        )
        for step in range(400)
    ]
    uses = np.bincount(np.concatenate(drawn), minlength=5)
    # 400 · 2 / 5 = 160 expected whatever the size, standard deviation under 10
    assert abs(uses - 160).max() < 50


@pytest.mark.parametrize(
    ("limits", "total", "parts"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 11, [4, 4, 3]),
        ([1, 10, 10], 11, [1, 5, 5]),
        ([1, 2, 10], 11, [1, 2, 8]),
        ([1, 2, 3], 11, [1, 2, 3]),
        ([5, 5], 1, [1, 0]),
        ([], 5, []),
    ],
)
def test_share_evenly(limits: list[int], total: int, parts: list[int]) -> None:
    assert share_evenly(np.array(limits, dtype=np.int64), total).tolist() == parts


@pytest.mark.parametrize(("batch_size", "steps"), [(1, 10), (5, 2), (4, 3), (10, 1), (11, 1)])
def test_steps_round_up(batch_size: int, steps: int) -> None:
    selection = selection_of([3, 7])
    assert stratified_steps(selection, batch_size) == steps
    assert shuffled_steps(selection, batch_size) == steps


@settings(max_examples=40)
@given(
    num=st.integers(1, 80),
    batch_size=st.integers(1, 90),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 9),
)
def test_shuffled_epoch_holds_every_image_once(num: int, batch_size: int, seed: int, epoch: int) -> None:
    selection = selection_of([num])
    steps = shuffled_steps(selection, batch_size)
    batches = [
        shuffled_batch(selection, batch_size=batch_size, seed=seed, epoch=epoch, step=step)
        for step in range(steps)
    ]
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(batches).tolist()) == selection.ids.tolist()


def test_shuffled_order_changes_with_epoch_and_seed_and_cannot_be_written() -> None:
    selection = selection_of([100])
    orders = {
        tuple(shuffled_batch(selection, batch_size=100, seed=s, epoch=e, step=0).tolist())
        for s, e in [(0, 0), (0, 1), (1, 0)]
    }
    assert len(orders) == 3
    with pytest.raises(ValueError, match="read-only"):
        shuffled_order(100, "shuffled", 0, 0)[0] = 1


def test_class_balanced_batch_draws_classes_alike_and_all_their_images() -> None:
    selection = selection_of([1, 10, 100])
    ids = np.concatenate(
        [class_balanced_batch(selection, batch_size=60, seed=0, epoch=0, step=step) for step in range(100)]
    )
    assert len(ids) == 6000
    uses = np.bincount(classes_of(selection, ids), minlength=3)
    # 2000 expected, standard deviation 37
    assert abs(uses - 2000).max() < 185
    assert len(np.unique(ids)) == 111
    again = class_balanced_batch(selection, batch_size=60, seed=0, epoch=0, step=0)
    np.testing.assert_array_equal(ids[:60], again)
    assert not np.array_equal(ids[:60], ids[60:120])
