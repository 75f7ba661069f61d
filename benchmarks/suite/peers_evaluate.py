"""Scoring as one would write it with scikit-learn and with torch alone; ties go as the libraries let them."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from fsl_dist.methods.prototypes import Prototypes

_QUERIES_AT_A_TIME = 512

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


def knn_by_classifiers(
    gallery: Vectors, labels: Labels, queries: Vectors, targets: Labels, k_ps: Sequence[int]
) -> dict[str, float]:
    """scikit-learn's KNeighborsClassifier, fitted and asked once per K_p."""
    scores: dict[str, float] = {}
    for k_p in k_ps:
        classifier = KNeighborsClassifier(k_p, algorithm="brute", n_jobs=-1).fit(gallery, labels)
        scores |= _knn_scores(classifier.predict(queries), targets, k_p)
    return scores


def knn_by_shared_graph(
    gallery: Vectors, labels: Labels, queries: Vectors, targets: Labels, k_ps: Sequence[int]
) -> dict[str, float]:
    """scikit-learn's NearestNeighbors asked once, at the largest K_p, and a vote of each prefix."""
    found = NearestNeighbors(n_neighbors=max(k_ps), algorithm="brute", n_jobs=-1).fit(gallery)
    neighbours = labels[found.kneighbors(queries, return_distance=False)]
    scores: dict[str, float] = {}
    rows, num_classes = np.arange(len(queries)), int(labels.max()) + 1
    for k_p in k_ps:
        votes = np.zeros((len(queries), num_classes), dtype=np.int32)
        for column in range(k_p):
            votes[rows, neighbours[:, column]] += 1
        scores |= _knn_scores(votes.argmax(axis=1), targets, k_p)
    return scores


def knn_by_torch(
    gallery: Vectors, labels: Labels, queries: Vectors, targets: Labels, k_ps: Sequence[int]
) -> dict[str, float]:
    """torch: distances to all of the gallery in chunks of queries, the least of them by topk, one vote a K_p."""
    vectors, own = torch.from_numpy(gallery), torch.from_numpy(labels)
    num_classes = int(labels.max()) + 1
    parts = [
        own[torch.cdist(chunk, vectors).topk(max(k_ps), largest=False).indices]
        for chunk in torch.from_numpy(queries).split(_QUERIES_AT_A_TIME)
    ]
    neighbours = torch.cat(parts)
    scores: dict[str, float] = {}
    for k_p in k_ps:
        votes = torch.zeros(len(queries), num_classes)
        votes.scatter_add_(1, neighbours[:, :k_p], torch.ones(len(queries), k_p))
        scores |= _knn_scores(votes.argmax(dim=1).numpy(), targets, k_p)
    return scores


def _knn_scores(predictions: Labels, targets: Labels, k_p: int) -> dict[str, float]:
    is_right = predictions == targets
    _, positions = np.unique(targets, return_inverse=True)
    recalls = np.bincount(positions, weights=is_right) / np.bincount(positions)
    return {f"knn/acc@{k_p}": float(is_right.mean()), f"knn/mcr@{k_p}": float(recalls.mean())}


def prototypes_by_torch(
    test: tuple[Vectors, Labels],
    novel: tuple[Vectors, Labels],
    tests: Sequence[Labels],
    base: Prototypes,
    novels: Sequence[Prototypes],
    temperatures: Mapping[str, float],
) -> dict[str, float]:
    """torch, float32, a loop over draws: mean MCA over base and novel; keys `mca/base_novel` and a suffix."""
    found: dict[str, list[float]] = {}
    for rows, of_draw in zip(tests, novels, strict=True):
        images = torch.from_numpy(np.concatenate([test[0], novel[0][rows]]))
        targets = np.concatenate([test[1], novel[1][rows]])
        distances, masks = [], []
        for part in (base, of_draw):
            flat = torch.from_numpy(part.means).flatten(0, 1)
            distances.append(torch.cdist(images, flat).square().view(len(images), *part.mask.shape))
            masks.append(torch.from_numpy(part.mask))
        labels = np.concatenate([base.labels, of_draw.labels])
        for suffix, temperature in temperatures.items():
            scores = []
            for of_part, mask in zip(distances, masks, strict=True):
                logits = (-of_part / temperature).masked_fill(~mask, -torch.inf)
                scores.append(-(torch.softmax(logits, dim=2) * of_part).sum(dim=2))
            answers = labels[torch.cat(scores, dim=1).argmax(dim=1).numpy()]
            _, positions = np.unique(targets, return_inverse=True)
            shares = np.bincount(positions, weights=answers == targets) / np.bincount(positions)
            found.setdefault(f"mca/base_novel{suffix}", []).append(float(shares.mean()))
    return {name: float(np.mean(values)) for name, values in found.items()}
