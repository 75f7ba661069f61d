"""Clusters and their scores against loops from the definitions; spectral clustering against scikit-learn's."""

import itertools
import logging
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import kneighbors_graph
from threadpoolctl import threadpool_limits

from fsl_dist.errors import RequestError
from fsl_dist.metrics import spectral as module
from fsl_dist.metrics.clustering import cluster_scores, find_clusters, score_clusters
from fsl_dist.metrics.config import CLUSTER_SCORES, EvaluationConfig
from fsl_dist.metrics.spectral import neighbour_affinity, spectral_embedding
from index import LocalIndex, open_index
from index.writing.build import build


def entropy(values):
    return -sum(n / len(values) * math.log(n / len(values)) for n in Counter(values).values())


def reference_scores(clusters, labels):
    """Plain loops; AMI's and ARI's expectations over every way of putting the labels in another order."""

    def mutual(clusters, labels):
        pairs = list(zip(clusters, labels, strict=True))
        return entropy(clusters) + entropy(labels) - entropy(pairs)

    def together(clusters, labels):
        return sum(
            clusters[i] == clusters[j] and labels[i] == labels[j]
            for i, j in itertools.combinations(range(len(labels)), 2)
        )

    majority = sum(
        max(Counter(label for c, label in zip(clusters, labels, strict=True) if c == cluster).values())
        for cluster in set(clusters)
    )
    orders = list(itertools.permutations(labels))
    expected_mutual = sum(mutual(clusters, order) for order in orders) / len(orders)
    expected_together = sum(together(clusters, order) for order in orders) / len(orders)
    h_clusters, h_labels = entropy(clusters), entropy(labels)
    pairs = [together(of, of) for of in (clusters, labels)]
    found = mutual(clusters, labels)
    return {
        "ca": majority / len(labels),
        "nmi": found / ((h_clusters + h_labels) / 2),
        "nmi_max": found / max(h_clusters, h_labels),
        "ami": (found - expected_mutual) / ((h_clusters + h_labels) / 2 - expected_mutual),
        "ari": (together(clusters, labels) - expected_together) / (sum(pairs) / 2 - expected_together),
    }


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=4, max_size=6))
def test_scores_are_their_definitions(pairs):
    clusters, labels = zip(*pairs, strict=True)
    # Otherwise an entropy is 0, or chance reaches the best score: 0/0, which is defined by agreement.
    if not 1 < len(set(clusters)) < len(clusters) or not 1 < len(set(labels)) < len(labels):
        return
    found = cluster_scores(np.array(clusters), np.array(labels))
    assert tuple(found) == CLUSTER_SCORES
    for name, expected in reference_scores(clusters, labels).items():
        assert found[name] == pytest.approx(expected, abs=1e-9), name


def test_cluster_accuracy_is_purity():
    # Clusters {a a b}, {b b}, {c}: majorities 2, 2, 1.
    scores = cluster_scores(np.array([5, 5, 5, 2, 2, 9]), np.array([0, 0, 1, 1, 1, 2]))
    assert scores["ca"] == pytest.approx(5 / 6)
    assert cluster_scores(np.array([1, 1, 0, 0]), np.array([7, 7, 3, 3])) == dict.fromkeys(
        CLUSTER_SCORES, 1.0
    )


