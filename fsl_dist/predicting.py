"""From image files to classes: by the run's head if it has one,
otherwise by a PCN run's prototypes or the neighbours' vote.

Novel classes come from folders of support images, by one forward pass, or were added to the run. Data on the base
classes is computed from the run's training images on first use and cached under RUN/evaluation.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.names.readings import read_text
from fsl_dist.errors import RequestError, VersionError
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.evaluation.run_head import open_head
from fsl_dist.heads.added_classes import AddedClass, read_classes
from fsl_dist.heads.fitting import Embedded, Head
from fsl_dist.heads.joining import BaseMeans, join_novel
from fsl_dist.image_files import FailedImage, ImageFiles, ImageLike, NamedImage, name_images
from fsl_dist.methods.prototypes import Prototypes, fit_prototypes, join
from fsl_dist.metrics.few_shot_knn import find_nearest, join_nearest, rank_classes
from fsl_dist.metrics.prototypes import prototype_scores
from fsl_dist.notebook import html_table
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun
from index.base.files import pack_arrays, unpack_arrays, write_atomic

log = logging.getLogger(__name__)

Support: TypeAlias = str | os.PathLike[str] | Mapping[str, Sequence[ImageLike]]
"""a folder with one folder of images for each novel class, or the images of each by its name"""


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class with its score for an image."""

    name: str
    score: float
    """with a head: calibrated probability; otherwise for pcn: probability, for others: share of the votes; 0 … 1"""
    is_novel: bool
    """known from the support folder alone, or added without training"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best classes of one image."""

    image: str
    """its path, or `images[3]` for one in memory"""
    classes: list[ScoredClass]
    """best first"""


@dataclass(frozen=True, slots=True)
class PredictionReport(Sequence[Prediction]):
    """The best classes of each image: `report[0].classes[0].name`."""

    run: str
    predictions: list[Prediction]
    """one per readable image, in the given order"""
    failed: list[FailedImage]
    """the other images and support images"""
    head: str = ""
    """the head that predicted, such as `logistic c=0.1`; empty where the run has none"""

    @overload
    def __getitem__(self, position: int) -> Prediction: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Prediction]: ...
    def __getitem__(self, position: int | slice) -> Prediction | Sequence[Prediction]:
        return self.predictions[position]

    def __len__(self) -> int:
        return len(self.predictions)

    def _repr_html_(self) -> str:
        rows = [
            [prediction.image, scored.name, f"{scored.score:.4f}", "novel" if scored.is_novel else ""]
            for prediction in self
            for scored in prediction.classes
        ]
        rows += [[failed.image, failed.reason, "", "not read"] for failed in self.failed]
        return html_table(["image", "class", "score", ""], rows, caption=self.run)

    def to_json(self) -> dict:
        """The report as plain values."""
        return dataclasses.asdict(self)


def predict(
    trained: TrainedRun, images: Sequence[ImageLike], *, support: Support | None = None, k: int = 5
) -> PredictionReport:
    """Predict the `k` best classes of each image, by a run's best checkpoint.

    Images are decoded and transformed as in an evaluation. `support` contains the images of each novel class, in
    addition to classes that were added to the run. A run with a head (RUN/head.json) is scored by the head's
    calibrated probabilities, and novel classes are added as in `heads.joining`. Any other pcn run is scored by the
    softmax of its prototypes' class scores at the training temperature (PCN Eq. 1), with `novel_clusters` prototypes
    for novel classes. Any other method is scored by the share of votes among the K_p nearest training and support
    images (K_p as in the run's validation); classes without a vote follow in the order of their nearest member.

    Raises RequestError for a run on feature vectors, and for support without usable classes or with one of the run's
    training classes. Unreadable images are listed in `failed`.
    """
    if not isinstance(k, int | np.integer) or k < 1:
        raise RequestError(f"k={k} must be a whole number, at least 1")
    asked, novel = name_images(images), _list_support(support)
    config = trained.config
    if config.data.features:
        raise RequestError(
            f"{trained.run} was trained on data.features={config.data.features}; predict needs images"
        )
    names = trained.catalogue.class_names
    gallery = split_run(trained.catalogue, config).gallery
    known = sorted(set(novel) & {names[label] for label in gallery.labels.tolist()})
    if known:
        raise RequestError(
            f"{_place(support)}: class '{known[0]}' is one the run was trained on, {len(known)} classes in all; "
            "a novel class must be new (leave these classes out)"
        )
    again = [one.name for one in open_added(trained) if one.name in novel]
    if again:
        raise RequestError(
            f"{_place(support)}: class '{again[0]}' was already added to {trained.run} (leave it out, or "
            f"remove_class('{again[0]}') first)"
        )
    with ImageFiles(trained.embedder, config, trained.catalogue) as files:
        support_vectors, usable = files.embed([image for of_class in novel.values() for image in of_class])
        numbers = np.repeat(np.arange(len(novel)), [len(of_class) for of_class in novel.values()])[usable]
        for number, name in enumerate(novel):
            if number not in numbers:
                raise RequestError(f"{_place(support)}: no image of class '{name}' can be read")
        vectors, found = files.embed(asked)
        failed = files.failed
    ranked = rank(
        trained, vectors, {name: support_vectors[numbers == number] for number, name in enumerate(novel)}
    )
    predictions = [
        Prediction(asked[row].name, classes)
        for row, classes in zip(found.tolist(), ranked.best(k), strict=True)
    ]
    return PredictionReport(trained.run, predictions, failed, ranked.head)


