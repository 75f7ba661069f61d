"""The vote of the neighbours and its scores, against plain loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.errors import DataError, RequestError, TrainingError
from fsl_dist.metrics import knn
from index.search import open_index
from index.writing.build import build


def reference_vote(labels, distances, k_p):
    """Majority; then the class whose nearest member is nearest; then the smaller label."""
    votes, nearest = {}, {}
    for label, distance in list(zip(labels, distances, strict=True))[:k_p]:
        if label == -1:
            continue
        votes[label] = votes.get(label, 0) + 1
        nearest[label] = min(nearest.get(label, np.inf), distance)
    return min(votes, key=lambda label: (-votes[label], nearest[label], label), default=-1)


@st.composite
def neighbours(draw):
    """Few labels and few distances, so that ties of both kinds are common; the last neighbours may be missing."""
    num, k = draw(st.integers(0, 8)), draw(st.integers(1, 7))
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=num * k, max_size=num * k)), dtype=np.int64)
    steps = np.array(draw(st.lists(st.integers(0, 1), min_size=num * k, max_size=num * k)), dtype=np.float32)
    labels, distances = labels.reshape(num, k), np.cumsum(steps.reshape(num, k), axis=1)
    for row in range(num):
        found = draw(st.integers(0, k))
        labels[row, found:] = -1
        distances[row, found:] = np.inf
    return labels, distances


@settings(max_examples=40)
@given(neighbours(), st.integers(1, 7))
def test_vote_equals_plain_loop(found, k_p):
    labels, distances = found
    k_p = min(k_p, labels.shape[1])
    expected = [reference_vote(*row, k_p) for row in zip(labels.tolist(), distances.tolist(), strict=True)]
    assert knn.vote(labels, distances, k_p).tolist() == expected


def test_ties_go_to_the_nearest_member_then_to_the_smaller_label():
    labels = np.array([[7, 2, 2, 7], [7, 2, 2, 7], [9, 2, 2, 2]])
    distances = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]])
    assert knn.vote(labels, distances, 4).tolist() == [7, 2, 2]
    assert knn.vote(labels, distances, 1).tolist() == [7, 7, 9]


def test_vote_in_chunks_is_the_vote_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    labels, distances = rng.integers(0, 4, (50, 6)), np.sort(rng.random((50, 6)), axis=1)
    whole = knn.vote(labels, distances, 5)
    monkeypatch.setattr(knn, "_PAIRS_AT_A_TIME", 7 * 25)
    assert knn.vote(labels, distances, 5).tolist() == whole.tolist()


def test_too_few_columns_and_distances_that_are_not_numbers_are_refused():
    labels, distances = np.array([[1, 2]]), np.array([[0.5, np.nan]])
    with pytest.raises(RequestError, match=r"evaluation\.k_p=3 .* returned 2"):
        knn.vote(labels, distances, 3)
    with pytest.raises(TrainingError, match="distance is not a number"):
        knn.vote(labels, distances, 2)
    assert knn.vote(np.array([[1, -1]]), distances, 2).tolist() == [1]


def test_metrics_by_hand():
    # Class 5 has most training images; 1 and 3 are tied for fewest; 4 has none; 9 is never tested.
    targets = np.array([5, 5, 5, 5, 1, 1, 3, 4])
    predictions = np.array([5, 5, 5, 1, 1, 3, 3, 5])
    scores = knn.knn_metrics(
        predictions, targets, class_labels=np.array([1, 3, 4, 5, 9]), class_counts=np.array([6, 6, 0, 40, 2])
    )
    assert scores == pytest.approx({"acc": 5 / 8, "mcr": (3 / 4 + 1 / 2 + 1 + 0) / 4, "rs": (1 / 2 + 1) / 2})


@settings(max_examples=40)
@given(st.data())
def test_metrics_equal_plain_loops(data):
    num = data.draw(st.integers(1, 25))
    some = st.lists(st.integers(0, 4), min_size=num, max_size=num)
    targets, predictions = data.draw(some), data.draw(some)
    counts = data.draw(st.lists(st.integers(1, 3), min_size=5, max_size=5))
    recall = {}
    for label in set(targets):
        hits = [p == t for p, t in zip(predictions, targets, strict=True) if t == label]
        recall[label] = sum(hits) / len(hits)
    fewest = min(counts[label] for label in recall)
    rarest = [value for label, value in recall.items() if counts[label] == fewest]
    scores = knn.knn_metrics(
        np.array(predictions), np.array(targets), class_labels=np.arange(5), class_counts=np.array(counts)
    )
    right = sum(p == t for p, t in zip(predictions, targets, strict=True))
    expected = {
        "acc": right / num,
        "mcr": sum(recall.values()) / len(recall),
        "rs": sum(rarest) / len(rarest),
    }
    assert scores == pytest.approx(expected)


def test_nothing_to_score_is_refused():
    labels, counts = np.array([0]), np.array([3])
    with pytest.raises(DataError, match="no test sample"):
        knn.knn_metrics(
            np.empty(0, np.int64), np.empty(0, np.int64), class_labels=labels, class_counts=counts
        )
    with pytest.raises(DataError, match="none of the 1 test classes has a training image"):
        knn.knn_metrics(np.array([0]), np.array([8]), class_labels=labels, class_counts=counts)


def test_each_k_p_is_named():
    labels, distances = np.array([[0, 1, 1]]), np.array([[0.1, 0.2, 0.3]])
    scores = knn.evaluate_knn(
        labels,
        distances,
        np.array([1]),
        class_labels=np.array([0, 1]),
        class_counts=np.array([4, 4]),
        k_ps=(1, 3),
    )
    assert scores == {
        "knn/acc@1": 0.0,
        "knn/mcr@1": 0.0,
        "knn/rs@1": 0.0,
        "knn/acc@3": 1.0,
        "knn/mcr@3": 1.0,
        "knn/rs@3": 1.0,
    }


def test_votes_do_not_depend_on_the_scale_of_the_embedding(tmp_path):
    """At 1e-30 squared distances are no float32: there every class seems equally near."""
    rng = np.random.default_rng(9)
    vectors, labels = rng.normal(size=(60, 4)).astype(np.float32), rng.integers(0, 5, 60)
    queries, query_labels = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 5, 40)
    # A power of two changes no digit.
    scores = []
    for scale in (1.0, 2.0**-100, 2.0**50):
        gallery = open_index(build(tmp_path / str(scale), vectors * np.float32(scale), labels))
        scores.append(knn.score_knn(gallery, queries * np.float32(scale), query_labels, (1, 2, 4)))
    assert scores[0] == scores[1] == scores[2]
