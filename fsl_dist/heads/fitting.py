"""Heads fitted to training embeddings. Every fit is a pure function of its arguments."""

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from fsl_dist.errors import RequestError
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.lmnn import fit_lmnn, target_scale
from fsl_dist.metrics.class_scores import Floats
from fsl_dist.metrics.few_shot import positions_among
from fsl_dist.metrics.few_shot_knn import Nearest, find_nearest, rank_classes
from index.config import Metric

PROTOTYPE_SCALE = 20.0
"""multiplies a prototype's cosine before calibration"""

_MAX_ITERATIONS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """What heads know of a part of the data."""

    ids: NDArray[np.int64]
    """int64 [n]: sample ids"""
    vectors: NDArray[np.float32]
    """float32 [n, dim]: embeddings"""
    labels: NDArray[np.int64]
    """int64 [n]"""
    logits: NDArray[np.float32] | None = None
    """float32 [n, C]: of the network's own classifier, columns in the order of the classes; None if it has none"""
    groups: NDArray[np.int64] | None = None
    """int64 [n]: similar images have the same group, −1: none; None if there are no groups"""

    def rows(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Some of the images: positions or a mask."""
        return dataclasses.replace(
            self,
            ids=self.ids[rows],
            vectors=self.vectors[rows],
            labels=self.labels[rows],
            logits=None if self.logits is None else self.logits[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


class Model(Protocol):
    """A head without its temperature."""

    def scores(self, vectors: Floats, logits: Floats | None) -> NDArray[np.float64]:
        """Class scores, float64 [n, C], larger is more similar; −inf for a class without training images."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A fitted head."""

    config: HeadConfig
    classes: NDArray[np.int64]
    """int64 [C], ascending: label of each column of the probabilities"""
    model: Model = dataclasses.field(repr=False)
    """the fitted model"""

    def scores(self, vectors: Floats, logits: Floats | None = None) -> NDArray[np.float64]:
        """Class scores before the temperature: float64 [n, C]; arguments as for `probabilities`."""
        return self.model.scores(vectors, logits)

    def probabilities(self, vectors: Floats, logits: Floats | None = None) -> NDArray[np.float64]:
        """Class probabilities of images.

        Args:
            vectors: float32 [n, dim], embeddings.
            logits: float32 [n, C], of the network's own classifier; softmax needs them.

        Returns:
            float64 [n, C]; 0 for a class without training images.

        Raises:
            RequestError: softmax without logits, or a vector of zeros under cosine.
        """
        return to_probabilities(self.scores(vectors, logits), self.config.temperature)

    def with_temperature(self, temperature: float) -> "Head":
        """The same head at another temperature; nothing is fitted again."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, temperature=temperature))


def to_probabilities(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Softmax of `scores` / `temperature` over the classes: float64 [n, C]."""
    return np.exp(log_softmax(scores / temperature, axis=1))


def fit_head(config: HeadConfig, train: Embedded, classes: NDArray[np.int64]) -> Head:
    """Fit a head to training images.

    Args:
        config: settings of the head.
        train: at least one image.
        classes: int64 [C], ascending; contains all labels of `train`.

    Returns:
        The head; a class of `classes` without training images gets probability 0.

    Raises:
        RequestError: there are fewer training images than `config.k_p`, or they do not suit this kind of head.
    """
    positions = positions_among(train.labels, classes)
    if len(positions) == 0 or (positions < 0).any():
        raise RequestError(f"head.kind={config.kind} needs training images, all of the given classes")
    counts = np.bincount(positions, minlength=len(classes))
    match config.kind:
        case "softmax":
            model: Model = Adjusted.fit(counts, config.tau)
        case "knn" | "lmnn":
            model = Neighbours.fit(config, train, classes)
        case "prototypes":
            model = ClassMeans.fit(train.vectors, positions, len(classes), is_centred=config.is_centred)
        case "logistic":
            model = Linear.fit(train.vectors, positions, len(classes), config)
    return Head(config, classes, model)


@dataclass(frozen=True, slots=True, eq=False)
class Adjusted:
    """The network's logits less τ · log prior (Menon et al. 2021, "Long-tail learning via logit adjustment", Eq. 9)."""

    offsets: NDArray[np.float64]
    """float64 [C]: τ · log(n_c / N); inf for a class without training images"""

    @classmethod
    def fit(cls, counts: NDArray[np.int64], tau: float) -> Self:
        """counts: int64 [C], training images of each class."""
        prior = np.maximum(counts, 1) / counts.sum()
        return cls(np.where(counts > 0, tau * np.log(prior), np.inf))

    def scores(self, vectors: Floats, logits: Floats | None) -> NDArray[np.float64]:
        """See `Model`."""
        if logits is None:
            raise RequestError(
                "head.kind=softmax needs a network with a classifier (method.kind=cross_entropy)"
            )
        if logits.shape[1] != len(self.offsets):
            raise RequestError(
                f"head.kind=softmax has {len(self.offsets)} classes; the network's classifier has {logits.shape[1]}"
            )
        return logits.astype(np.float64) - self.offsets


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """A vote of the nearest training images, in the embedding or after a linear map."""

    vectors: NDArray[np.float32]
    """float32 [N, D]: training images, mapped"""
    labels: NDArray[np.int64]
    """int64 [N]"""
    classes: NDArray[np.int64]
    """int64 [C]"""
    metric: Metric
    k_p: int
    transform: NDArray[np.float64] | None = None
    """float64 [D, dim]: vectors are mapped by x → L(x − centre); None: not mapped"""
    centre: NDArray[np.float64] | float = 0.0
    """float64 [dim]"""

    @classmethod
    def fit(cls, config: HeadConfig, train: Embedded, classes: NDArray[np.int64]) -> Self:
        """See `fit_head`."""
        if config.k_p > len(train.labels):
            raise RequestError(
                f"head.k_p={config.k_p} is more than the number of training images: {len(train.labels)} "
                "(a smaller head.k_p)"
            )
        if config.kind == "knn":
            return cls(train.vectors, train.labels, classes, config.metric, config.k_p)
        transform, centre = fit_map(train.vectors, train.labels, config.pca)
        mapped = ((train.vectors - centre) @ transform.T).astype(np.float32)
        return cls(mapped, train.labels, classes, "l2", config.k_p, transform, centre)

    def nearest(self, vectors: Floats, k: int) -> Nearest:
        """The `k` nearest training images of each of `vectors` [n, dim], and the nearest of each class."""
        if self.transform is not None:
            vectors = ((vectors - self.centre) @ self.transform.T).astype(np.float32)
        return find_nearest(vectors, self.vectors, self.labels, k, self.metric)

    def scores(self, vectors: Floats, logits: Floats | None) -> NDArray[np.float64]:
        """See `Model`."""
        return vote_scores(self.nearest(vectors, self.k_p), self.k_p, self.classes)


def vote_scores(nearest: Nearest, k_p: int, classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(votes + 1 / (2 + r)) of each class: float64 [n, C].

    r is a class's place, from 0, in the order of the classes' nearest members. The addition smooths the votes, so
    that every class has a probability. Being at most ½, it only orders classes of equal votes: the first class is the
    vote's (`metrics.knn.vote`), and all are in the order of `metrics.few_shot_knn.rank_classes`.

    nearest: of n images, with `k_p` neighbours or more. classes: int64 [C]; those that `nearest` lacks get −inf.
    """
    order, votes_in_order = rank_classes(nearest, k_p)
    votes, ranks = np.empty(order.shape), np.empty(order.shape, dtype=np.int64)
    np.put_along_axis(votes, order, votes_in_order.astype(np.float64), axis=1)
    by_label = np.broadcast_to(np.arange(len(nearest.classes)), order.shape)
    by_distance = np.lexsort((by_label, nearest.of_class), axis=1)
    np.put_along_axis(ranks, by_distance, by_label, axis=1)
    scores = np.full((len(votes), len(classes)), -np.inf)
    scores[:, positions_among(nearest.classes, classes)] = np.log(votes + 1 / (2 + ranks))
    return scores


def fit_map(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], pca: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LMNN on principal components: (L float64 [D, dim], centre float64 [dim]), D ≤ `pca`.

    Raises RequestError if no class has two images.
    """
    from sklearn.decomposition import PCA

    points = vectors.astype(np.float64)
    with threadpool_limits(limits=1):
        components = PCA(min(pca, *points.shape), svd_solver="covariance_eigh").fit(points)
        projected = components.transform(points)
        scale = target_scale(projected, labels)
        fitted = fit_lmnn(projected / scale, labels)
    return (fitted.transform / scale) @ components.components_, components.mean_


@dataclass(frozen=True, slots=True, eq=False)
class ClassMeans:
    """The cosine with each class's mean on the unit sphere (SimpleShot: Wang et al. 2019), times `PROTOTYPE_SCALE`."""

    means: NDArray[np.float64]
    """float64 [C, dim], of length 1; not a number for a class without training images"""
    centre: NDArray[np.float64]
    """float64 [dim]: subtracted before vectors are taken to length 1"""

    @classmethod
    def fit(
        cls, vectors: Floats, positions: NDArray[np.int64], num_classes: int, *, is_centred: bool
    ) -> Self:
        """positions: int64 [N], each image's class, 0 … `num_classes` − 1."""
        centre = vectors.mean(axis=0, dtype=np.float64) if is_centred else np.zeros(vectors.shape[1])
        points = to_unit(vectors, centre)
        sums = np.zeros((num_classes, vectors.shape[1]))
        for position in np.unique(positions):
            sums[position] = points[positions == position].sum(axis=0)
        means = to_unit(sums)
        means[np.bincount(positions, minlength=num_classes) == 0] = np.nan
        return cls(means, centre)

    def scores(self, vectors: Floats, logits: Floats | None) -> NDArray[np.float64]:
        """See `Model`."""
        cosines = PROTOTYPE_SCALE * (to_unit(vectors, self.centre) @ self.means.T)
        return np.where(np.isnan(cosines), -np.inf, cosines)


def to_unit(vectors: Floats, centre: Floats | float = 0.0) -> NDArray[np.float64]:
    """`vectors` [n, dim] minus `centre`, normalised to length 1: float64 [n, dim]; zeros remain zeros."""
    points = vectors.astype(np.float64) - centre
    lengths = np.sqrt(np.square(points).sum(axis=1, keepdims=True))
    return np.divide(points, lengths, out=np.zeros_like(points), where=lengths > 0)


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """Multinomial logistic regression on standardised embeddings."""

    weights: NDArray[np.float64]
    """float64 [C, dim]"""
    biases: NDArray[np.float64]
    """float64 [C]; −inf for a class without training images"""
    centre: NDArray[np.float64]
    """float64 [dim]: subtracted first"""
    scale: NDArray[np.float64]
    """float64 [dim]: multiplied next"""

    @classmethod
    def fit(cls, vectors: Floats, positions: NDArray[np.int64], num_classes: int, config: HeadConfig) -> Self:
        """positions: int64 [N], each image's class; two classes or more. On one thread: more may round differently."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        present = np.unique(positions)
        if len(present) < 2:
            raise RequestError("head.kind=logistic needs training images of two classes")
        centre = vectors.mean(axis=0, dtype=np.float64)
        spread = vectors.std(axis=0, dtype=np.float64)
        scale = np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)
        points = ((vectors - centre) * scale).astype(np.float32)
        regression = LogisticRegression(
            C=config.c,
            class_weight="balanced" if config.is_balanced else None,
            max_iter=_MAX_ITERATIONS,
            tol=1e-3,
        )
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            regression.fit(points, positions)
        weights, biases = regression.coef_, regression.intercept_
        if len(present) == 2:  # one row: the log odds of the second class
            weights = np.concatenate([np.zeros_like(weights), weights])
            biases = np.concatenate([np.zeros_like(biases), biases])
        all_weights = np.zeros((num_classes, vectors.shape[1]))
        all_biases = np.full(num_classes, -np.inf)
        all_weights[present], all_biases[present] = weights, biases
        return cls(all_weights, all_biases, centre, scale)

    def scores(self, vectors: Floats, logits: Floats | None) -> NDArray[np.float64]:
        """See `Model`."""
        return ((vectors - self.centre) * self.scale) @ self.weights.T + self.biases
