"""The nearest-neighbour classifier: a vote of the first K_p neighbours, and its three scores."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import DataError, RequestError, TrainingError
from fsl_dist.metrics.class_scores import Floats
from index.search import ShardedIndex

NO_LABEL = -1
"""Value for a missing neighbour, and for the prediction of a query without neighbours."""

# The vote compares neighbours pairwise; 2**22 pairs limit it to about 100 MB for any number of queries.
_PAIRS_AT_A_TIME = 2**22


def vote(neighbour_labels: NDArray[np.int64], distances: Floats, k_p: int) -> NDArray[np.int64]:
    """Majority label of each query's `k_p` nearest neighbours: int64 [n]; see `vote_each`."""
    return vote_each(neighbour_labels, distances, (k_p,))[0]


def vote_each(
    neighbour_labels: NDArray[np.int64], distances: Floats, k_ps: Sequence[int]
) -> NDArray[np.int64]:
    """Majority vote of each query's K_p nearest neighbours for each of `k_ps`, in one pass: int64 [len(k_ps), n].

    Equal votes are decided by the nearest member, equal distances by label. A query without neighbours gets −1.

    Args:
        neighbour_labels: int64 [n, K], K ≥ every K_p, nearest first, −1 for a missing neighbour.
        distances: [n, K], smaller is nearer (negate inner products).
        k_ps: numbers of neighbours.

    Raises:
        RequestError: there are fewer than K_p columns.
        TrainingError: a distance is NaN.
    """
    num, num_neighbours = neighbour_labels.shape
    for k_p in k_ps:
        if not 1 <= k_p <= num_neighbours:
            raise RequestError(
                f"evaluation.k_p={k_p} needs that many neighbours a query; the search returned {num_neighbours} "
                "(search with a larger k, or lower evaluation.k_p)"
            )
    columns = max(k_ps)
    rows = max(1, _PAIRS_AT_A_TIME // columns**2)
    winners = np.empty((len(k_ps), num), dtype=np.int64)
    for start in range(0, num, rows):
        chunk = slice(start, start + rows)
        winners[:, chunk] = _vote_of(neighbour_labels[chunk, :columns], distances[chunk, :columns], k_ps)
    return winners


def _vote_of(labels: NDArray[np.int64], distances: Floats, k_ps: Sequence[int]) -> NDArray[np.int64]:
    """`vote_each` of all of `labels` and `distances` [n, K], neighbour by neighbour."""
    is_there = labels != NO_LABEL
    if np.isnan(distances[is_there]).any():
        raise TrainingError(
            "a neighbour's distance is not a number: an embedding is not finite "
            "(a lower learning rate, or an earlier checkpoint)"
        )
    # int64 [n, K]: a class is counted at the place of its first neighbour.
    places = (labels[:, :, None] == labels[:, None, :]).argmax(axis=2)
    rows = np.arange(len(labels))
    votes = np.zeros(labels.shape, dtype=np.int64)
    nearest = np.full(labels.shape, np.inf, dtype=distances.dtype)
    winners = np.empty((len(k_ps), len(labels)), dtype=np.int64)
    for column in range(labels.shape[1]):
        place = places[:, column]
        votes[rows, place] += is_there[:, column]
        closer = np.where(is_there[:, column], distances[:, column], np.inf)
        nearest[rows, place] = np.minimum(nearest[rows, place], closer)
        for which in np.flatnonzero(np.equal(k_ps, column + 1)):
            seen = slice(column + 1)
            is_best = votes[:, seen] == votes[:, seen].max(axis=1, keepdims=True)
            leading = np.where(is_best, nearest[:, seen], np.inf)
            is_best &= leading == leading.min(axis=1, keepdims=True)
            winner = np.where(is_best, labels[:, seen], np.iinfo(np.int64).max).min(axis=1)
            winners[which] = np.where(is_there[:, seen].any(axis=1), winner, NO_LABEL)
    return winners


def knn_metrics(
    predictions: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    class_labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
) -> dict[str, float]:
    """Compute `acc`, `mcr` and `rs` of `predictions` (int64 [n]) against `targets` (int64 [n]), as fractions.

    `acc` is the share of correct predictions, `mcr` the mean over the classes among the targets of each class's
    share, `rs` the same mean over only those classes that have the fewest training images. `class_labels` and
    `class_counts` (int64 [C]) are each class's number of training images; a class without any is ignored in `rs`.
    Raises DataError if there is no target, or none of a class with training images.
    """
    if len(targets) == 0:
        raise DataError("there is no test sample to score: the query split is empty (evaluate another split)")
    tested, positions = np.unique(targets, return_inverse=True)
    recalls = np.bincount(positions, weights=predictions == targets) / np.bincount(positions)
    is_trained = class_counts > 0
    training_counts = dict(
        zip(class_labels[is_trained].tolist(), class_counts[is_trained].tolist(), strict=True)
    )
    counts = np.array([training_counts.get(label, np.inf) for label in tested.tolist()])
    if np.isinf(counts).all():
        raise DataError(
            f"none of the {len(tested)} test classes has a training image: "
            "gallery and queries are of different classes (pack(split=stratified) divides every class; "
            "evaluate(protocol=kmeans) clusters instead)"
        )
    return {
        "acc": float(np.mean(predictions == targets)),
        "mcr": float(recalls.mean()),
        "rs": float(recalls[counts == counts.min()].mean()),
    }


def score_knn(
    gallery: ShardedIndex, queries: NDArray[np.float32], query_labels: NDArray[np.int64], k_ps: Sequence[int]
) -> dict[str, float]:
    """Score `queries` (float32 [n, D], labels int64 [n]) by their nearest vectors in `gallery`.

    One search at the largest K_p: every smaller one is a prefix of its result. Names as in `evaluate_knn`.
    """
    answer = gallery.search(queries, max(k_ps))
    labels, counts = np.unique(gallery.labels, return_counts=True)
    return evaluate_knn(
        gallery.labels_of(answer.ids),
        answer.exact_distances if gallery.metric == "l2" else -answer.exact_distances,
        query_labels,
        class_labels=labels,
        class_counts=counts,
        k_ps=k_ps,
    )


def count_right_inside(index: ShardedIndex, rows: slice, k_ps: Sequence[int]) -> NDArray[np.int64]:
    """Number of vectors at the positions `rows` of `index` that get their own class by a vote of the others: int64
    [len(k_ps)].

    Each is excluded from its own neighbours by its id. Costs a search of these rows against the whole index.
    """
    vectors, ids = index.vectors(rows.start, rows.stop, as_given=True), index.ids[rows]
    answer = index.search(vectors, max(k_ps), query_ids=ids)
    distances = answer.exact_distances if index.metric == "l2" else -answer.exact_distances
    neighbours = index.labels_of(answer.ids)
    return (vote_each(neighbours, distances, k_ps) == index.labels[rows]).sum(axis=1)


def evaluate_knn(
    neighbour_labels: NDArray[np.int64],
    distances: Floats,
    targets: NDArray[np.int64],
    *,
    class_labels: NDArray[np.int64],
    class_counts: NDArray[np.int64],
    k_ps: Sequence[int],
) -> dict[str, float]:
    """`knn/acc@K_p`, `knn/mcr@K_p` and `knn/rs@K_p` for each of `k_ps`;
    arguments as in `vote_each` and `knn_metrics`."""
    scores: dict[str, float] = {}
    for k_p, predictions in zip(k_ps, vote_each(neighbour_labels, distances, k_ps), strict=True):
        metrics = knn_metrics(predictions, targets, class_labels=class_labels, class_counts=class_counts)
        scores |= {f"knn/{name}@{k_p}": value for name, value in metrics.items()}
    return scores
