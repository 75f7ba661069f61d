"""Confident learning against plain loops written from the paper's equations."""

import numpy as np
import pytest

from fsl_dist.errors import TrainingError
from fsl_dist.metrics.confident_learning import confident_joint


def by_loops(
    probabilities: np.ndarray, labels: np.ndarray
) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """(t of Eq. 2, C of Eq. 1, Q̂ of Eq. 3)."""
    num, classes = probabilities.shape
    thresholds = []
    for j in range(classes):
        own = [float(probabilities[i, j]) for i in range(num) if labels[i] == j]
        thresholds.append(sum(own) / len(own) if own else float("inf"))
    counts = [[0] * classes for _ in range(classes)]
    for i in range(num):
        reached = [(probabilities[i, j], -j) for j in range(classes) if probabilities[i, j] >= thresholds[j]]
        if reached:
            counts[int(labels[i])][-max(reached)[1]] += 1
    joint = []
    for i in range(classes):
        total, given = sum(counts[i]), int((labels == i).sum())
        joint.append([(counts[i][j] / total if total else float(i == j)) * given for j in range(classes)])
    whole = sum(map(sum, joint))
    return thresholds, counts, [[value / whole for value in row] for row in joint]


@pytest.mark.parametrize("seed", range(8))
def test_it_is_what_the_loops_compute(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num, classes = int(rng.integers(1, 60)), int(rng.integers(2, 6))
    probabilities = rng.dirichlet(np.full(classes, 0.4), num)
    labels = rng.integers(0, classes, num)
    found = confident_joint(probabilities, labels)
    thresholds, counts, joint = by_loops(probabilities, labels)
    np.testing.assert_allclose(found.thresholds, thresholds, rtol=1e-12)
    assert found.counts.tolist() == counts
    np.testing.assert_allclose(found.joint, joint, atol=1e-12)
    assert found.joint.sum() == pytest.approx(1)
    assert found.noise == pytest.approx(1 - sum(joint[i][i] for i in range(classes)))


def test_a_planted_error_is_counted_off_the_diagonal() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.05, 0.95]])
    labels = np.array([0, 0, 1, 1, 0])
    found = confident_joint(probabilities, labels)
    assert found.true.tolist()[4] == 1
    assert found.counts[0, 1] == 1


def test_an_image_below_every_threshold_is_counted_nowhere() -> None:
    probabilities = np.array([[0.9, 0.1], [0.1, 0.9], [0.52, 0.48]])
    found = confident_joint(probabilities, np.array([0, 1, 0]))
    assert found.true[2] == -1
    assert found.counts.sum() == 2


def test_probabilities_must_be_numbers() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        confident_joint(np.array([[np.nan, 1.0]]), np.array([0]))
