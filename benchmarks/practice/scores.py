"""Heads on embeddings, and their scores: cosine kNN, class means, logistic regression; settings are chosen on
validation."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fsl_dist.metrics.knn import vote_each

K_PS = (1, 3, 5, 10)
_STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""of C, logistic regression's inverse weight of its penalty, on standardised features"""
_MANY = 2_000_000_000
"""images · features · classes above which one fit of logistic regression takes minutes: then one C is tried"""
_ITERATIONS = 200

Vectors = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Score:
    """Fractions of right answers."""

    acc: float
    """over all images"""
    mcr: float
    """mean over the classes of each class's share (mean class recall)"""

    @property
    def chosen_by(self) -> float:
        """What settings are chosen by on validation: the mean of both, so that neither is favoured."""
        return (self.acc + self.mcr) / 2

    def to_json(self) -> dict[str, float]:
        """Both figures as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Head:
    """A head whose settings were chosen: `predict(vectors of a part) → int64 [n]`."""

    val: Score
    setting: str
    predict: Callable[[Vectors], Labels]


def score(predicted: Labels, labels: Labels) -> Score:
    """Accuracy and mean class recall of int64 [n] against int64 [n], n above 0."""
    is_right = predicted == labels
    _, positions = np.unique(labels, return_inverse=True)
    recalls = np.bincount(positions, weights=is_right) / np.bincount(positions)
    return Score(float(is_right.mean()), float(recalls.mean()))


def choose(
    candidates: Iterable[tuple[str, Callable[[Vectors], Labels]]], val: Vectors, labels: Labels
) -> Head:
    """The candidate (setting, predict) with the best score on validation; the first of equals."""
    heads = [Head(score(predict(val), labels), setting, predict) for setting, predict in candidates]
    return max(heads, key=lambda head: head.val.chosen_by)


def fit_knn(gallery: Vectors, own: Labels, val: Vectors, labels: Labels) -> Head:
    """Vote of the K_p nearest by cosine; K_p by validation."""
    k_ps = tuple(k_p for k_p in K_PS if k_p <= len(gallery))
    unit = _to_unit(gallery)

    def predict_each(vectors: Vectors) -> NDArray[np.int64]:
        """int64 [len(k_ps), n]."""
        found = []
        for start in range(0, len(vectors), 512):
            near = _to_unit(vectors[start : start + 512]) @ unit.T
            columns = np.argpartition(-near, k_ps[-1] - 1, axis=1)[:, : k_ps[-1]]
            likeness = np.take_along_axis(near, columns, axis=1)
            order = np.argsort(-likeness, axis=1, kind="stable")
            columns = np.take_along_axis(columns, order, axis=1)
            distances = 1 - np.take_along_axis(likeness, order, axis=1)
            found.append(vote_each(own[columns], distances, k_ps))
        return np.concatenate(found, axis=1)

    each = [score(predicted, labels) for predicted in predict_each(val)]
    best = max(range(len(k_ps)), key=lambda place: each[place].chosen_by)
    return Head(each[best], f"K_p {k_ps[best]}", lambda vectors: predict_each(vectors)[best])


def fit_means(gallery: Vectors, own: Labels, val: Vectors, labels: Labels) -> Head:
    """The nearest class mean; Euclidean distance or cosine, by validation."""
    counts = np.bincount(own)
    means = np.zeros((len(counts), gallery.shape[1]), np.float32)
    np.add.at(means, own, gallery)
    means /= counts[:, None]
    half, unit = (means**2).sum(1) / 2, _to_unit(means)
    candidates: list[tuple[str, Callable[[Vectors], Labels]]] = [
        ("Euclidean", lambda vectors: (vectors @ means.T - half).argmax(1)),
        ("cosine", lambda vectors: (vectors @ unit.T).argmax(1)),
    ]
    return choose(candidates, val, labels)


def fit_logistic(gallery: Vectors, own: Labels, val: Vectors, labels: Labels) -> Head:
    """scikit-learn's logistic regression on standardised features; C, and whether classes are balanced, by
    validation."""
    counts = np.bincount(own)
    is_even = counts.min() == counts.max()
    is_large = gallery.size * len(counts) > _MANY
    candidates = []
    for strength in (0.01,) if is_large else _STRENGTHS:
        for weight in (None,) if is_even else (None, "balanced"):
            classifier = LogisticRegression(C=strength, class_weight=weight, max_iter=_ITERATIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is the limit
                model = make_pipeline(StandardScaler(), classifier).fit(gallery, own)
            candidates.append((f"C {strength:g}, {weight or 'plain'}", model.predict))
    return choose(candidates, val, labels)


def _to_unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
