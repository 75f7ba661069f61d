"""Few-shot classification by nearest neighbours (PCN's FT-1NN and FT-3NN): the gallery is base training images + support.

The vote alone names one class. To rank all of them: by votes among the K_p nearest, equal votes by the nearest member,
equal distances there by the smaller label; classes without a vote follow in the order of their nearest member. So the
first class is the vote's, and recall@k needs no other neighbours than mca.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError, TrainingError
from fsl_dist.metrics.class_scores import NEVER, Floats, Repeated
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.few_shot import (
    check_novel,
    draw_scores,
    draws_of,
    over_draws,
    positions_among,
    warn_of_untrained,
)
from fsl_dist.metrics.knn import NO_LABEL
from index.config import Metric

# Gallery vectors, and distances of one block of them, in memory at a time: 2**22 float64 are 32 MB.
_GALLERY_AT_A_TIME = 2**13
_DISTANCES_AT_A_TIME = 2**22


@dataclass(frozen=True, slots=True)
class Nearest:
    """What is near each of n queries: the K nearest gallery vectors, and the nearest of every class."""

    labels: NDArray[np.int64]
    """int64 [n, K]: labels of the nearest vectors, nearest first; −1 where there are fewer"""
    distances: NDArray[np.float64]
    """float64 [n, K]: their distances; inf where there are fewer"""
    classes: NDArray[np.int64]
    """int64 [C]: the gallery's labels, ascending"""
    of_class: NDArray[np.float64]
    """float64 [n, C]: distance of each class's nearest vector"""

    def rows(self, rows: NDArray[np.int64]) -> "Nearest":
        """The same of some of the queries."""
        return Nearest(self.labels[rows], self.distances[rows], self.classes, self.of_class[rows])


def find_nearest(
    queries: Floats, gallery: Floats, gallery_labels: NDArray[np.int64], k: int, metric: Metric = "l2"
) -> Nearest:
    """Compare `queries` [n, D] with all of `gallery` [N, D] (labels int64 [N], in any order, N ≥ 1), in float64.

    Distances are squared (l2) or negated inner products. Equal distances: the smaller label, then the earlier row. One
    pass over the gallery, n·N·D multiplications. Raises TrainingError for embeddings that are not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise TrainingError(
            "an embedding is not finite, so it has no neighbours (a lower learning rate, or an earlier checkpoint)"
        )
    order = np.argsort(gallery_labels, kind="stable")
    labels = gallery_labels[order]
    classes = np.unique(labels)
    # Far from the origin the product of raw vectors cancels; inner products must stay what they are.
    centre = gallery.mean(axis=0, dtype=np.float64) if metric == "l2" else 0.0
    nearest_labels = np.full((len(queries), k), NO_LABEL)
    distances, of_class = np.full((len(queries), k), np.inf), np.full((len(queries), len(classes)), np.inf)
    for start in range(0, len(labels), _GALLERY_AT_A_TIME):
        block = slice(start, start + _GALLERY_AT_A_TIME)
        vectors = gallery[order[block]].astype(np.float64) - centre
        of_block, firsts = np.unique(labels[block], return_index=True)
        columns = np.searchsorted(classes, of_block)
        rows_at_a_time = max(1, _DISTANCES_AT_A_TIME // len(vectors))
        for first in range(0, len(queries), rows_at_a_time):
            rows = slice(first, first + rows_at_a_time)
            found = _distances(queries[rows].astype(np.float64) - centre, vectors, metric)
            of_class[rows, columns] = np.minimum(
                of_class[rows, columns], np.minimum.reduceat(found, firsts, axis=1)
            )
            block_labels, found = _first(np.broadcast_to(labels[block], found.shape), found, k)
            nearest_labels[rows], distances[rows] = _first(
                np.concatenate([nearest_labels[rows], block_labels], axis=1),
                np.concatenate([distances[rows], found], axis=1),
                k,
            )
    return Nearest(nearest_labels, distances, classes, of_class)


def _distances(x: NDArray[np.float64], y: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """float64 [n, m] of `x` [n, D] and `y` [m, D]."""
    if metric == "cosine":
        x, y = (points / np.linalg.norm(points, axis=1, keepdims=True) for points in (x, y))
    products = x @ y.T
    if metric != "l2":
        return -products
    return np.maximum(np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1) - 2.0 * products, 0.0)


def _first(
    labels: NDArray[np.int64], distances: NDArray[np.float64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k columns of least distance in each row, nearest first, −1 and inf where there are fewer; ties: the first column."""
    # k passes for the smallest: K_p is small, and a sort of whole rows would take ten times as long.
    left, rows = distances.copy(), np.arange(len(distances))
    found_labels, found = np.empty((len(rows), k), dtype=np.int64), np.empty((len(rows), k))
    for place in range(k):
        columns = left.argmin(axis=1)
        found_labels[:, place], found[:, place] = labels[rows, columns], left[rows, columns]
        left[rows, columns] = np.inf
    return np.where(np.isinf(found), NO_LABEL, found_labels), found


