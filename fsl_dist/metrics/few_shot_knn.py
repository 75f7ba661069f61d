"""Few-shot classification by nearest neighbours (PCN's FT-1NN and FT-3NN):
the gallery is base training images + support.

The vote selects only one class. All classes are ranked by votes among the K_p nearest; equal votes by the nearest
member; equal distances by label. Classes without a vote follow in the order of their nearest member. So the first
class is that of the vote, and recall@k needs the same neighbours as mca.
"""

from collections.abc import Iterator, Sequence
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
from index.exact.costs import Vectors, query_points
from index.exact.rounding import FLOAT64, product_error, squared_distance_error
from index.vectors import check_directions

# Number of gallery vectors, and of distances in a block of them: 2**20 float64 are 8 MiB.
_GALLERY_AT_A_TIME = 2**13
_DISTANCES_AT_A_TIME = 2**20


@dataclass(frozen=True, slots=True)
class Nearest:
    """The neighbours of n queries: the K nearest gallery vectors, and the nearest one of every class."""

    labels: NDArray[np.int64]
    """int64 [n, K]: labels of the nearest vectors, nearest first; −1 if there are fewer"""
    distances: NDArray[np.float64]
    """float64 [n, K]: their distances, as costs of `index.exact.costs`; inf if there are fewer"""
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

    Distances are the costs of `index.exact.costs`, as in every search. Equal distances: the smaller label, then the
    earlier row. n·N·D multiplications propose, and what their rounding may hide is compared pair by pair. Raises
    TrainingError for embeddings that are not finite, RequestError for a vector of zeros under cosine.
    """
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise TrainingError(
            "an embedding is not finite, so it has no neighbours (a lower learning rate, or an earlier checkpoint)"
        )
    if metric == "cosine":
        check_directions(queries, "queries")
        check_directions(gallery, "gallery")
    order = np.argsort(gallery_labels, kind="stable")
    labels = gallery_labels[order]
    classes = np.unique(labels)
    vectors = Vectors(gallery[order], metric)
    # Far from the origin the product of raw vectors cancels; inner products must not be centred.
    centre = gallery.mean(axis=0, dtype=np.float64) if metric == "l2" else np.zeros(gallery.shape[1])
    nearest = np.full((len(queries), k), -1)
    distances, of_class = np.full((len(queries), k), np.inf), np.full((len(queries), len(classes)), np.inf)
    for start, stop in _blocks(len(labels), _GALLERY_AT_A_TIME):
        others = vectors.points(np.arange(start, stop)) - centre
        lengths = np.sqrt(np.square(others).sum(axis=1))
        for first, last in _blocks(len(queries), max(1, _DISTANCES_AT_A_TIME // len(others))):
            points = query_points(queries[first:last], metric) - centre
            who, near = _candidates(points, others, lengths, labels[start:stop], k, metric)
            who, near = first + who, start + near
            costs = vectors.costs(queries[who], near[:, None])[:, 0]
            np.minimum.at(of_class, (who, np.searchsorted(classes, labels[near])), costs)
            is_near = costs <= distances[who, -1]
            rows = np.arange(first, last)
            who = np.concatenate([np.repeat(rows, k), who[is_near]])
            near = np.concatenate([nearest[rows].ravel(), near[is_near]])
            costs = np.concatenate([distances[rows].ravel(), costs[is_near]])
            # The gallery's order is by label, then by row.
            order_of_pairs = np.lexsort((near, costs, who))
            starts = np.searchsorted(who[order_of_pairs], rows)
            best = order_of_pairs[starts[:, None] + np.arange(k)]
            nearest[rows], distances[rows] = near[best], costs[best]
    nearest_labels = np.where(nearest >= 0, labels[nearest], NO_LABEL)
    return Nearest(nearest_labels, distances, classes, of_class)


def _blocks(num: int, size: int) -> Iterator[tuple[int, int]]:
    """[0, num) cut into blocks [start, stop) of `size`."""
    for start in range(0, num, size):
        yield start, min(start + size, num)


def _candidates(
    x: NDArray[np.float64],
    y: NDArray[np.float64],
    y_lengths: NDArray[np.float64],
    labels: NDArray[np.int64],
    k: int,
    metric: Metric,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (row of `x` [n, D], row of `y` [m, D]) that may be the nearest of a class, or among a row's k nearest:
    int64 [p] each.

    `y_lengths` [m] and `labels` int64 [m], ascending, are of `y`. Ordered by the row of `x`. No pair that is left out
    can be as near, up to float64's rounding.
    """
    lengths = np.sqrt(np.square(x).sum(axis=1))
    # A query's own length is the same in all of its distances, and is left out.
    distances = ((-2.0 if metric == "l2" else -1.0) * x) @ y.T
    if metric == "l2":
        distances += np.square(y_lengths)
        error = squared_distance_error(x.shape[1], lengths, y_lengths.max(), FLOAT64)
    else:
        error = product_error(x.shape[1], lengths, y_lengths.max(), FLOAT64)
    _, firsts = np.unique(labels, return_index=True)
    limits = np.minimum.reduceat(distances, firsts, axis=1)
    limits = np.repeat(limits, np.diff([*firsts, len(labels)]), axis=1)
    place = min(k, len(labels)) - 1
    np.maximum(limits, np.partition(distances, place, axis=1)[:, place, None], out=limits)
    # Both of two that are compared are off by the error at most, and so are the costs that decide and the lengths of
    # a cosine.
    limits += 8 * error[:, None]
    who, near = np.nonzero(distances <= limits)
    return who, near


def join_nearest(first: Nearest, second: Nearest) -> Nearest:
    """The neighbours of the same queries in both galleries together, which share no class;
    ties as in `find_nearest`."""
    labels = np.concatenate([first.labels, second.labels], axis=1)
    distances = np.concatenate([first.distances, second.distances], axis=1)
    nearest = np.lexsort((labels, distances), axis=1)[:, : first.labels.shape[1]]
    labels, distances = (np.take_along_axis(array, nearest, axis=1) for array in (labels, distances))
    classes = np.concatenate([first.classes, second.classes])
    order = np.argsort(classes)
    of_class = np.concatenate([first.of_class, second.of_class], axis=1)
    return Nearest(labels, distances, classes[order], of_class[:, order])


def rank_classes(nearest: Nearest, k_p: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All classes from best to worst (int64 [n, C], positions in `nearest.classes`), and votes (int64 [n,
    C]) in that order.

    The order is described in this module's docstring; `nearest` must have at least `k_p` neighbours.
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
    """Score base and novel classes in one label space by a vote of the K_p nearest, for each `config.k_p`.

    Arguments, draws, groups and names as in `evaluate_prototypes`, with `;k_p=K` appended to each name.

    Raises RequestError if there are no training images, or if the novel classes are not suitable.
    """
    if len(train_labels) == 0:
        raise RequestError("there are no training images to use as neighbours (evaluate needs split train)")
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
