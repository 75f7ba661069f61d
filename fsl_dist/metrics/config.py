"""Settings of an evaluation: nothing here needs the run to be trained anew."""

import math
from dataclasses import dataclass

from fsl_dist.errors import ConfigError

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
)
"""what a run can be scored by"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """How a trained embedding is scored."""

    k_p: tuple[int, ...] = (5,)
    """neighbours that vote (knn, few_shot_knn), each 1 or more; each value is scored"""
    delta_tau: tuple[float, ...] = (-2.0, 0.0, 3.0)
    """added to method.temperature at test time (PCN Fig. 5); each value is scored, each sum must be above 0"""
    base_clusters: int = 0
    """prototypes of a base class, 0: method.clusters"""
    novel_clusters: int = 0
    """prototypes of a novel class, 0: the method's"""
    novel_classes: int = 0
    """novel classes that are scored, those with the most images, 0: all of them (PCN Fig. 4)"""
    novel_shots: int = 5
    """support images of a novel class in each draw, 1 or more"""
    novel_test: int = 5
    """test images of a novel class in each draw, 1 or more, none of them support"""
    draws: int = 10
    """draws of novel support and test images, 1 or more; scores are mean ± standard deviation over them"""
    kmeans_runs: int = 10
    """k-means++ starts, 1 or more, of which the best is kept: for prototypes, and for the last step of spectral. Protocol kmeans
    takes one start a run"""
    fine_tune_epochs: int = 10
    """epochs at most for which protocol fine_tune trains in each draw, 1 or more; the paper is silent"""
    num_clusters: int = 0
    """clusters that protocols kmeans and spectral look for, 0: as many as the images have classes"""
    clustering_runs: int = 5
    """runs of kmeans and of spectral from different seeds, 1 or more; scores are mean ± standard deviation over them. A
    validation by kmeans/… makes one run"""
    spectral_neighbors: int = 10
    """images that spectral joins each image to, 2 or more, itself counted, as scikit-learn counts them; the paper is silent"""
    k: tuple[int, ...] = (3, 5, 10, 20, 40)
    """retrieval: nearest training images that are scored, each 1 or more and no more than there are; each value is scored"""
    positive_class: str = ""
    """class whose AUC is measured (retrieval, softmax); empty: every class against the others, averaged; CHAI has one such
    class and is silent on more"""
    mask_above: int = 0
    """maps: mask pixels above this value are foreground, 0 … 65534; 0: all that is not background"""
    batch_size: int = 256
    """images embedded at a time, 1 or more"""

    def __post_init__(self) -> None:
        for field, numbers in (("k_p", self.k_p), ("k", self.k)):
            if not numbers or min(numbers) < 1 or len(set(numbers)) < len(numbers):
                raise ConfigError(
                    f"evaluation.{field}={list(numbers)} must name different whole numbers, each 1 or more"
                )
        if (
            not self.delta_tau
            or not all(math.isfinite(delta) for delta in self.delta_tau)
            or len(set(self.delta_tau)) < len(self.delta_tau)
        ):
            raise ConfigError(
                f"evaluation.delta_tau={list(self.delta_tau)} must name different finite numbers"
            )
        if not 0 <= self.mask_above <= 65534:
            raise ConfigError(f"evaluation.mask_above={self.mask_above} must lie in 0 … 65534")
        for field, value, least in (
            ("base_clusters", self.base_clusters, 0),
            ("novel_clusters", self.novel_clusters, 0),
            ("novel_classes", self.novel_classes, 0),
            ("novel_shots", self.novel_shots, 1),
            ("novel_test", self.novel_test, 1),
            ("draws", self.draws, 1),
            ("kmeans_runs", self.kmeans_runs, 1),
            ("fine_tune_epochs", self.fine_tune_epochs, 1),
            ("num_clusters", self.num_clusters, 0),
            ("clustering_runs", self.clustering_runs, 1),
            ("spectral_neighbors", self.spectral_neighbors, 2),
            ("batch_size", self.batch_size, 1),
        ):
            if value < least:
                raise ConfigError(f"evaluation.{field}={value} must be {least} or more")
