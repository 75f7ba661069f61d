"""k-means with all starts at once against plain float64 loops, one start and one point at a time."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fsl_dist.methods.kmeans import cluster_means
from fsl_dist.methods.prototypes import fit_prototypes

Points = NDArray[np.float64]


def blobs(num: int, dim: int, modes: int, seed: int) -> Points:
    """Overlapping Gaussian modes, off the origin."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(modes, dim))
    return 5 + centres[rng.integers(modes, size=num)] + 0.7 * rng.normal(size=(num, dim))


def inertia(points: Points, means: Points) -> float:
    """Sum over the points of the squared distance to the nearest mean, pair by pair."""
    return sum(min(float(((point - mean) ** 2).sum()) for mean in means) for point in points)


def plain_kmeans(points: Points, num_clusters: int, starts: int, rng: np.random.Generator) -> Points:
    """k-means++ and Lloyd's rounds until no label changes, each start by itself; the best of them."""
    found = []
    for _ in range(starts):
        means = [points[rng.integers(len(points))]]
        while len(means) < num_clusters:
            nearest = np.array([min(float(((x - mean) ** 2).sum()) for mean in means) for x in points])
            means.append(points[rng.choice(len(points), p=nearest / nearest.sum())])
        labels: list[int] = []
        while True:
            changed = [int(np.argmin([float(((x - mean) ** 2).sum()) for mean in means])) for x in points]
            if changed == labels:
                break
            labels = changed
            members = [points[np.array(labels) == number] for number in range(num_clusters)]
            means = [
                rows.mean(axis=0) if len(rows) else mean for rows, mean in zip(members, means, strict=True)
            ]
        found.append(np.array(means))
    return min(found, key=lambda means: inertia(points, means))


@pytest.mark.parametrize(("num", "dim", "num_clusters"), [(40, 8, 5), (5, 16, 4), (60, 2, 3)])
def test_the_inertia_is_that_of_plain_loops_on_average(num: int, dim: int, num_clusters: int) -> None:
    ratios = []
    for seed in range(8):
        points = blobs(num, dim, num_clusters + 2, seed)
        ours = cluster_means(points, num_clusters, 10, np.random.default_rng(seed))
        plain = plain_kmeans(points, num_clusters, 10, np.random.default_rng(seed))
        ratios.append(inertia(points, ours) / inertia(points, plain))
    assert np.mean(ratios) <= 1.01


def test_means_are_those_of_the_points_nearest_to_them() -> None:
    points = blobs(300, 6, 4, seed=1)
    means = cluster_means(points, 4, 3, np.random.default_rng(0))
    nearest = np.array([np.argmin([((x - mean) ** 2).sum() for mean in means]) for x in points])
    for number, mean in enumerate(means):
        # A start has settled when its centres move less than 1e-4 of the points' variance.
        np.testing.assert_allclose(mean, points[nearest == number].mean(axis=0), atol=0.02)


@pytest.mark.parametrize(("scale", "offset"), [(1e-12, 0.0), (1e15, 0.0), (0.01, 1000.0)])
def test_neither_scale_nor_offset_changes_the_clusters(scale: float, offset: float) -> None:
    points = np.round(blobs(80, 4, 3, seed=3) * 1024) / 1024
    plain = cluster_means(points, 3, 4, np.random.default_rng(5))
    moved = cluster_means(points * scale + offset, 3, 4, np.random.default_rng(5))
    np.testing.assert_allclose((moved - offset) / scale, plain, rtol=1e-6)


def test_starts_taken_in_turn_cluster_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.concatenate([blobs(30, 4, 1, seed) + 100 * seed for seed in range(4)])
    monkeypatch.setattr("fsl_dist.methods.kmeans._DISTANCES_AT_A_TIME", 1)
    means = cluster_means(points, 4, 6, np.random.default_rng(0))
    expected = [points[start : start + 30].mean(axis=0) for start in range(0, 120, 30)]
    np.testing.assert_allclose(means[means[:, 0].argsort()], expected)


def test_points_that_are_all_the_same_are_one_cluster() -> None:
    means = cluster_means(np.full((6, 3), 0.1), 3, 2, np.random.default_rng(0))
    np.testing.assert_allclose(means, [[0.1, 0.1, 0.1]])


def test_prototypes_are_the_same_on_any_number_of_threads() -> None:
    points = blobs(500, 32, 20, seed=0)
    labels = np.arange(500) % 7
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(fit_prototypes(points, labels, 6, seed=0, epoch=0))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(found[0].means, found[1].means)
