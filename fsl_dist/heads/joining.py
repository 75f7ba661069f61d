"""Add novel classes to a head without training: class means decide between old and new classes,
the head among the old ones.

    q    softmax of the scores of all class means, base and novel
    p(novel class) = q(novel class)
    p(base class)  = (1 − Σ q(novel classes)) · p_head(base class)

So every head keeps its own predictions among the training classes, and needs no weights for the new ones (Qi, Brown &
Lowe 2018 imprint such weights into a cosine classifier).

The score of a class is x·m / √ρ, with x and the mean m in the space of centred unit vectors. ρ is the squared length
that the mean would have for infinitely many images. A mean over n images has E‖m‖² = ρ + (1 − ρ) / n: the mean of one
image has length 1 and overfits to that image. If means are normalised to length 1, means of few images score lower
than those of many, and novel classes are hardly ever predicted. Each class's ρ is estimated without bias, and shrunk
towards that of all training classes, which counts as one more image.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import PROTOTYPE_SCALE, Embedded, Head, to_probabilities, to_unit
from fsl_dist.metrics.calibration import fit_temperature
from fsl_dist.metrics.class_scores import Floats
from fsl_dist.metrics.few_shot import positions_among

# A class's own ρ has weight n − 1, that of all classes weight 1. Of 1, 2 and 5, weight 1 was best on groceries.
_SHARED_IMAGES = 1.0
_LEAST_SQUARE = 1e-2


@dataclass(frozen=True, slots=True, eq=False)
class BaseMeans:
    """The classes of training as novel ones are compared with them."""

    means: NDArray[np.float64]
    """float64 [C, dim]: m / √ρ of each class; not a number for a class without training images"""
    centre: NDArray[np.float64]
    """float64 [dim]: mean of the training images' unit vectors"""
    square: float
    """ρ of all classes"""

    @classmethod
    def fit(cls, train: Embedded, classes: NDArray[np.int64]) -> Self:
        """train: training images, of `classes` (int64 [C], ascending)."""
        positions = positions_among(train.labels, classes)
        units = to_unit(train.vectors)
        centre = units.mean(axis=0)
        points = to_unit(units, centre)
        present = np.unique(positions)
        of_classes = [points[positions == position] for position in present]
        others = sum(len(of_class) - 1 for of_class in of_classes)
        square = sum(_weighed_square(of_class) for of_class in of_classes) / others if others else 1.0
        means = np.full((len(classes), points.shape[1]), np.nan)
        for position, of_class in zip(present, of_classes, strict=True):
            means[position] = _scaled_mean(of_class, square)
        return cls(means, centre, float(square))

    def points(self, vectors: Floats) -> NDArray[np.float64]:
        """`vectors` [n, dim] as they are compared: float64 [n, dim]."""
        return to_unit(to_unit(vectors), self.centre)

    def scores(self, vectors: Floats, novel: Sequence[Floats] = ()) -> NDArray[np.float64]:
        """Scores of the base classes, then of novel ones, each given by its images [n_c, dim]: float64 [n, C + M]."""
        added = [_scaled_mean(self.points(images), self.square) for images in novel]
        scores = PROTOTYPE_SCALE * (
            self.points(vectors) @ np.concatenate([self.means, *(m[None] for m in added)]).T
        )
        return np.where(np.isnan(scores), -np.inf, scores)


def _weighed_square(points: NDArray[np.float64]) -> float:
    """(n − 1) · ρ of a class's `points` [n, dim], without bias: Σ of the products of two different ones, over n."""
    return float(np.square(points.sum(axis=0)).sum() / len(points)) - 1 if len(points) > 1 else 0.0


def _scaled_mean(points: NDArray[np.float64], square: float) -> NDArray[np.float64]:
    """m / √ρ of a class's `points` [n, dim], n ≥ 1; `square`: ρ of all classes."""
    own = (_weighed_square(points) + _SHARED_IMAGES * square) / (len(points) - 1 + _SHARED_IMAGES)
    return points.mean(axis=0) / np.sqrt(max(own, _LEAST_SQUARE))


def join_novel(
    head: Head, base: BaseMeans, novel: Sequence[Floats], vectors: Floats, logits: Floats | None = None
) -> NDArray[np.float64]:
    """Probabilities of a head's classes and of novel ones.

    Args:
        head: of the base classes.
        base: means of the same classes.
        novel: the images of each of M novel classes, float32 [n_c, dim], n_c ≥ 1.
        vectors: float32 [n, dim].
        logits: as for `Head.probabilities`.

    Returns:
        float64 [n, C + M], the head's classes first.
    """
    own = head.probabilities(vectors, logits)
    if not novel:
        return own
    shares = to_probabilities(base.scores(vectors, novel), head.config.novel_temperature)
    is_base = shares[:, : own.shape[1]].sum(axis=1, keepdims=True)
    return np.concatenate([is_base * own, shares[:, own.shape[1] :]], axis=1)


def calibrate_novel(
    config: HeadConfig, train: Embedded, validation: Embedded, classes: NDArray[np.int64]
) -> HeadConfig:
    """`config` with the temperature at which the class means are most likely on validation images.

    train: without `validation`. classes: int64 [C], of `train`.
    """
    scores = BaseMeans.fit(train, classes).scores(validation.vectors)
    positions = positions_among(validation.labels, classes)
    known = positions >= 0
    return dataclasses.replace(config, novel_temperature=fit_temperature(scores[known], positions[known]))
