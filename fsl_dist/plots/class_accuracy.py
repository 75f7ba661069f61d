"""The predictions of a run for each test image, by a protocol, and the accuracy of each class (PCN Figs. 6, 9)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from fsl_dist.metrics.class_scores import class_shares
from fsl_dist.metrics.knn import vote
from fsl_dist.plots.run_draws import EmbeddedRun

PROTOCOLS = ("knn", "prototypes", "fine_tune")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """Test images and their predicted classes."""

    ids: NDArray[np.int64]
    """int64 [n]: sample ids; base classes' images first"""
    predicted: NDArray[np.int64]
    """int64 [n]: label"""


@dataclass(frozen=True, slots=True, eq=False)
class ClassAccuracies:
    """Accuracy of each class that was tested."""

    protocol: str
    """`prototypes`, `fine_tune`, or `knn@K_p`"""
    labels: NDArray[np.int64]
    """int64 [C], ascending"""
    accuracies: NDArray[np.float64]
    """float64 [C]: fractions"""


def protocol_of(run: EmbeddedRun, protocol: str = "") -> str:
    """`protocol`, or if it is empty the run's default: prototypes for pcn, the vote of neighbours (knn) for others.

    Raises RequestError if it is not one of `PROTOCOLS`.
    """
    if protocol not in ("", *PROTOCOLS):
        raise RequestError(f"protocol {protocol} must be one of {', '.join(PROTOCOLS)}")
    return protocol or ("prototypes" if run.config.method.traits.prototypes else "knn")


def answers_of(run: EmbeddedRun, protocol: str, draw: int) -> Answers:
    """Predict the test images of a draw. knn votes with the first `evaluation.k_p`, on base classes only.

    fine_tune trains for the draw unless `evaluate` with that protocol has done so. Raises RequestError if there is
    nothing to test, or if the run's method does not support the protocol.
    """
    if protocol == "prototypes":
        drawn = run.draw(draw)
        return Answers(drawn.tested.ids, drawn.predicted)
    if protocol == "fine_tune":
        tuned = run.tuned_draw(draw)
        return Answers(tuned.ids, tuned.predicted)
    query, gallery, k_p = run.query, run.gallery, run.config.evaluation.k_p[0]
    if not len(query.ids):
        raise RequestError(
            f"data.dataset={run.config.data.dataset} has no test and no val split to query {run.run} with"
        )
    answer = gallery.search(query.vectors, k_p)
    distances = answer.exact_distances if gallery.metric == "l2" else -answer.exact_distances
    return Answers(query.ids, vote(gallery.labels_of(answer.ids), distances, k_p))


def measure_class_accuracies(run: EmbeddedRun, protocol: str = "") -> ClassAccuracies:
    """Measure accuracies by `protocol` (empty: the run's default), over all draws if it has draws.

    Their mean over classes is `evaluate`'s `mca/base_novel` (`mca/base` without novel classes), or `knn/mcr@K_p` with
    the first `evaluation.k_p`. Errors as in `answers_of`.
    """
    protocol = protocol_of(run, protocol)
    num_draws = 1 if protocol == "knn" else run.num_draws
    # Every draw tests the same number of images of a class, so the mean of means is the mean.
    of_draws = []
    for number in range(num_draws):
        found = answers_of(run, protocol, number)
        labels = run.catalogue.labels[found.ids]
        of_draws.append(class_shares(found.predicted == labels, labels))
    name = f"knn@{run.config.evaluation.k_p[0]}" if protocol == "knn" else protocol
    return ClassAccuracies(name, of_draws[0][0], np.mean([shares for _, shares in of_draws], axis=0))
