"""LMNN's objective, gradient and targets against float64 loops, and what the fit does to kNN."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime

from fsl_dist.errors import RequestError
from fsl_dist.heads import lmnn


def draw(seed, num, num_classes, dim=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, dim)), rng.integers(0, num_classes, num), rng


def reference_targets(vectors, labels, num):
    targets = []
    for i in range(len(labels)):
        mates = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        mates.sort(key=lambda j: (((vectors[i] - vectors[j]) ** 2).sum(), j))
        targets.append((mates + [-1] * num)[:num])
    return targets


def reference_objective(transform, vectors, labels, targets):
    """Every triple (i, j, l), one at a time."""

    def distance(a, b):
        return ((transform @ (vectors[a] - vectors[b])) ** 2).sum()

    pull = push = 0.0
    pairs = [(i, j) for i in range(len(labels)) for j in targets[i] if j >= 0]
    for i, j in pairs:
        pull += distance(i, j)
        for k in range(len(labels)):
            if labels[k] != labels[i]:
                push += max(0.0, 1.0 + distance(i, j) - distance(i, k))
    return (0.5 * pull + 0.5 * push) / len(pairs)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(2, 16),
    num_classes=st.integers(1, 4),
    width=st.integers(1, 4),
    block=st.sampled_from([1, 40, 2**21]),
)
def test_objective_and_targets_are_the_loops(seed, num, num_classes, width, block):
    vectors, labels, rng = draw(seed, num, num_classes)
    labels[:2] = 0  # one pair at least
    transform = rng.normal(size=(2, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lmnn, "_PAIRS_AT_A_TIME", block)
        targets = lmnn.target_neighbours(vectors, labels, width)
        assert targets.tolist() == reference_targets(vectors, labels, width)
        value, gradient = lmnn.lmnn_objective(transform, vectors + 100.0, labels, targets)
    expected = reference_objective(transform, vectors, labels, targets)
    assert value == pytest.approx(expected, rel=1e-9)
    numeric = approx_fprime(
        transform.ravel(),
        lambda flat: reference_objective(flat.reshape(2, 3), vectors, labels, targets),
        1e-7,
    )
    np.testing.assert_allclose(gradient.ravel(), numeric, rtol=1e-3, atol=1e-4 * max(1, abs(numeric).max()))


def test_gradient_to_many_digits():
    """Central differences of this project's value, whose digits the loop has confirmed."""
    vectors, labels, rng = draw(3, 40, 3, dim=4)
    targets = lmnn.target_neighbours(vectors, labels, 3)
    transform, step = rng.normal(size=(4, 4)), 1e-5
    _, gradient = lmnn.lmnn_objective(transform, vectors, labels, targets)
    for _ in range(5):
        way = rng.normal(size=(4, 4))
        ahead, behind = (
            lmnn.lmnn_objective(transform + sign * step * way, vectors, labels, targets)[0]
            for sign in (1, -1)
        )
        assert (ahead - behind) / (2 * step) == pytest.approx((gradient * way).sum(), rel=1e-6)


def test_scale_is_the_root_mean_square_to_targets():
    vectors = np.array([[0.0], [1.0], [5.0], [7.0], [100.0]])
    labels = np.array([0, 0, 1, 1, 2])
    # Distances to the one positive: 1, 1, 2, 2; the last vector has none.
    assert lmnn.target_scale(vectors, labels) == pytest.approx(np.sqrt((1 + 1 + 4 + 4) / 4))
    assert lmnn.target_scale(np.zeros((3, 2)), np.zeros(3, dtype=np.int64)) == 1.0
    assert lmnn.target_scale(vectors, np.arange(5)) == 1.0


def test_the_fit_turns_a_useless_axis_away():
    """The class is in the first of three coordinates, the others are loud noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    vectors = rng.normal(size=(90, 3)) * [0.3, 20.0, 20.0] + np.stack(
        [labels * 2.0, labels * 0, labels * 0], 1
    )
    vectors /= lmnn.target_scale(vectors, labels)
    fit = lmnn.fit_lmnn(vectors, labels, num_targets=3)
    assert fit.objective < 0.5 * fit.start_objective
    assert fit.iterations > 1

    def leave_one_out(points):
        distances = ((points[:, None] - points) ** 2).sum(-1)
        np.fill_diagonal(distances, np.inf)
        return (labels[distances.argmin(1)] == labels).mean()

    assert leave_one_out(vectors) < 0.7
    assert leave_one_out(vectors @ fit.transform.T) > 0.9
    # The same fit again: nothing is drawn.
    assert np.array_equal(lmnn.fit_lmnn(vectors, labels, num_targets=3).transform, fit.transform)


def test_classes_of_one_image_cannot_be_fitted():
    with pytest.raises(RequestError, match="no class has two training images"):
        lmnn.fit_lmnn(np.eye(3), np.arange(3))


def test_targets_that_tie_are_the_smaller_rows():
    """About a mean that is not a whole number, products round equal distances apart."""
    rng = np.random.default_rng(8)
    codes, labels = rng.integers(0, 2, (120, 31)).astype(np.float64), rng.integers(0, 2, 120)
    found = lmnn.target_neighbours(codes, labels, 4)
    for row, label in enumerate(labels.tolist()):
        others = np.flatnonzero((labels == label) & (np.arange(120) != row))
        distances = np.square(codes[others] - codes[row]).sum(axis=1)
        assert found[row].tolist() == others[np.lexsort((others, distances))[:4]].tolist()
