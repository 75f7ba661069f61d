"""Confident learning: which labels are likely wrong, from out-of-sample probabilities.

Northcutt, Jiang & Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels" (JAIR 2021). ỹ is the given
label, y* the true one, p̂(ỹ = j; x) the out-of-sample probability of class j for image x.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import TrainingError


@dataclass(frozen=True, slots=True, eq=False)
class ConfidentJoint:
    """Counts of confident labels (the confident joint)."""

    labels: NDArray[np.int64]
    """int64 [n]: the given classes"""
    thresholds: NDArray[np.float64]
    """float64 [C]: t_j, the mean probability of class j over the images that are labelled j (Eq. 2)"""
    true: NDArray[np.int64]
    """int64 [n]: the class that an image is confidently counted in, −1 if it reaches no threshold (Eq. 1)"""

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [C, C]: images labelled i that are confidently of class j (Eq. 1, the confident joint)."""
        num_classes = len(self.thresholds)
        counts = np.zeros((num_classes, num_classes), dtype=np.int64)
        is_counted = self.true >= 0
        np.add.at(counts, (self.labels[is_counted], self.true[is_counted]), 1)
        return counts

    @property
    def joint(self) -> NDArray[np.float64]:
        """float64 [C, C]: estimated share of images with label i and true class j; the sum is 1 (Eq. 3).

        Rows of `counts` are scaled to the number of images of each given label; a row without any keeps its label.
        """
        counts = self.counts
        rows = counts.sum(axis=1, keepdims=True)
        shares = np.where(rows > 0, counts / np.maximum(rows, 1), np.eye(len(counts)))
        joint = shares * np.bincount(self.labels, minlength=len(counts))[:, None]
        return joint / max(joint.sum(), 1)

    @property
    def noise(self) -> float:
        """Estimated share of wrong labels, 0 … 1; images that the classifier confuses count as well."""
        return float(1 - np.trace(self.joint))


def confident_joint(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> ConfidentJoint:
    """Find the images that confidently belong to another class than their label.

    Args:
        probabilities: float64 [n, C]; each row from a classifier that has not seen that image.
        labels: int64 [n]: the given class as a column of `probabilities`.

    Returns:
        The confident joint. A class without images has an infinite threshold: no image is counted in it.

    Raises:
        TrainingError: a probability is not finite.
    """
    if not np.isfinite(probabilities).all():
        raise TrainingError("probabilities for confident learning are not finite")
    num_images, num_classes = probabilities.shape
    own = probabilities[np.arange(num_images), labels]
    sizes = np.bincount(labels, minlength=num_classes)
    sums = np.bincount(labels, weights=own, minlength=num_classes)
    thresholds = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    # Eq. 1: of the classes whose threshold is reached, the most probable one.
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    true = np.where((reached >= 0).any(axis=1), reached.argmax(axis=1), -1).astype(np.int64)
    return ConfidentJoint(labels, thresholds, true)