def join_nearest(first: Nearest, second: Nearest) -> Nearest:
    """What is near the same queries in both galleries together, which have no class in common."""
    labels, distances = _first(
        np.concatenate([first.labels, second.labels], axis=1),
        np.concatenate([first.distances, second.distances], axis=1),
        first.labels.shape[1],
    )
    classes = np.concatenate([first.classes, second.classes])
    order = np.argsort(classes)
    of_class = np.concatenate([first.of_class, second.of_class], axis=1)
    return Nearest(labels, distances, classes[order], of_class[:, order])


def rank_classes(nearest: Nearest, k_p: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All classes from best to worst (int64 [n, C], positions in `nearest.classes`), and votes (int64 [n, C]) in that order.

    As this module's head says; `nearest` must hold `k_p` neighbours or more.
    """
    votes = np.zeros(nearest.of_class.shape, dtype=np.int64)
    rows = np.arange(len(votes))
    for place in range(k_p):
        neighbour = nearest.labels[:, place]
        is_there = neighbour != NO_LABEL
        votes[rows[is_there], positions_among(neighbour[is_there], nearest.classes)] += 1
    by_label = np.broadcast_to(np.arange(len(nearest.classes)), votes.shape)
    order = np.lexsort((by_label, nearest.of_class, -votes))
    return order, np.take_along_axis(votes, order, axis=1)


def evaluate_few_shot_knn(
    train_embeddings: Floats,
    train_labels: NDArray[np.int64],
    test_embeddings: Floats,
    test_labels: NDArray[np.int64],
    novel_embeddings: Floats,
    novel_labels: NDArray[np.int64],
    *,
    config: EvaluationConfig,
    seed: int,
    metric: Metric = "l2",
    class_names: Sequence[str] = (),
) -> dict[str, float | Repeated]:
    """Scores of base and novel classes in one label space by a vote of the K_p nearest, for each `config.k_p`.

    Arguments, draws, groups and names as in `evaluate_prototypes`, with `;k_p=K` behind each name.

    Raises RequestError where there are no training images, or the novel classes cannot serve.
    """
    if len(train_labels) == 0:
        raise RequestError("there are no training images to be neighbours of (evaluate needs split train)")
    check_novel(novel_labels, np.unique(train_labels), config, class_names)
    warn_of_untrained(test_labels, train_labels, class_names)
    draws = list(draws_of(novel_labels, config, seed=seed))
    tested, rows_of_draw = np.unique([draw.test for draw in draws], return_inverse=True)
    images = np.concatenate([test_embeddings, novel_embeddings[tested]])
    in_base = find_nearest(images, train_embeddings, train_labels, max(config.k_p), metric)
    base_rows = np.arange(len(test_labels))
    of_draws: list[dict[str, float]] = []
    for draw, rows in zip(draws, rows_of_draw, strict=True):
        of_draw = np.concatenate([base_rows, len(test_labels) + rows])
        support, support_labels = novel_embeddings[draw.support], novel_labels[draw.support]
        in_support = find_nearest(images[of_draw], support, support_labels, max(config.k_p), metric)
        nearest = join_nearest(in_base.rows(of_draw), in_support)
        labels = np.concatenate([test_labels, novel_labels[draw.test]])
        targets = positions_among(labels, nearest.classes)
        found: dict[str, float] = {}
        for k_p in config.k_p:
            order, _ = rank_classes(nearest, k_p)
            ranks = np.where(targets >= 0, (order == targets[:, None]).argmax(axis=1), NEVER)
            found |= draw_scores(ranks, labels, len(test_labels), f";k_p={k_p}")
        of_draws.append(found)
    return over_draws(of_draws)
