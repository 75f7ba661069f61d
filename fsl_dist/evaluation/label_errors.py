"""Likely label errors: labels that disagree with a classifier that has not seen the image.

Out-of-sample probabilities come from k folds on *frozen* features, since a network trained on the labels has
memorised them. An image is listed if another class is many times as probable as its label (`least_odds`); confident
learning (`metrics.confident_learning`) marks which of them it counts as well.
"""

import csv
import dataclasses
import io
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, fit_head
from fsl_dist.metrics.confident_learning import confident_joint
from fsl_dist.metrics.few_shot import positions_among
from fsl_dist.seeding import generator
from index.base.files import write_atomic

FOLDS = 5
COLUMNS = ("key", "label", "suggested", "probability")
"""of the file that `write_label_errors` writes"""

_LOGISTIC = HeadConfig(kind="logistic", c=0.1)
_KNN_VOTES = 10
# Logistic regression takes about 40 passes of 4 · n · dim · C operations; one core of 2023 does 2 · 10^10 per second.
_OPERATIONS, _PER_S = 160, 2e10


@dataclass(frozen=True, slots=True, eq=False)
class OutOfSample:
    """Probabilities of images by classifiers that have not seen them."""

    probabilities: NDArray[np.float64]
    """float64 [n, C]"""
    is_judged: NDArray[np.bool_]
    """bool [n]: False if the class has no images in other folds, so that its probability is meaningless"""
    head: HeadConfig
    """settings of the fitted head"""


