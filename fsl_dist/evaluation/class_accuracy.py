"""How often a run is right about each class, by its own protocol (PCN Fig. 9)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from fsl_dist.evaluation.knn import vote
from fsl_dist.evaluation.metrics import class_shares
from fsl_dist.evaluation.run_draws import EmbeddedRun
from fsl_dist.methods.config import PCNConfig


@dataclass(frozen=True, slots=True, eq=False)
class ClassAccuracies:
    """Accuracy of each class that was tested."""

    protocol: str
    """`prototypes`, or `knn@K_p`"""
    labels: NDArray[np.int64]
    """int64 [C], ascending"""
    accuracies: NDArray[np.float64]
    """float64 [C]: fractions"""


def measure_class_accuracies(run: EmbeddedRun) -> ClassAccuracies:
    """Accuracies by prototypes for a run of pcn, over its draws; by the vote of the nearest training images for others.

    Averaged over classes they are `evaluate`'s `mca/base_novel` (`mca/base` without novel classes), or `knn/mcr@K_p` at
    the first `evaluation.k_p`. kNN scores base classes alone. RequestError where there is nothing to test.
    """
    if isinstance(run.config.method, PCNConfig):
        # Every draw tests the same number of images of a class, so the mean of means is the mean.
        of_draws = []
        for number in range(run.num_draws):
            draw = run.draw(number)
            of_draws.append(class_shares(draw.predicted == draw.tested.labels, draw.tested.labels))
        labels = of_draws[0][0]
        return ClassAccuracies("prototypes", labels, np.mean([shares for _, shares in of_draws], axis=0))
    query, gallery, k_p = run.query, run.gallery, run.config.evaluation.k_p[0]
    if not len(query.ids):
        raise RequestError(
            f"data.dataset={run.config.data.dataset} has no test and no val split to query {run.run} with"
        )
    answer = gallery.search(query.vectors, k_p)
    distances = answer.distances if gallery.metric == "l2" else -answer.distances
    predicted = vote(gallery.labels_of(answer.ids), distances, k_p)
    return ClassAccuracies(f"knn@{k_p}", *class_shares(predicted == query.labels, query.labels))
