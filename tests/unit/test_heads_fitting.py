"""Heads against plain loops in float64."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.heads import Embedded, HeadConfig, fit_head, read_head, write_head
from fsl_dist.heads.fitting import PROTOTYPE_SCALE

CLASSES = np.array([2, 5, 7, 9])
"""7 has no training image"""


def draw(seed, num=24, dim=6):
    rng = np.random.default_rng(seed)
    labels = rng.choice([2, 5, 9], num, p=[0.6, 0.3, 0.1])
    labels[:3] = [2, 5, 9]
    centres = {2: 0.0, 5: 1.0, 9: -1.0}
    vectors = (rng.normal(size=(num, dim)) + [[centres[label]] for label in labels.tolist()]).astype(
        np.float32
    )
    logits = rng.normal(size=(num, len(CLASSES))).astype(np.float32)
    return Embedded(np.arange(num), vectors, labels, logits)


def softmax_loop(scores):
    highest = max(scores)
    weights = [math.exp(score - highest) for score in scores]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_softmax_subtracts_the_log_prior(tau):
    part = draw(0)
    head = fit_head(HeadConfig(kind="softmax", tau=tau, temperature=1.7), part, CLASSES)
    found = head.probabilities(part.vectors, part.logits)
    for row, logits in zip(found, part.logits.tolist(), strict=True):
        scores = []
        for label, logit in zip(CLASSES.tolist(), logits, strict=True):
            count = sum(other == label for other in part.labels.tolist())
            scores.append((logit - tau * math.log(count / 24)) / 1.7 if count else -math.inf)
        np.testing.assert_allclose(row, softmax_loop(scores), rtol=1e-9)
    assert (found[:, 2] == 0).all()


@given(st.integers(0, 2**32 - 1), st.sampled_from(["cosine", "l2"]), st.integers(1, 8))
def test_knn_is_the_vote_with_its_ties(seed, metric, k_p):
    rng = np.random.default_rng(seed)
    # Few different values: equal distances and equal votes occur.
    vectors = rng.integers(1, 4, size=(12, 2)).astype(np.float32)
    labels = rng.choice([2, 5, 9], 12)
    queries = rng.integers(1, 4, size=(5, 2)).astype(np.float32)
    head = fit_head(HeadConfig(metric=metric, k_p=k_p), Embedded(np.arange(12), vectors, labels), CLASSES)
    for query, row in zip(queries, head.probabilities(queries), strict=True):

        def cost(image, query=query):
            x, y = query.astype(float), vectors[image].astype(float)
            if metric == "l2":
                return ((x - y) ** 2).sum()
            return -(((x * y).sum()) ** 2) / ((y * y).sum()) / ((x * x).sum())

        order = sorted(range(12), key=lambda image: (cost(image), labels[image], image))
        votes = {label: sum(labels[image] == label for image in order[:k_p]) for label in (2, 5, 9)}
        places = {
            label: [i for i, image in enumerate(order) if labels[image] == label] for label in (2, 5, 9)
        }
        present = [label for label in (2, 5, 9) if places[label]]
        near = sorted(present, key=lambda label: (cost(order[places[label][0]]), label))
        smoothed = [
            votes[label] + 1 / (2 + near.index(label)) if label in present else 0.0
            for label in CLASSES.tolist()
        ]
        np.testing.assert_allclose(row, np.array(smoothed) / sum(smoothed), rtol=1e-9)
        winner = min(present, key=lambda label: (-votes[label], near.index(label)))
        assert CLASSES[row.argmax()] == winner


@pytest.mark.parametrize("is_centred", [False, True])
def test_prototypes_are_class_means_on_the_sphere(is_centred):
    part = draw(1)
    head = fit_head(HeadConfig(kind="prototypes", is_centred=is_centred), part, CLASSES)
    found = head.probabilities(part.vectors)
    vectors = part.vectors.astype(np.float64)
    centre = sum(vectors) / len(vectors) if is_centred else 0.0

    def unit(vector):
        return vector / math.sqrt(sum(value * value for value in vector))

    points = [unit(vector - centre) for vector in vectors]
    means = {
        label: unit(sum(p for p, own in zip(points, part.labels, strict=True) if own == label))
        for label in (2, 5, 9)
    }
    for row, point in zip(found, points, strict=True):
        scores = [
            PROTOTYPE_SCALE * float(point @ means[label]) if label in means else -math.inf
            for label in CLASSES.tolist()
        ]
        np.testing.assert_allclose(row, softmax_loop(scores), rtol=1e-9)


@pytest.mark.parametrize("is_balanced", [False, True])
@pytest.mark.parametrize("labels", [(2, 5, 9), (2, 9)])
def test_logistic_minimises_the_penalised_loss(is_balanced, labels):
    part = draw(2, num=40)
    part = part.rows(np.isin(part.labels, labels))
    head = fit_head(HeadConfig(kind="logistic", c=0.1, is_balanced=is_balanced), part, CLASSES)
    found = head.probabilities(part.vectors)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    assert (found[:, ~np.isin(CLASSES, labels)] == 0).all()
    points = part.vectors.astype(np.float64)
    points = (points - points.mean(axis=0)) / points.std(axis=0)
    counts = {label: (part.labels == label).sum() for label in labels}
    # The gradient of Σ w·l + ‖W‖²/(2C) is zero: the penalty's is W/C, and W is what differs between the columns' scores.
    weights = np.array(
        [len(points) / (len(labels) * counts[label]) if is_balanced else 1.0 for label in part.labels]
    )
    columns = [int(np.searchsorted(CLASSES, label)) for label in labels]
    targets = part.labels[:, None] == np.array(labels)
    residuals = weights[:, None] * (found[:, columns] - targets)
    np.testing.assert_allclose(residuals.sum(axis=0), 0.0, atol=2e-2)  # the intercept has no penalty
    fitted = head.model.weights[columns]
    if len(labels) == 3:
        np.testing.assert_allclose(residuals.T @ points, -fitted / 0.1, atol=2e-2)
    else:
        np.testing.assert_allclose(residuals[:, 1] @ points, -(fitted[1] - fitted[0]) / 0.1, atol=2e-2)


def test_lmnn_votes_in_the_space_that_it_learns():
    rng = np.random.default_rng(3)
    labels = np.repeat([2, 5], 20)
    # One direction tells the classes apart; five others are noise five times as large.
    vectors = rng.normal(size=(40, 6)).astype(np.float32) * np.array([0.3, 5, 5, 5, 5, 5], dtype=np.float32)
    vectors[:, 0] += labels
    train = Embedded(np.arange(0, 40, 2), vectors[::2], labels[::2])
    plain, learnt = (
        fit_head(HeadConfig(kind=kind, **own, k_p=3), train, CLASSES)
        for kind, own in (("knn", {"metric": "l2"}), ("lmnn", {}))
    )
    right = [
        (CLASSES[head.probabilities(vectors[1::2]).argmax(axis=1)] == labels[1::2]).mean()
        for head in (plain, learnt)
    ]
    assert right[1] > right[0]


def test_the_file_keeps_a_head_and_refuses_damage(tmp_path):
    assert read_head(tmp_path) is None
    config = HeadConfig(kind="logistic", c=0.01, is_balanced=True, temperature=0.7)
    write_head(tmp_path, config)
    assert read_head(tmp_path) == config
    path = tmp_path / "head.json"
    whole = path.read_text()
    for text, part in (
        (whole[:-10], "is damaged"),
        ("[1]", "contains a list, not a mapping"),
        (whole.replace("0.7", "0.9"), "does not match its checksum"),
        ('{"kind": "knn", "kind": "lmnn"}', "'kind' is given twice"),
        ('{"kind": "knn", "temperature": NaN}', "NaN is not a number"),
        ('{"kind": "knn", "k_b": 5}', "did you mean"),
        ('{"kind": "knn", "k_p": 0}', "k_p=0 must be at least 1"),
        ('{"kind": "knn", "k_p": true}', "k_p=true"),
        ('{"kind": "knn", "tau": 0.5}', "head.tau=0.5 is a setting of head.kind=softmax"),
        ("\x00\xff", "is damaged"),
        ("[" * 60000, "is damaged"),
    ):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ConfigError) as caught:
            read_head(tmp_path)
        assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_cannot_be_fitted_is_refused():
    part = draw(4)
    with pytest.raises(RequestError, match=r"head\.k_p=25 is more than the number of training images: 24"):
        fit_head(HeadConfig(k_p=25), part, CLASSES)
    with pytest.raises(RequestError, match="needs a network with a classifier"):
        fit_head(HeadConfig(kind="softmax"), part, CLASSES).probabilities(part.vectors)
    with pytest.raises(RequestError, match="has 4 classes; the network's classifier has 3"):
        fit_head(HeadConfig(kind="softmax"), part, CLASSES).probabilities(part.vectors, part.logits[:, :3])
    with pytest.raises(RequestError, match="needs training images of two classes"):
        fit_head(HeadConfig(kind="logistic"), part.rows(part.labels == 2), CLASSES)
    with pytest.raises(RequestError, match="all of the given classes"):
        fit_head(HeadConfig(), part, CLASSES[:1])