@dataclass(frozen=True, slots=True)
class Ranked:
    """All classes of some images, best first."""

    names: list[str]
    """by label; those from `num_trained` on are novel"""
    num_trained: int
    labels: NDArray[np.int64]
    """int64 [n, C]: best first"""
    scores: NDArray[np.float64]
    """float64 [n, C]"""
    head: str
    """the head's name; empty where the run has none"""

    def best(self, k: int) -> list[list[ScoredClass]]:
        """The `k` best classes of each image."""
        return [
            [
                ScoredClass(self.names[label], float(value), label >= self.num_trained)
                for label, value in zip(labels[:k].tolist(), values[:k], strict=True)
            ]
            for labels, values in zip(self.labels, self.scores, strict=True)
        ]


def rank(
    trained: TrainedRun, vectors: NDArray[np.float32], novel: Mapping[str, NDArray[np.float32]]
) -> Ranked:
    """Rank all classes of a run, those added to it, and `novel` ones for images.

    Args:
        trained: the run.
        vectors: float32 [n, dim], embeddings of the images.
        novel: embeddings of each novel class's images by name, float32 [n_c, dim].

    Returns:
        Scores as described in `predict`.
    """
    trained_names = trained.catalogue.class_names
    known = {one.name: one.vectors for one in open_added(trained)} | dict(novel)
    labels = len(trained_names) + np.repeat(np.arange(len(known)), [len(images) for images in known.values()])
    support = np.concatenate([np.empty((0, trained.embedder.dim), np.float32), *known.values()])
    opened = open_head(trained)
    if opened is not None:
        order, scores = _score_by_head(trained, opened, vectors, support, labels)
    elif trained.config.method.traits.prototypes:
        order, scores = _score_by_prototypes(trained, vectors, support, labels)
    else:
        order, scores = _score_by_neighbours(trained, vectors, support, labels)
    head = "" if opened is None else opened[0].config.name
    return Ranked([*trained_names, *known], len(trained_names), order, scores, head)


def open_added(trained: TrainedRun) -> list[AddedClass]:
    """The classes that were added to a run.

    Raises RequestError where another network embedded one, or the run has now been trained on a class of its name.
    """
    added = read_classes(Path(trained.run))
    for one in added:
        if one.parameters != trained.parameters:
            raise RequestError(
                f"class '{one.name}' was added to {trained.run} at the checkpoint {one.parameters}; its best "
                f"checkpoint is now {trained.parameters} (remove_class('{one.name}') and add it again)"
            )
    return added


def _score_by_head(
    trained: TrainedRun,
    opened: tuple[Head, Embedded],
    vectors: NDArray[np.float32],
    support: NDArray[np.float32],
    support_labels: NDArray[np.int64],
) -> "Ranking":
    head, train = opened
    logits = trained.embedder.classify(vectors) if head.config.kind == "softmax" else None
    novel = np.unique(support_labels)
    labels = np.concatenate([head.classes, novel])
    if len(novel):
        base = BaseMeans.fit(train, head.classes)
        images = [support[support_labels == label] for label in novel]
        probabilities = join_novel(head, base, images, vectors, logits)
    else:
        probabilities = head.probabilities(vectors, logits)
    order = np.argsort(-probabilities, axis=1, kind="stable")
    return labels[order], np.take_along_axis(probabilities, order, axis=1)


