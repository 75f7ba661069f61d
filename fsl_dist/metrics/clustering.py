"""Clusters of images whose classes the network has not seen: k-means, spectral clustering, and their scores.

Bjerge, Bodesheim & Karstoft, "Deep Image Clustering with Model-Agnostic Meta-Learning", section 3.4: the number of
clusters is known, and scores are means over runs from different seeds.
"""

import warnings
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fsl_dist.errors import RequestError
from fsl_dist.metrics.class_scores import Floats, Repeated
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.seeding import generator
from index.search import ShardedIndex

ClusterProtocol = Literal["kmeans", "spectral"]


def cluster_scores(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Scores of a clustering (int64 [n]) against the classes (int64 [n]): `evaluation.config.CLUSTER_SCORES`.

    `ca`: share of images whose class is the most frequent of their cluster (Eq. 4). `nmi` and `ami`: mutual
    information over the arithmetic mean of the two entropies, plain and adjusted for chance; `nmi_max` over the
    larger entropy. `ari`: the adjusted Rand index. `ami` and `ari` may be slightly negative.
    """
    # Imported here and below: scikit-learn and SciPy take 1.8 s to import, and every training run would wait for them.
    from sklearn.metrics import (
        adjusted_mutual_info_score,
        adjusted_rand_score,
        normalized_mutual_info_score,
    )
    from sklearn.metrics.cluster import contingency_matrix

    return {
        "ca": float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels)),
        "nmi": float(normalized_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "nmi_max": float(normalized_mutual_info_score(labels, clusters, average_method="max")),
        "ami": float(adjusted_mutual_info_score(labels, clusters, average_method="arithmetic")),
        "ari": float(adjusted_rand_score(labels, clusters)),
    }


def find_clusters(points: Floats, num_clusters: int, *, starts: int, random_state: int) -> NDArray[np.int64]:
    """k-means: the cluster of each of `points` [n, D], int64 [n]. The best of `starts` k-means++ starts.

    Independent of the number of threads. scikit-learn subtracts the mean first, so float32 keeps its precision far
    from the origin. With fewer distinct points than clusters, some clusters stay empty.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    kmeans = KMeans(num_clusters, init="k-means++", n_init=starts, random_state=random_state)
    with warnings.catch_warnings(), threadpool_limits(limits=1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return kmeans.fit_predict(points).astype(np.int64)


def score_clusters(
    protocol: ClusterProtocol, index: ShardedIndex, config: EvaluationConfig, *, seed: int
) -> dict[str, Repeated]:
    """`kmeans/…` or `spectral/…` of an index's vectors against its labels, over `config.clustering_runs` runs.

    kmeans uses one k-means++ start per run, on the raw vectors. spectral computes its graph and eigenvectors once;
    its runs differ in their k-means, which uses the best of `config.kmeans_runs` starts.

    Raises RequestError for fewer than two classes, and for more clusters than images.
    """
    num_clusters = count_clusters(protocol, index.labels, config)
    if protocol == "kmeans":
        points: Floats = index.vectors(0, index.num_vectors)
        starts = 1
    else:
        with threadpool_limits(limits=1):
            from fsl_dist.metrics.spectral import neighbour_affinity, spectral_embedding

            affinity = neighbour_affinity(index, config.spectral_neighbors)
            points = spectral_embedding(affinity, num_clusters, seed=seed)
        starts = config.kmeans_runs

    runs = []
    for number in range(config.clustering_runs):
        random_state = int(generator(seed, "clustering", number).integers(2**32))
        clusters = find_clusters(points, num_clusters, starts=starts, random_state=random_state)
        runs.append(cluster_scores(clusters, index.labels))
    return {f"{protocol}/{name}": Repeated.from_values([scores[name] for scores in runs]) for name in runs[0]}


def count_clusters(protocol: ClusterProtocol, labels: NDArray[np.int64], config: EvaluationConfig) -> int:
    """Number of clusters for images with `labels` (int64 [n])."""
    num_classes, num_images = len(np.unique(labels)), len(labels)
    if num_classes < 2:
        raise RequestError(
            f"protocol={protocol} compares clusters with classes and needs two of them; the {num_images} images to "
            f"cluster have {num_classes} (pack(split=classes) or pack(split_column=…) divides by class)"
        )
    num_clusters = config.num_clusters or num_classes
    if num_clusters > num_images:
        raise RequestError(
            f"protocol={protocol} with evaluation.num_clusters={num_clusters} needs more images: there are "
            f"{num_images} images of {num_classes} classes (0 uses as many clusters as classes)"
        )
    return num_clusters