def deal_folds(labels: NDArray[np.int64], units: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """Assign a fold, 0 … `FOLDS` − 1, to each image: int64 [n]. A unit is never divided;
    a class is spread over the folds.

    labels, units: int64 [n]; each −1 is a separate unit. Units are distributed round-robin, class by class, in an
    order drawn from `seed`. A class that has only one unit is divided anyway: otherwise none of its images could be
    checked.
    """
    pairs = np.unique(np.stack([labels, units], axis=1)[units >= 0], axis=0)
    of_label = np.bincount(pairs[:, 0], minlength=int(labels.max(initial=0)) + 1)
    is_lone = np.bincount(labels[units < 0], minlength=len(of_label)) == 0
    units = np.where((of_label[labels] == 1) & is_lone[labels], -1, units)
    own = np.where(units >= 0, units, units.max(initial=-1) + 1 + np.arange(len(units)))
    _, first, unit = np.unique(own, return_index=True, return_inverse=True)
    turn = generator(seed, "label error folds").permutation(len(first))
    order = np.lexsort((turn, labels[first]))
    fold = np.empty(len(first), dtype=np.int64)
    fold[order] = np.arange(len(first)) % FOLDS
    return fold[unit]


def predict_out_of_sample(
    images: Embedded, classes: NDArray[np.int64], *, seconds: float | None = None, seed: int = 0
) -> OutOfSample | None:
    """Compute probabilities of each image by a head that is fitted on the other folds.

    The head is logistic regression, or a vote of the nearest neighbours if that would take longer than `seconds`.
    Images of one group (`images.groups`) are in the same fold.

    Args:
        images: frozen embeddings, at least two images.
        classes: int64 [C], ascending: columns of the result; contains all labels.
        seconds: approximate time limit; None: none.
        seed: of the folds.

    Returns:
        The probabilities; None if even the vote would take longer than `seconds`.
    """
    groups = np.full(len(images.labels), -1) if images.groups is None else images.groups
    folds = deal_folds(images.labels, groups, seed)
    num, dim = images.vectors.shape
    until = np.inf if seconds is None else time.monotonic() + seconds
    if FOLDS * _OPERATIONS * num * dim * len(classes) / _PER_S <= until - time.monotonic():
        found = _fit_folds(_LOGISTIC, images, classes, folds, until)
        if found is not None:
            return found
    if 2 * num * num * dim / _PER_S > until - time.monotonic():
        return None
    has_directions = bool(images.vectors.any(axis=1).all())
    vote = HeadConfig(kind="knn", metric="cosine" if has_directions else "l2", k_p=_KNN_VOTES)
    return _fit_folds(vote, images, classes, folds, np.inf)


def _fit_folds(
    config: HeadConfig, images: Embedded, classes: NDArray[np.int64], folds: NDArray[np.int64], until: float
) -> OutOfSample | None:
    """Probabilities by one kind of head; None if it cannot be fitted, or would end far after `until` (monotonic, s)."""
    probabilities = np.zeros((len(folds), len(classes)))
    is_judged = np.zeros(len(folds), dtype=np.bool_)
    started = time.monotonic()
    for fold in range(FOLDS):
        out, others = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if not len(out) or not len(others):
            continue
        known = np.unique(images.labels[others])
        if config.kind == "logistic" and len(known) < 2:
            return None
        fitted = config
        if config.kind == "knn" and config.k_p > len(others):
            fitted = dataclasses.replace(config, k_p=len(others))
        head = fit_head(fitted, images.rows(others), classes)
        probabilities[out] = head.probabilities(images.vectors[out])
        is_judged[out] = np.isin(images.labels[out], known)
        needed = (time.monotonic() - started) / (fold + 1) * FOLDS
        if needed > 2 * max(until - started, 0.0):
            return None
    return OutOfSample(probabilities, is_judged, config)


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """Images whose label is likely wrong, the likeliest first."""

    rows: NDArray[np.int64]
    """int64 [m]: positions among the images"""
    suggested: NDArray[np.int64]
    """int64 [m]: column of the most probable class"""
    is_confident: NDArray[np.bool_]
    """bool [m]: confident learning counts the image off the diagonal too"""


def least_odds(num_classes: int) -> float:
    """How many times as probable as its label another class must be for an image to be listed: 4 + C, at most 20.

    With many classes, wrong labels spread over them and leave each a small probability. With few classes, the same
    share of wrong labels lowers the odds of a classifier that was trained on them. Measured in
    benchmarks/label_errors.py.
    """
    return min(20.0, 4.0 + num_classes)


def find_suspects(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> Suspects:
    """Images whose label is contradicted, ranked by the odds of the most probable class against the label.

    Args:
        probabilities: float64 [n, C], out of sample.
        labels: int64 [n], columns of `probabilities`.
    """
    own = probabilities[np.arange(len(labels)), labels]
    best = probabilities.argmax(axis=1) if len(labels) else labels
    top = probabilities.max(axis=1, initial=0.0)
    is_listed = (best != labels) & (top >= least_odds(probabilities.shape[1]) * own)
    joint = confident_joint(probabilities, labels)
    rows = np.flatnonzero(is_listed)
    ratio = top[rows] / np.maximum(own[rows], 1e-12)
    rows = rows[np.lexsort((rows, -ratio))]
    is_confident = (joint.true[rows] >= 0) & (joint.true[rows] != labels[rows])
    return Suspects(rows, best[rows], is_confident)


def columns_of(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Column of each of `labels` (int64 [n]) among `classes` (int64 [C], ascending)."""
    return positions_among(labels, classes)


def write_label_errors(
    path: Path,
    catalogue: Catalogue,
    ids: NDArray[np.int64],
    suggested: NDArray[np.int64],
    probability: NDArray[np.float64],
) -> None:
    """Write a table of *all* samples: `key`, `label`, `suggested`, `probability`; the suspects first, in their order.

    For other samples `suggested` is their label. So `resplit(table=…, key_column="key", label_column="suggested")`
    corrects the labels and leaves no sample out. Before that, restore the label of every sample where you disagree.

    Args:
        path: a .csv file.
        catalogue: the data set.
        ids: int64 [m]: sample ids of the suspects.
        suggested: int64 [m]: their suggested labels.
        probability: float64 [samples], row = sample id: out-of-sample probability of the `suggested` class; NaN (an
            empty cell) if a sample was not checked.
    """
    names, keys = catalogue.class_names, catalogue.keys(np.arange(catalogue.num_samples))
    wanted = catalogue.labels.copy()
    wanted[ids] = suggested
    others = np.setdiff1d(np.arange(catalogue.num_samples), ids)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for sample in np.concatenate([ids, others]).tolist():
        share = probability[sample]
        writer.writerow(
            [
                keys[sample],
                names[int(catalogue.labels[sample])],
                names[int(wanted[sample])],
                "" if np.isnan(share) else f"{share:.4f}",
            ]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text.getvalue().encode("utf-8", "surrogateescape"))
