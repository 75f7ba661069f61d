"""The few-shot protocol of PCN (section 4), for any classifier: draws of novel images, and the scores of a draw.

Base classes are tested on their test images, novel ones on a few images of each draw, all in one label space.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import RequestError
from fsl_dist.metrics.class_scores import Repeated, class_mean_share_within, share_within
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.seeding import generator

log = logging.getLogger(__name__)

RECALL_AT = (5, 10)


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw: rows of the novel images that are learnt from and of those that are tested."""

    number: int
    support: NDArray[np.int64]
    """int64 [classes · novel_shots], class by class"""
    test: NDArray[np.int64]
    """int64 [classes · novel_test], class by class; none of them support"""


def draw_novel(novel_labels: NDArray[np.int64], config: EvaluationConfig, *, seed: int, draw: int) -> Draw:
    """Draw number `draw` over the novel images (`novel_labels`: int64 [n]), for any method.

    A function of (seed, draw, label, images of the class): the test images are the same for any `novel_shots`.
    """
    support, test = [], []
    for label in np.unique(novel_labels).tolist():
        rows = generator(seed, "novel_draw", draw, label).permutation(np.flatnonzero(novel_labels == label))
        test.append(rows[: config.novel_test])
        support.append(rows[config.novel_test : config.novel_test + config.novel_shots])
    return Draw(draw, np.concatenate(support), np.concatenate(test))


def draws_of(novel_labels: NDArray[np.int64], config: EvaluationConfig, *, seed: int) -> Iterator[Draw]:
    """All draws of an evaluation, in order."""
    return (draw_novel(novel_labels, config, seed=seed, draw=draw) for draw in range(config.draws))


def largest_classes(novel_labels: NDArray[np.int64], config: EvaluationConfig) -> NDArray[np.int64]:
    """The `config.novel_classes` largest classes of `novel_labels`; ties are ordered by label.

    Raises RequestError if there are fewer.
    """
    classes, counts = np.unique(novel_labels, return_counts=True)
    wanted = config.novel_classes or len(classes)
    if wanted > len(classes):
        raise RequestError(
            f"evaluation.novel_classes={wanted} is more than the number of novel classes in the data set: "
            f"{len(classes)} (0 uses all)"
        )
    return classes[np.argsort(-counts, kind="stable")[:wanted]]


def check_novel(
    novel_labels: NDArray[np.int64],
    base_labels: NDArray[np.int64],
    config: EvaluationConfig,
    class_names: Sequence[str],
) -> None:
    """Raise RequestError for novel classes that are base classes too, or have too few images for a draw."""
    labels, counts = np.unique(novel_labels, return_counts=True)
    if len(labels) == 0:
        raise RequestError(
            "the novel split contains no image (leave it out; pack(split=base-novel) creates one)"
        )
    shared = np.intersect1d(labels, base_labels)
    if len(shared):
        raise RequestError(
            f"{name_of(int(shared[0]), class_names)} has images in both the training and the novel split, "
            f"{len(shared)} classes in all; a novel class must be new (pack(split=base-novel) divides so)"
        )
    needed = config.novel_shots + config.novel_test
    smallest = int(counts.argmin())
    if counts[smallest] < needed:
        raise RequestError(
            f"evaluation.novel_shots={config.novel_shots} with novel_test={config.novel_test} needs {needed} images a "
            f"novel class; {name_of(int(labels[smallest]), class_names)} has {counts[smallest]} "
            f"({int((counts < needed).sum())} classes have too few: lower either)"
        )


def warn_of_untrained(
    test_labels: NDArray[np.int64], base_labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Name the classes that have test images and no training image."""
    untrained = np.setdiff1d(test_labels, base_labels)
    if len(untrained):
        named = ", ".join(name_of(label, class_names) for label in untrained.tolist())
        log.warning("no training image of %s: test images of it count as wrong", named)


def name_of(label: int, class_names: Sequence[str]) -> str:
    """The name of a class in errors and warnings: its name if it has one, otherwise its label."""
    return f"class '{class_names[label]}'" if label < len(class_names) else f"class {label}"


def positions_among(labels: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position of each of `labels` (int64 [n]) in the ascending `among` (int64 [C], C ≥ 1), −1 if it is missing."""
    places = np.minimum(np.searchsorted(among, labels), len(among) - 1)
    return np.where(among[places] == labels, places, -1).astype(np.int64)


def group_scores(
    group: str, ranks: NDArray[np.int64], labels: NDArray[np.int64], suffix: str = ""
) -> dict[str, float]:
    """The five scores of a group of test images (`ranks`, `labels`: int64 [n]); empty if it has no images."""
    if len(ranks) == 0:
        return {}
    name = f"{group}{suffix}"
    scores = {f"mca/{name}": class_mean_share_within(ranks, labels, 1)}
    scores |= {f"recall@{k}/{name}": share_within(ranks, k) for k in RECALL_AT}
    scores |= {f"balanced_recall@{k}/{name}": class_mean_share_within(ranks, labels, k) for k in RECALL_AT}
    return scores


def draw_scores(
    ranks: NDArray[np.int64], labels: NDArray[np.int64], num_base: int, suffix: str = ""
) -> dict[str, float]:
    """The scores of a draw over base and novel, base, novel: names end in `GROUP` and `suffix`.

    `ranks` and `labels` (int64 [n]): the `num_base` test images of base classes first, then the draw's novel ones.
    """
    base, novel = slice(0, num_base), slice(num_base, None)
    groups = (("base_novel", slice(None)), ("base", base), ("novel", novel))
    scores: dict[str, float] = {}
    for group, members in groups:
        scores |= group_scores(group, ranks[members], labels[members], suffix)
    return scores


def over_draws(scores: Sequence[Mapping[str, float]]) -> dict[str, float | Repeated]:
    """Mean ± standard deviation of each score over the draws, which all have the same scores."""
    return {name: Repeated.from_values([of_draw[name] for of_draw in scores]) for name in scores[0]}
