"""From image files to classes: the nearest prototypes of a PCN run, the neighbours' vote of any other.

Novel classes come from folders of support images, by one forward pass. What is known of the base classes is made from
the run's training images when first needed and kept under RUN/evaluation.
"""

import dataclasses
import io
import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.embedder import Embedder
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.report import open_selection
from fsl_dist.image_files import FailedImage, ImageFiles
from fsl_dist.methods.prototypes import Prototypes, fit_prototypes, join
from fsl_dist.metrics.few_shot_knn import find_nearest, join_nearest, rank_classes
from fsl_dist.metrics.prototypes import prototype_scores
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun, open_trained
from index.base.files import write_atomic

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoredClass:
    """A class and how well it fits an image."""

    name: str
    score: float
    """pcn: probability; others: share of the votes; 0 … 1"""
    is_novel: bool
    """known from the support folder alone"""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The best classes of one image, best first."""

    image: str
    classes: list[ScoredClass]


@dataclass(frozen=True, slots=True)
class PredictionReport:
    """What `fsl-dist predict` prints."""

    run: str
    predictions: list[Prediction]
    """one an image that could be read, in the order asked for"""
    failed: list[FailedImage]
    """images asked for, and support images, that could not"""

    def to_json(self) -> dict:
        """The report as plain values."""
        return dataclasses.asdict(self)


def predict(
    run: Path, images: Sequence[Path], *, support: Path | None = None, top: int = 5
) -> PredictionReport:
    """The `top` best classes of each image file, by a run's best checkpoint.

    Images are decoded and transformed as in an evaluation. `support` holds one folder of images for each novel class. A run of
    pcn scores by the softmax of its prototypes' class scores at the training temperature (PCN Eq. 1), novel classes with
    `novel_clusters` prototypes; any other by the share of votes among the K_p nearest of training and support images (K_p as
    in the run's validation), classes without a vote following by their nearest member.

    Raises RequestError for a folder that is no run, a run on feature vectors, and a support folder without usable classes
    or with one of the run's training classes. An image that cannot be read is in `failed`.
    """
    novel_files = _list_support(support) if support is not None else {}
    trained = open_trained(run)
    config = trained.config
    if config.data.features:
        raise RequestError(f"{run} was trained on data.features={config.data.features}; predict takes images")
    names = trained.catalogue.class_names
    gallery = split_run(trained.catalogue, config).gallery
    known = sorted(set(novel_files) & {names[label] for label in gallery.labels.tolist()})
    if known:
        raise RequestError(
            f"--support {support}: class '{known[0]}' is one the run was trained on, {len(known)} classes in all; "
            "a novel class must be new (take these folders out)"
        )
    with ImageFiles(trained.embedder, config) as files:
        paths = [path for of_class in novel_files.values() for path in of_class]
        support_vectors, usable = _embed_files(files, trained.embedder, paths)
        labels = np.repeat(
            np.arange(len(names), len(names) + len(novel_files)),
            [len(of_class) for of_class in novel_files.values()],
        )[usable]
        for number, name in enumerate(novel_files):
            if len(names) + number not in labels:
                raise RequestError(f"--support {support}: no image of class '{name}' can be read")
        vectors, found = _embed_files(files, trained.embedder, images)
        failed = files.failed
    all_names = [*names, *novel_files]
    score = _score_by_prototypes if config.method.traits.prototypes else _score_by_neighbours
    order, scores = score(trained, vectors, support_vectors, labels)
    trained.embedder.source.close()
    predictions = [
        Prediction(
            str(images[row]),
            [
                ScoredClass(all_names[label], float(value), label >= len(names))
                for label, value in zip(best[:top].tolist(), values[:top], strict=True)
            ],
        )
        for row, best, values in zip(found.tolist(), order, scores, strict=True)
    ]
    return PredictionReport(str(run), predictions, failed)


def _list_support(support: Path) -> dict[str, list[Path]]:
    """Image files below each class folder of `support`, by name; RequestError where there is none, or one without images."""
    if not support.is_dir():
        raise RequestError(f"--support {support}: no such folder")
    folders = sorted(path for path in support.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not folders:
        raise RequestError(
            f"--support {support} holds no class folders (DIR/CLASS/IMAGE, one folder a novel class)"
        )
    files = {}
    for folder in folders:
        files[folder.name] = sorted(
            path for path in folder.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
        )
        if not files[folder.name]:
            raise RequestError(
                f"--support {support}: class folder '{folder.name}' holds no image "
                f"({' '.join(sorted(IMAGE_SUFFIXES))})"
            )
    return files


def _embed_files(
    files: ImageFiles, embedder: Embedder, paths: Sequence[Path]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Embeddings (float32 [n, dim]) of those files that are images, and which they are (int64 [n])."""
    vectors, usable = [np.empty((0, embedder.dim), dtype=np.float32)], []
    for rows, images in files.batches(paths):
        vectors.append(embedder.embed_images(images))
        usable += rows
    return np.concatenate(vectors), np.array(usable, dtype=np.int64)


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
    prototypes = _base_prototypes(trained)
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


def _base_prototypes(trained: TrainedRun) -> Prototypes:
    """Prototypes of the run's training classes, from RUN/evaluation/prototypes.npz where they are the same ones."""
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
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["facts"]) == facts:
                return Prototypes(stored["means"], stored["mask"], stored["labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not there, or not what is written below: made anew
    log.info("prototypes of the training classes are made and kept in %s", path)
    gallery = open_selection(trained, config, "gallery", split_run(trained.catalogue, config).gallery)
    prototypes = fit_prototypes(
        gallery.vectors(0, gallery.num_vectors),
        gallery.labels,
        config.base_clusters,
        seed=config.run.seed,
        epoch=0,
        starts=config.evaluation.kmeans_runs,
    )
    packed = io.BytesIO()
    np.savez(packed, facts=facts, means=prototypes.means, mask=prototypes.mask, labels=prototypes.labels)
    write_atomic(path, packed.getvalue())
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