def _list_support(support: Support | None) -> dict[str, list[NamedImage]]:
    """The images of each novel class by its name; RequestError if there is none, or for a class without images."""
    if support is None:
        return {}
    if isinstance(support, Mapping):
        found = [(name, name_images(images, f"support['{name}']")) for name, images in support.items()]
    else:
        folder = Path(support)
        if not folder.is_dir():
            raise RequestError(f"{_place(support)}: no such folder")
        folders = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
        found = [(path.name, name_images(_list_images(path))) for path in folders]
    named: dict[str, list[NamedImage]] = {}
    for name, images in found:
        named.setdefault(read_text(name), []).extend(images)
    if not named:
        raise RequestError(
            f"{_place(support)} contains no class folders (DIR/CLASS/IMAGE, one folder per novel class)"
        )
    for name, images in named.items():
        if not images:
            raise RequestError(
                f"{_place(support)}: class '{name}' contains no image ({' '.join(sorted(IMAGE_SUFFIXES))})"
            )
    return named


def _place(support: Support | None) -> str:
    """What errors call `support`."""
    return f"support={support}" if isinstance(support, str | os.PathLike) else "support"


def _list_images(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
    )


Ranking = tuple[NDArray[np.int64], NDArray[np.float64]]
"""labels [n, C], best first, and their scores [n, C]"""


def _score_by_prototypes(
    trained: TrainedRun,
    vectors: NDArray[np.float32],
    support: NDArray[np.float32],
    support_labels: NDArray[np.int64],
) -> Ranking:
    config = trained.config
    traits = config.method.traits.prototypes
    assert traits is not None
    prototypes = base_prototypes(trained)
    if len(support):
        novel = fit_prototypes(
            support,
            support_labels,
            config.novel_clusters,
            seed=config.run.seed,
            epoch=0,
            starts=config.evaluation.kmeans_runs,
        )
        prototypes = join(prototypes, novel)
    scores = prototype_scores(vectors, prototypes, traits.temperature)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    order = np.argsort(-scores, axis=1, kind="stable")
    return prototypes.labels[order], np.take_along_axis(probabilities, order, axis=1)


def base_prototypes(trained: TrainedRun) -> Prototypes:
    """Prototypes of the run's training classes, from RUN/evaluation/prototypes.npz if that file is still valid."""
    config = trained.config
    facts = json.dumps(
        {
            "parameters": trained.parameters,
            "catalogue": trained.catalogue.fingerprint,
            "clusters": config.base_clusters,
            "kmeans_runs": config.evaluation.kmeans_runs,
            "seed": config.run.seed,
        }
    )
    path = Path(config.run.dir) / "evaluation" / "prototypes.npz"
    try:
        stored = unpack_arrays(path)
        if str(stored["facts"]) == facts:
            return Prototypes(stored["means"], stored["mask"], stored["labels"])
    except (VersionError, KeyError):
        pass  # missing, or in another format than the one written below: compute them again
    log.info("computing prototypes of the training classes; they are cached in %s", path)
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    prototypes = fit_prototypes(
        gallery.vectors(0, gallery.num_vectors),
        gallery.labels,
        config.base_clusters,
        seed=config.run.seed,
        epoch=0,
        starts=config.evaluation.kmeans_runs,
    )
    packed = pack_arrays(facts=facts, means=prototypes.means, mask=prototypes.mask, labels=prototypes.labels)
    write_atomic(path, packed)
    return prototypes


def _score_by_neighbours(
    trained: TrainedRun,
    vectors: NDArray[np.float32],
    support: NDArray[np.float32],
    support_labels: NDArray[np.int64],
) -> Ranking:
    config = trained.config
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    k_p = config.validation_k_p
    nearest = find_nearest(
        vectors, gallery.vectors(0, gallery.num_vectors), gallery.labels, k_p, gallery.metric
    )
    if len(support):
        nearest = join_nearest(nearest, find_nearest(vectors, support, support_labels, k_p, gallery.metric))
    order, votes = rank_classes(nearest, k_p)
    return nearest.classes[order], votes / k_p
