"""Scores from class scores, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.errors import ConfigError, TrainingError
from fsl_dist.metrics import class_scores
from fsl_dist.metrics.config import EvaluationConfig


def reference_order(row):
    return sorted(range(len(row)), key=lambda position: (-row[position], position))


def reference_recalls(scores, targets, k):
    """Share of hits, and its mean over classes, by the papers' sums."""
    hits = {}
    for row, target in zip(scores.tolist(), targets.tolist(), strict=True):
        hits.setdefault(target, []).append(float(target in reference_order(row)[:k]))
    every = [hit for of_class in hits.values() for hit in of_class]
    return sum(every) / len(every), sum(sum(h) / len(h) for h in hits.values()) / len(hits)


@st.composite
def scored_samples(draw):
    num, classes = draw(st.integers(1, 20)), draw(st.integers(1, 7))
    # Few distinct values: most rows hold ties.
    scores = draw(st.lists(st.integers(-2, 2), min_size=num * classes, max_size=num * classes))
    targets = draw(st.lists(st.integers(0, classes - 1), min_size=num, max_size=num))
    return np.array(scores, dtype=np.float32).reshape(num, classes), np.array(targets, dtype=np.int64)


@settings(max_examples=40)
@given(scored_samples(), st.integers(1, 8))
def test_recalls_equal_plain_loops_with_ties(samples, k):
    scores, targets = samples
    ranks = class_scores.rank_targets(scores, targets)
    for within in (k, 1):
        share, class_mean = reference_recalls(scores, targets, within)
        assert class_scores.share_within(ranks, within) == pytest.approx(share, abs=1e-12)
        balanced = class_scores.class_mean_share_within(ranks, targets, within)
        assert balanced == pytest.approx(class_mean, abs=1e-12)


def test_of_equal_scores_the_smaller_position_ranks_first():
    scores = np.array([[1.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
    assert class_scores.rank_targets(scores, np.array([2, 1])).tolist() == [1, 1]


def test_a_class_that_is_not_scored_is_within_no_k():
    ranks = class_scores.rank_targets(np.zeros((2, 3)), np.array([-1, 0]))
    assert ranks.tolist() == [class_scores.NEVER, 0]
    assert class_scores.share_within(ranks, 1000) == 0.5
    assert class_scores.rank_targets(np.zeros((1, 0)), np.array([-1])).tolist() == [class_scores.NEVER]


def test_scores_that_are_not_numbers_are_refused():
    scores = np.array([[0.0, np.nan], [1.0, 0.0]])
    with pytest.raises(TrainingError, match="1 of 2 test samples have scores that are not numbers"):
        class_scores.rank_targets(scores, np.array([0, 0]))


def test_repeated_divides_by_n():
    repeated = class_scores.Repeated.from_values([0.0, 1.0])
    assert repeated == class_scores.Repeated(mean=0.5, std=0.5, n=2)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"k_p": ()}, r"evaluation\.k_p=\[\] must be of length 1 or more"),
        ({"k_p": (0, 5)}, r"evaluation\.k_p\[0\]=0 must be at least 1"),
        ({"k_p": (5, 5)}, r"evaluation\.k_p=\[5, 5\] must name different"),
        ({"delta_tau": ()}, r"evaluation\.delta_tau=\[\] must be of length 1 or more"),
        ({"delta_tau": (float("nan"),)}, r"evaluation\.delta_tau\[0\]=nan must be a finite number"),
        ({"delta_tau": (0.0, 0.0)}, r"evaluation\.delta_tau=\[0.0, 0.0\] must name different"),
        ({"base_clusters": -1}, r"evaluation\.base_clusters=-1 must be at least 0"),
        ({"novel_clusters": -1}, r"evaluation\.novel_clusters=-1 must be at least 0"),
        ({"novel_shots": 0}, r"evaluation\.novel_shots=0 must be at least 1"),
        ({"novel_test": 0}, r"evaluation\.novel_test=0 must be at least 1"),
        ({"draws": 0}, r"evaluation\.draws=0 must be at least 1"),
        ({"kmeans_runs": 0}, r"evaluation\.kmeans_runs=0 must be at least 1"),
        ({"num_clusters": -1}, r"evaluation\.num_clusters=-1 must be at least 0"),
        ({"clustering_runs": 0}, r"evaluation\.clustering_runs=0 must be at least 1"),
        ({"spectral_neighbors": 1}, r"evaluation\.spectral_neighbors=1 must be at least 2"),
        ({"batch_size": 0}, r"evaluation\.batch_size=0 must be at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        EvaluationConfig(**fields)
