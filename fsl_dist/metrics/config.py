"""Settings of an evaluation: none of them requires retraining."""

from typing import Annotated

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings

CLUSTER_SCORES = ("ca", "nmi", "nmi_max", "ami", "ari")
"""of a clustering against the classes, as `evaluation.clustering` computes them"""

PROTOCOLS = (
    "knn",
    "prototypes",
    "softmax",
    "retrieval",
    "maps",
    "kmeans",
    "spectral",
    "few_shot_knn",
    "fine_tune",
    "head",
)
"""the evaluation protocols"""


@settings("evaluation")
class EvaluationConfig:
    """How a trained embedding is scored."""

    k_p: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (5,)
    """neighbours that vote (knn, few_shot_knn); each value is scored"""
    delta_tau: Annotated[tuple[float, ...], Field(min_length=1)] = (-2.0, 0.0, 3.0)
    """added to method.temperature at test time (PCN Fig. 5); each value is scored, each sum must be above 0"""
    base_clusters: Annotated[int, Field(ge=0)] = 0
    """prototypes of a base class, 0: method.clusters"""
    novel_clusters: Annotated[int, Field(ge=0)] = 0
    """prototypes of a novel class, 0: the method's"""
    novel_classes: Annotated[int, Field(ge=0)] = 0
    """novel classes that are scored, those with the most images, 0: all of them (PCN Fig. 4)"""
    novel_shots: Annotated[int, Field(ge=1)] = 5
    """support images of a novel class in each draw"""
    novel_test: Annotated[int, Field(ge=1)] = 5
    """test images of a novel class in each draw, none of them support"""
    draws: Annotated[int, Field(ge=1)] = 10
    """draws of novel support and test images; scores are mean ± standard deviation over them"""
    kmeans_runs: Annotated[int, Field(ge=1)] = 10
    """number of k-means++ starts, of which the best is kept: for prototypes, and for the last step of spectral.
    Protocol kmeans uses one start per run"""
    fine_tune_epochs: Annotated[int, Field(ge=1)] = 10
    """epochs at most for which protocol fine_tune trains in each draw; the paper is silent"""
    num_clusters: Annotated[int, Field(ge=0)] = 0
    """number of clusters for the protocols kmeans and spectral; 0: as many as the images have classes"""
    clustering_runs: Annotated[int, Field(ge=1)] = 5
    """runs of kmeans and of spectral with different seeds; scores are mean ± standard deviation over them. A
    validation by kmeans/… makes one run"""
    spectral_neighbors: Annotated[int, Field(ge=2)] = 10
    """images that spectral joins each image to, itself counted, as scikit-learn counts them; the paper is silent"""
    k: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (3, 5, 10, 20, 40)
    """retrieval: numbers of nearest training images to score, at most as many as exist; each value is scored"""
    positive_class: str = ""
    """class whose AUC is measured (retrieval, softmax); empty: the mean of every class against the others. CHAI has
    one such class and does not define more"""
    mask_above: Annotated[int, Field(ge=0, le=65534)] = 0
    """maps: mask pixels above this value are foreground; 0: all that is not background"""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """number of images that are embedded per batch"""

    def __post_init__(self) -> None:
        for name in ("k_p", "k", "delta_tau"):
            numbers = getattr(self, name)
            if len(set(numbers)) < len(numbers):
                raise ConfigError(f"evaluation.{name}={list(numbers)} must name different numbers")