def blobs(num_classes, per_class, dim=16, spread=0.6, seed=0, offset=0.0):
    """Vectors float32 around class centres, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(num_classes), per_class)
    centres = rng.normal(size=(num_classes, dim))
    points = centres[labels] + spread * rng.normal(size=(len(labels), dim))
    return (offset + points).astype(np.float32), labels.astype(np.int64)


def index_of(tmp_path: Path, vectors, labels, ids=None) -> LocalIndex:
    return open_index(build(tmp_path / "index", vectors, labels, ids))


def test_kmeans_finds_clusters_far_from_the_origin_whatever_the_threads():
    points, labels = blobs(8, 20, spread=0.05, offset=0.0)
    points = 16 + 0.01 * points
    clusters = find_clusters(points, 8, starts=5, random_state=1)
    assert adjusted_rand_score(labels, clusters) == 1
    with threadpool_limits(limits=2):
        assert find_clusters(points, 8, starts=5, random_state=1).tolist() == clusters.tolist()


def test_kmeans_of_fewer_distinct_points_than_clusters_says_nothing():
    points = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    assert len(set(find_clusters(points, 4, starts=1, random_state=0).tolist())) == 2


@pytest.mark.parametrize("num_neighbors", [2, 5, 10, 100])
def test_the_affinity_is_scikit_learns(tmp_path, num_neighbors):
    points, labels = blobs(6, 7)
    num_neighbors = min(num_neighbors, 2 * len(points))
    # Ids that are no range, so that positions and ids differ.
    index = index_of(tmp_path, points, labels, 1000 - 3 * np.arange(len(points)))
    order = np.argsort(index.labels, kind="stable")
    vectors = index.vectors(0, index.num_vectors)[order]
    ours = neighbour_affinity(index, num_neighbors).toarray()
    theirs = kneighbors_graph(vectors, min(num_neighbors, len(points)), include_self=True).toarray()
    np.fill_diagonal(theirs, 0)
    np.testing.assert_array_equal(ours, (theirs + theirs.T) / 2)


def reference_embedding(affinity, dim):
    """All eigenvectors of the dense matrix: values, and the embedding of the first `dim`."""
    degrees = affinity.sum(axis=1)
    values, vectors = np.linalg.eigh(affinity / np.sqrt(degrees[:, None] * degrees))
    return values[::-1], vectors[:, ::-1][:, :dim] / np.sqrt(degrees)[:, None]


def distances(points):
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.mark.parametrize("dense_size", [1000, 10])
@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    dim=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
def test_the_embedding_is_the_dense_one_up_to_a_rotation(dense_size, sizes, dim, seed):
    """Also of several components, whose eigenvalue 1 comes as often as there are components."""
    rng = np.random.default_rng(seed)
    num = sum(sizes)
    affinity = np.zeros((num, num))
    start = 0
    for size in sizes:
        rows = np.arange(start, start + size)
        start += size
        affinity[rows[:-1], rows[1:]] = rng.uniform(0.5, 1.5, size - 1)  # a path: one component
        extra = rng.integers(start - size, start, (size, 2))
        affinity[extra[:, 0], extra[:, 1]] = rng.uniform(0.5, 1.5, size)
    affinity += affinity.T
    np.fill_diagonal(affinity, 0)
    shuffled = rng.permutation(num)
    affinity = affinity[np.ix_(shuffled, shuffled)]
    values, expected = reference_embedding(affinity, min(dim, num))
    dim = expected.shape[1]
    if dim < len(sizes) or (dim < num and values[dim - 1] - values[dim] < 1e-6):
        return  # which of several equal eigenvectors come is not determined
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_DENSE_SIZE", dense_size)
        found = spectral_embedding(csr_array(affinity), dim, seed=0)
    np.testing.assert_allclose(distances(found), distances(expected), atol=1e-6)


def test_many_components_are_all_found():
    """What a solver of the whole matrix misses: 60 groups without an edge between them, one eigenvalue 60 times."""
    block = np.ones((12, 12)) - np.eye(12)
    affinity = csr_array(np.kron(np.eye(60), block))
    embedding = spectral_embedding(affinity, 60, seed=0)
    labels = np.repeat(np.arange(60), 12)
    assert adjusted_rand_score(labels, find_clusters(embedding, 60, starts=10, random_state=0)) == 1


def test_more_components_than_clusters_are_told(caplog):
    affinity = csr_array(np.kron(np.diag([1.0] * 5), np.ones((3, 3)) - np.eye(3)))
    with caplog.at_level(logging.WARNING):
        embedding = spectral_embedding(affinity, 4, seed=0)
    assert "falls into 5 parts, and 4 clusters are wanted" in caplog.text
    assert "evaluation.spectral_neighbors=N" in caplog.text
    assert np.isfinite(embedding).all()
    assert (embedding[12:] == 0).all()


def test_spectral_clusters_as_scikit_learn_does(tmp_path):
    """On overlapping classes, where neither is right: the same graph, the same spectrum, the same ARI."""
    points, labels = blobs(12, 100, dim=8, spread=0.62)
    index = index_of(tmp_path, points, labels)
    config = EvaluationConfig(clustering_runs=3)
    ours = score_clusters("spectral", index, config, seed=0)
    theirs = [
        adjusted_rand_score(
            labels,
            SpectralClustering(12, affinity="nearest_neighbors", random_state=seed).fit_predict(points),
        )
        for seed in range(3)
    ]
    assert 0.4 < np.mean(theirs) < 0.95
    assert ours["spectral/ari"].mean == pytest.approx(np.mean(theirs), abs=0.01)
    assert ours["spectral/ari"].n == 3
    assert score_clusters("spectral", index, config, seed=0) == ours


def test_kmeans_runs_differ_by_their_seeds_alone(tmp_path):
    points, labels = blobs(10, 12, dim=4, spread=0.5)
    index = index_of(tmp_path, points, labels)
    config = EvaluationConfig(clustering_runs=4)
    found = score_clusters("kmeans", index, config, seed=3)
    assert set(found) == {f"kmeans/{name}" for name in CLUSTER_SCORES}
    assert found["kmeans/ari"].n == 4
    assert found["kmeans/ari"].std > 0
    assert score_clusters("kmeans", index, config, seed=3) == found
    assert score_clusters("kmeans", index, config, seed=4) != found
    # The number of starts is the prototypes': a run of kmeans takes one.
    assert (
        score_clusters("kmeans", index, EvaluationConfig(clustering_runs=4, kmeans_runs=1), seed=3) == found
    )


@pytest.mark.parametrize("protocol", ["kmeans", "spectral"])
def test_clusters_that_cannot_be_are_refused(tmp_path, protocol):
    points, labels = blobs(3, 4)
    index = index_of(tmp_path, points, labels)
    with pytest.raises(
        RequestError,
        match=rf"protocol={protocol} with evaluation\.num_clusters=13 .* 12 images of 3 classes",
    ):
        score_clusters(protocol, index, EvaluationConfig(num_clusters=13), seed=0)
    assert (
        score_clusters(protocol, index, EvaluationConfig(num_clusters=12), seed=0)[f"{protocol}/ca"].mean == 1
    )
    one = index_of(tmp_path / "one", points, np.zeros(12, dtype=np.int64))
    with pytest.raises(
        RequestError, match=rf"protocol={protocol} .* needs two of them; the 12 images to cluster have 1"
    ):
        score_clusters(protocol, one, EvaluationConfig(), seed=0)
