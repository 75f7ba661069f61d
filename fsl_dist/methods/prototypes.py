"""Prototypes of classes: k-means centres of their embeddings, from one to M for each class."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fsl_dist.errors import TrainingError
from fsl_dist.methods.kmeans import cluster_means
from fsl_dist.seeding import generator

Floats = NDArray[np.floating]

# Number of distances per block when samples are scored: 2**18 float64 are 2 MB, which fit in the cache.
_DISTANCES_AT_A_TIME = 2**18


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """Prototypes of C classes, at most M each; a class with fewer fills up with zeros that `mask` leaves out."""

    means: NDArray[np.float32]
    """float32 [C, M, D]"""
    mask: NDArray[np.bool_]
    """bool [C, M]: which of `means` are prototypes; at least one per class"""
    labels: NDArray[np.int64]
    """int64 [C]: label of each class"""


def fit_class_prototypes(
    embeddings: Floats, num_clusters: int, *, seed: int, epoch: int, label: int, starts: int = 10
) -> NDArray[np.float32]:
    """Compute the cluster means of one class: float32 [m, D], 1 ≤ m ≤ min(num_clusters, n).

    k-means++ with `starts` starts, of which the best is kept; seeded only by (seed, epoch, label), and independent of
    the number of threads. One cluster gives the mean; as many clusters as images give the images. Empty clusters
    (caused by duplicates) are dropped. `embeddings`: [n, D], n ≥ 1. Raises TrainingError for non-finite embeddings.
    """
    return fit_each_class([(label, embeddings)], num_clusters, seed=seed, epoch=epoch, starts=starts)[0]


def fit_each_class(
    classes: Iterable[tuple[int, Floats]], num_clusters: int, *, seed: int, epoch: int, starts: int = 10
) -> list[NDArray[np.float32]]:
    """`fit_class_prototypes` of each (label, embeddings), side by side on the threads that torch may use."""

    def fit(of_class: tuple[int, Floats]) -> NDArray[np.float32]:
        label, embeddings = of_class
        return _fit_class(embeddings, num_clusters, seed=seed, epoch=epoch, label=label, starts=starts)

    # One BLAS thread per class: the division of a product among threads changes its last bits.
    with threadpool_limits(limits=1), ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(fit, classes))


def fit_prototypes(
    embeddings: Floats,
    labels: NDArray[np.int64],
    num_clusters: int,
    *,
    seed: int,
    epoch: int,
    starts: int = 10,
) -> Prototypes:
    """Prototypes of every class among `labels` (int64 [n], any order), classes ascending; `fit_class_prototypes`."""
    order = np.argsort(labels, kind="stable")
    classes, firsts = np.unique(labels[order], return_index=True)
    rows_of_class = np.split(order, firsts[1:])
    means = fit_each_class(
        ((label, embeddings[rows]) for label, rows in zip(classes.tolist(), rows_of_class, strict=False)),
        num_clusters,
        seed=seed,
        epoch=epoch,
        starts=starts,
    )
    return stack_prototypes(means, classes)


def _fit_class(
    embeddings: Floats, num_clusters: int, *, seed: int, epoch: int, label: int, starts: int
) -> NDArray[np.float32]:
    if not np.isfinite(embeddings).all():
        raise TrainingError(
            f"embeddings of class {label} contain values that are not finite, so it has no prototypes "
            "(a lower learning rate, or an earlier checkpoint)"
        )
    points = embeddings.astype(np.float64)
    if num_clusters == 1:
        return points.mean(axis=0, keepdims=True).astype(np.float32)
    if num_clusters >= len(points):
        return np.unique(points, axis=0).astype(np.float32)
    rng = generator(seed, "kmeans", epoch, label)
    return cluster_means(points, num_clusters, starts, rng).astype(np.float32)


def stack_prototypes(means: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> Prototypes:
    """`Prototypes` of classes with `means[c]` float32 [m_c, D] and label `labels[c]`, one class or more."""
    counts = np.array([len(of_class) for of_class in means])
    mask = np.arange(counts.max()) < counts[:, None]
    stacked = np.zeros((*mask.shape, means[0].shape[1]), dtype=np.float32)
    stacked[mask] = np.concatenate(means)
    return Prototypes(stacked, mask, np.asarray(labels, dtype=np.int64))


def join(first: Prototypes, second: Prototypes) -> Prototypes:
    """The classes of `first`, then those of `second`, in one label space."""
    means = [
        of_class[is_used]
        for part in (first, second)
        for of_class, is_used in zip(part.means, part.mask, strict=True)
    ]
    return stack_prototypes(means, np.concatenate([first.labels, second.labels]))
