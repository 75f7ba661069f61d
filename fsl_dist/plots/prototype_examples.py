"""Images that show what prototypes are and how queries use them (PCN Figs. 2, 7, 8)."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.names.readings import read_text
from fsl_dist.errors import RequestError
from fsl_dist.losses.pcn import responsibilities
from fsl_dist.metrics.class_scores import Floats
from fsl_dist.plots.run_draws import Draw

NUM_BASE, NUM_NOVEL = 4, 2
QUERIES_A_CLASS = 4


@dataclass(frozen=True, slots=True)
class QueryExample:
    """A test image, the class it was taken for, and how it interpolates that class's prototypes."""

    id: int
    predicted: str
    is_right: bool
    responsibilities: list[float]
    """q(z|predicted class, x) for each of its prototypes; they sum to 1"""
    nearest: list[int]
    """sample id of the image that represents each of these prototypes"""


@dataclass(frozen=True, slots=True)
class ClassExample:
    """A class, the images that represent its prototypes, and some of its test images."""

    name: str
    is_novel: bool
    num_images: int
    """images the prototypes were made from: training images, or a novel class's support"""
    nearest: list[int]
    """sample id of the image of the class nearest to each prototype"""
    queries: list[QueryExample]


def choose_labels(catalogue: Catalogue, names: Sequence[str]) -> list[int]:
    """Labels of the classes `names`; by default of the 4 largest base and the 2 largest novel classes.

    Raises RequestError for an unknown name, and for a class with neither training nor novel images.
    """
    counts = {
        split: np.bincount(catalogue.labels[catalogue.split_ids(split)], minlength=catalogue.num_classes)
        for split in ("train", "novel")
    }
    if not names:
        return [
            label
            for split, num in (("train", NUM_BASE), ("novel", NUM_NOVEL))
            for label in np.argsort(-counts[split], kind="stable")[:num].tolist()
            if counts[split][label]
        ]
    labels = labels_of_names(catalogue, names)
    for label in labels:
        if not counts["train"][label] + counts["novel"][label]:
            raise RequestError(
                f"classes: '{catalogue.label_name(label)}' has no training and no novel image, so it has no prototype"
            )
    return labels


def labels_of_names(catalogue: Catalogue, names: Sequence[str]) -> list[int]:
    """Labels of the classes `names`, each once; RequestError for a name that the data set lacks."""
    labels = []
    for given in names:
        name = given if given in catalogue.class_names else read_text(given)
        if name not in catalogue.class_names:
            near = difflib.get_close_matches(name, catalogue.class_names, n=1, cutoff=0)
            raise RequestError(
                f"classes: '{name}' is not a class of '{catalogue.folder}'; did you mean '{near[0]}'?"
            )
        labels.append(catalogue.class_names.index(name))
    return list(dict.fromkeys(labels))


def find_nearest(points: Floats, vectors: Floats) -> NDArray[np.int64]:
    """Position of the nearest of `vectors` ([n, D], n ≥ 1) to each of `points` ([m, D]):
    int64 [m], the first of equals.

    Euclidean, by differences in float64.
    """
    vectors = vectors.astype(np.float64)
    return np.array([np.square(vectors - point.astype(np.float64)).sum(axis=1).argmin() for point in points])


def share_among(x: Floats, prototypes: Floats, temperature: float) -> NDArray[np.float64]:
    """q(z|k,x) over one class's `prototypes` [m, D] of the embedding `x` [D] (PCN Eq. 3): float64 [m], of sum 1."""
    distances = np.square(prototypes.astype(np.float64) - x.astype(np.float64)).sum(axis=1)
    is_there = torch.ones(len(distances), dtype=torch.bool)
    return responsibilities(torch.from_numpy(distances), is_there, temperature).numpy()


def choose_queries(is_right: NDArray[np.bool_], num: int = QUERIES_A_CLASS) -> NDArray[np.int64]:
    """Positions of `num` test images of a class, correct ones first; half of them are wrong if there are that many.

    `is_right`: bool [n]. Correct and wrong ones are each spread evenly over their order.
    """
    right, wrong = np.flatnonzero(is_right), np.flatnonzero(~is_right)
    num_wrong = min(len(wrong), max(num // 2, num - len(right)))
    return np.concatenate([_spread(right, num - num_wrong), _spread(wrong, num_wrong)])


def _spread(positions: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    num = min(num, len(positions))
    return positions[np.linspace(0, len(positions) - 1, num).astype(np.int64)] if num else positions[:0]


def gather_examples(
    draw: Draw, catalogue: Catalogue, labels: Sequence[int], temperature: float
) -> list[ClassExample]:
    """One example per label. A prototype is represented by the nearest of the images of its class from which it was
    computed."""
    prototypes = draw.prototypes
    means = {
        label: of_class[is_used]
        for label, of_class, is_used in zip(
            prototypes.labels.tolist(), prototypes.means, prototypes.mask, strict=True
        )
    }
    shown: dict[int, list[int]] = {}

    def nearest_to(label: int) -> list[int]:
        if label not in shown:
            images = draw.learnt.of_class(label)
            shown[label] = images.ids[find_nearest(means[label], images.vectors)].tolist()
        return shown[label]

    novel_ids = catalogue.split_ids("novel")
    examples = []
    for label in labels:
        of_class = np.flatnonzero(draw.tested.labels == label)
        queries = []
        for row in of_class[choose_queries(draw.predicted[of_class] == label)].tolist():
            predicted = int(draw.predicted[row])
            shares = share_among(draw.tested.vectors[row], means[predicted], temperature)
            queries.append(
                QueryExample(
                    id=int(draw.tested.ids[row]),
                    predicted=catalogue.label_name(predicted),
                    is_right=predicted == label,
                    responsibilities=shares.tolist(),
                    nearest=nearest_to(predicted),
                )
            )
        learnt = draw.learnt.of_class(label).ids
        examples.append(
            ClassExample(
                name=catalogue.label_name(label),
                is_novel=int(learnt[0]) in novel_ids,
                num_images=len(learnt),
                nearest=nearest_to(label),
                queries=queries,
            )
        )
    return examples
