"""Scores of retrieved images as evidence (CHAI, Table 1): AUC of the neighbours' vote, and the share of similar images.

A class's score is its share among the k nearest training images. An AUC needs queries of the class and of others: the
mean over classes skips those without, and logs it; an explicitly selected class without them is an error.
"""

import difflib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from fsl_dist.data.names.readings import read_text
from fsl_dist.errors import DataError, RequestError, TrainingError
from fsl_dist.metrics.class_scores import Floats
from fsl_dist.metrics.few_shot import name_of, positions_among
from index.search import ShardedIndex

log = logging.getLogger(__name__)

NO_GROUP = -1
"""Group of a sample without one."""

_NUM_NAMED = 5


def find_positive(name: str, class_names: Sequence[str]) -> int | None:
    """Label of `evaluation.positive_class`, None if it is empty; raises RequestError for an unknown class."""
    if not name:
        return None
    name = name if name in class_names else read_text(name)
    if name not in class_names:
        near = difflib.get_close_matches(name, class_names, n=1, cutoff=0)[0]
        raise RequestError(
            f"evaluation.positive_class={name} must be one of the data set's {len(class_names)} classes; did you "
            f"mean '{near}'?"
        )
    return list(class_names).index(name)


def auc(scores: Floats, is_positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: the share of (positive, negative) pairs in which the positive one has the higher score.

    scores: float [n]; is_positive: bool [n], with at least one of each kind. Pairs of equal scores count half. The
    cost is one sort. Raises TrainingError if a score is NaN.
    """
    if np.isnan(scores).any():
        raise TrainingError(
            f"{int(np.isnan(scores).sum())} of {len(scores)} scores are not numbers: the embedding is not finite (a "
            "lower learning rate, or an earlier checkpoint)"
        )
    return float(roc_auc_score(is_positive, scores))


def class_auc(
    scores: Floats,
    classes: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    positive: int | None,
    class_names: Sequence[str] = (),
) -> float:
    """AUC of the class `positive`, or the mean over classes of each against all others.

    scores: [n, C], column c is class classes[c] (int64 [C], ascending); a class without a column scores 0 everywhere.
    targets: int64 [n]. Raises RequestError if there is no pair of a positive and a negative query.
    """
    tested = np.unique(targets)
    if positive is not None and (positive not in tested or len(tested) == 1):
        raise RequestError(
            f"evaluation.positive_class: {name_of(positive, class_names)} has {int((targets == positive).sum())} "
            f"of the {len(targets)} queries; an AUC needs queries of it and of others (another positive_class, or "
            "another split)"
        )
    if len(tested) < 2:
        raise RequestError(
            f"an AUC needs queries of two classes; the {len(targets)} queries are of {len(tested)} "
            "(pack(split=stratified) divides every class)"
        )
    wanted = tested if positive is None else np.array([positive])
    columns = positions_among(wanted, classes)
    none = np.zeros(len(targets))
    areas = [
        auc(scores[:, column] if column >= 0 else none, targets == label)
        for label, column in zip(wanted.tolist(), columns.tolist(), strict=True)
    ]
    return float(np.mean(areas))


def vote_shares(
    neighbour_labels: NDArray[np.int64], k: int, classes: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Average vote: share of each class among the first `k` neighbours, float64 [n, C].

    neighbour_labels: int64 [n, K], K ≥ k, all of them among `classes` (int64 [C], ascending).
    """
    votes = np.zeros((len(neighbour_labels), len(classes)))
    rows = np.arange(len(votes))
    for place in range(k):
        votes[rows, positions_among(neighbour_labels[:, place], classes)] += 1
    return votes / k


def relevance(neighbour_groups: NDArray[np.int64], query_groups: NDArray[np.int64], k: int) -> float:
    """REL: the mean number of the first `k` neighbours in the query's own group, 0 … k.

    neighbour_groups: int64 [n, K]; query_groups: int64 [n]. Queries without a group (−1) are left out; one query at
    least has one.
    """
    has_group = query_groups != NO_GROUP
    is_alike = neighbour_groups[has_group, :k] == query_groups[has_group, None]
    return float(is_alike.sum(axis=1).mean())


def find_neighbours(
    gallery: ShardedIndex, queries: NDArray[np.float32], ks: Sequence[int]
) -> NDArray[np.int64]:
    """Sample ids of the max(ks) nearest training images of `queries` (float32 [n, D]): int64 [n, max(ks)].

    Any smaller k is a prefix. Ties are ordered by id. Raises RequestError if there are fewer images.
    """
    if max(ks) > gallery.num_vectors:
        fitting = [k for k in ks if k <= gallery.num_vectors]
        raise RequestError(
            f"evaluation.k={max(ks)} is more than the number of training images: {gallery.num_vectors} "
            f"(evaluation.k={fitting or [gallery.num_vectors]})"
        )
    return gallery.search(queries, max(ks)).ids


def evaluate_retrieval(
    neighbour_labels: NDArray[np.int64],
    targets: NDArray[np.int64],
    *,
    classes: NDArray[np.int64],
    ks: Sequence[int],
    positive: int | None,
    class_names: Sequence[str] = (),
) -> dict[str, float]:
    """`auc@k` for each of `ks`, by the average vote of the k nearest; arguments as in `vote_shares` and `class_auc`.

    Warns of classes that no query has, since they are not in the mean. Raises DataError without a query.
    """
    if len(targets) == 0:
        raise DataError("there is no query to score: the query split is empty (evaluate another split)")
    untested = np.setdiff1d(classes, targets)
    if positive is None and len(untested):
        named = ", ".join(name_of(label, class_names) for label in untested[:_NUM_NAMED].tolist())
        more = ", …" if len(untested) > _NUM_NAMED else ""
        log.warning(
            "%d classes have no query and are not in the mean of auc@k: %s%s", len(untested), named, more
        )
    return {
        f"auc@{k}": class_auc(
            vote_shares(neighbour_labels, k, classes),
            classes,
            targets,
            positive=positive,
            class_names=class_names,
        )
        for k in ks
    }
