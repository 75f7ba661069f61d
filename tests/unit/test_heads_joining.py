"""Novel classes in addition to a head, against plain loops; and that few images are not at a disadvantage."""

import math

import numpy as np
import pytest

from fsl_dist.heads import BaseMeans, Embedded, HeadConfig, calibrate_novel, fit_head, join_novel
from fsl_dist.heads.fitting import PROTOTYPE_SCALE

CLASSES = np.array([1, 4, 6])
"""6 has no training image"""


def unit(vector):
    return vector / math.sqrt(sum(value * value for value in vector))


def test_class_means_divide_between_old_and_new_and_the_head_among_the_old():
    rng = np.random.default_rng(0)
    labels = np.array([1, 1, 1, 1, 4])  # 4 has one image, which says nothing of its spread
    vectors = (0.2 * rng.normal(size=(5, 4)) + np.array([[1, 1, 0, 0]] * 4 + [[0, 0, 1, 1]])).astype(
        np.float32
    )
    novel = [(rng.normal(size=(n, 4)) + 2).astype(np.float32) for n in (1, 3)]
    queries = (rng.normal(size=(6, 4)) + 2).astype(np.float32)
    train = Embedded(np.arange(5), vectors, labels)
    head = fit_head(HeadConfig(k_p=1, novel_temperature=1.5), train, CLASSES)
    found = join_novel(head, BaseMeans.fit(train, CLASSES), novel, queries)

    centre = sum(unit(v.astype(float)) for v in vectors) / 5

    def point(vector):
        return unit(unit(vector.astype(float)) - centre)

    def mean_product(points):
        """ρ without bias: the mean product of two different images."""
        n = len(points)
        return sum(points[i] @ points[j] for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    of_classes = {1: vectors[:4], 4: vectors[4:], "novel 0": novel[0], "novel 1": novel[1]}
    points = {name: [point(v) for v in images] for name, images in of_classes.items()}
    square = mean_product(points[1])  # 1 alone tells of all classes
    means = {}
    for name, own in points.items():
        n = len(own)
        shrunk = ((n - 1) * mean_product(own) + square) / n if n > 1 else square
        means[name] = sum(own) / n / math.sqrt(max(shrunk, 0.01))
    for row, query in zip(found, queries, strict=True):
        scores = {name: PROTOTYPE_SCALE * (point(query) @ mean) / 1.5 for name, mean in means.items()}
        highest = max(scores.values())
        weights = {name: math.exp(score - highest) for name, score in scores.items()}
        shares = {name: weight / sum(weights.values()) for name, weight in weights.items()}
        is_base = shares[1] + shares[4]
        expected = [*(is_base * head.probabilities(query[None])[0]), shares["novel 0"], shares["novel 1"]]
        np.testing.assert_allclose(row, expected, rtol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    np.testing.assert_array_equal(
        join_novel(head, BaseMeans.fit(train, CLASSES), [], queries), head.probabilities(queries)
    )


def draw(num_classes, num, seed):
    """Classes around random directions with as much spread as distance: float32 [num_classes, num, 64]."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_classes, 1, 64))
    return (centres + 1.5 * rng.normal(size=(num_classes, num, 64))).astype(np.float32)


@pytest.mark.parametrize("shots", [1, 5])
def test_novel_classes_are_found_as_often_as_old_ones(shots):
    images = draw(20, 60, seed=1)
    base, novel = images[:15], images[15:]
    labels = np.repeat(np.arange(15), 30)
    train = Embedded(np.arange(450), base[:, :30].reshape(450, 64), labels)
    validation = Embedded(np.arange(225), base[:, 30:45].reshape(225, 64), np.repeat(np.arange(15), 15))
    config = calibrate_novel(HeadConfig(kind="prototypes"), train, validation, np.arange(15))
    head, means = fit_head(config, train, np.arange(15)), BaseMeans.fit(train, np.arange(15))
    supports = [of_class[:shots] for of_class in novel]
    right = {}
    for name, queries, first in (("base", base[:, 45:], 0), ("novel", novel[:, 45:], 15)):
        found = join_novel(head, means, supports, queries.reshape(-1, 64)).argmax(axis=1)
        right[name] = (found == first + np.repeat(np.arange(len(queries)), 15)).mean()
    # The mean of one image, at length 1, would be found in none of a hundred.
    assert right["novel"] > 0.5 * right["base"]
    assert right["base"] > 0.5
