"""Draws by class size to a power: shares, coverage, and purity."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.selection import Selection
from fsl_dist.samplers.class_power import ClassPowerDraws

COUNTS = [1, 3, 8, 40, 148]


def draws(
    power: float, *, num: int = 200, steps: int = 7, seed: int = 0, counts: list[int] = COUNTS
) -> ClassPowerDraws:
    labels = np.repeat(np.arange(len(counts)) * 3, counts)
    selection = Selection.from_labels(np.arange(len(labels)) * 2 + 5, labels)
    return ClassPowerDraws(selection, power=power, num_draws=num, num_steps=steps, seed=seed)


def epoch_of(drawn: ClassPowerDraws, epoch: int) -> list[int]:
    return np.concatenate([drawn.of_step(epoch, step) for step in range(drawn.num_steps)]).tolist()


def test_power_one_draws_every_image_once_an_epoch_in_a_new_order() -> None:
    drawn = draws(1.0)
    first, second = epoch_of(drawn, 0), epoch_of(drawn, 1)
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second


@settings(deadline=None, max_examples=30)
@given(
    power=st.floats(0, 1),
    counts=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    num=st.integers(1, 150),
    seed=st.integers(0, 10**6),
)
def test_each_class_gets_its_share_and_goes_through_its_images_in_turn(
    power: float, counts: list[int], num: int, seed: int
) -> None:
    drawn = draws(power, num=num, steps=min(4, num), seed=seed, counts=counts)
    share = np.array(counts, dtype=float) ** power
    share *= num / share.sum()
    labels = np.repeat(np.arange(len(counts)), counts)
    seen = np.zeros(len(labels), dtype=int)
    for epoch in range(4):
        rows = epoch_of(drawn, epoch)
        assert len(rows) == num
        per_class = np.bincount(labels[rows], minlength=len(counts))
        assert (np.abs(per_class - share) < 1 + 1e-6).all()
        np.add.at(seen, rows, 1)
        for label in range(len(counts)):  # no image comes again before all have come
            assert np.ptp(seen[labels == label]) <= 1


def test_over_many_epochs_shares_are_met_and_epochs_can_be_drawn_alone() -> None:
    drawn = draws(0.5)
    labels = np.repeat(np.arange(len(COUNTS)), COUNTS)
    per_class = np.mean([np.bincount(labels[epoch_of(drawn, epoch)]) for epoch in range(60)], axis=0)
    expected = np.sqrt(COUNTS) / np.sqrt(COUNTS).sum() * 200
    assert per_class == pytest.approx(expected, abs=0.2)
    for epoch in (59, 3):  # of a run that was resumed there
        assert epoch_of(draws(0.5), epoch) == epoch_of(drawn, epoch)
    assert epoch_of(draws(0.5, seed=1), 0) != epoch_of(drawn, 0)
