"""The evaluation protocols: each scores an opened run on its data set."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.embedder import SelectionIndex
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.fine_tune import evaluate_fine_tune
from fsl_dist.evaluation.mask_agreement import masked_ids, measure_agreement
from fsl_dist.methods.prototypes import Prototypes
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.metrics.clustering import ClusterProtocol, score_clusters
from fsl_dist.metrics.few_shot import largest_classes
from fsl_dist.metrics.few_shot_knn import evaluate_few_shot_knn
from fsl_dist.metrics.knn import knn_metrics, score_knn
from fsl_dist.metrics.prototypes import evaluate_prototypes
from fsl_dist.metrics.retrieval import (
    NO_GROUP,
    class_auc,
    evaluate_retrieval,
    find_neighbours,
    find_positive,
    relevance,
)
from fsl_dist.plugins import find_plugins, load_plugin
from fsl_dist.training.splits import RunSplits
from fsl_dist.training.trained import TrainedRun
from index import ShardedIndex

log = logging.getLogger(__name__)

METRICS = "fsl_dist.metrics"
"""group of the entry points that add protocols"""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """Shared results of several settings of one evaluation."""

    scores: dict[tuple, dict[str, float | Repeated]] = dataclasses.field(default_factory=dict)
    """by protocol and the settings that it reads"""
    base: dict[tuple[int, int], Prototypes] = dataclasses.field(default_factory=dict)
    """prototypes of the base classes, by clusters and starts of k-means"""


def score(
    name: str, trained: TrainedRun, config: RunConfig, splits: RunSplits, done: Done
) -> dict[str, float | Repeated]:
    match name:
        case "knn":
            return _score_knn(trained, config, splits)
        case "prototypes":
            return _score_prototypes(trained, config, splits, done.base)
        case "softmax":
            return _score_softmax(trained, config, splits)
        case "retrieval":
            return _score_retrieval(trained, config, splits)
        case "maps":
            return _score_maps(trained, config, splits)
        case "few_shot_knn":
            return _score_few_shot_knn(trained, config, splits)
        case "fine_tune":
            return _score_fine_tune(trained, config, splits)
        case "head":
            return _score_head(trained, splits)
        case "kmeans" | "spectral":
            return _score_clusters(name, trained, config, splits)
        case _:
            return _score_plugin(name, trained, config, splits)


def open_selection(trained: TrainedRun, config: RunConfig, name: str, selection: Selection) -> ShardedIndex:
    """Open the embeddings of a selection as the index RUN/evaluation/NAME;
    build it if it is missing or of another network.

    For the gallery, an index that was built elsewhere may be used (`TrainedRun.gallery`).
    """
    if name == "gallery" and trained.gallery is not None:
        return trained.gallery
    index = SelectionIndex(
        trained.embedder,
        trained.catalogue,
        selection,
        Path(config.run.dir) / trained.kept_in / name,
        group=WorkerGroup(),
        config=config.index,
        owner=None,
        reuse=True,
    )
    index.move_to(trained.parameters)
    return index.open()


def _score_knn(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> dict[str, float | Repeated]:
    gallery, _ = _open_compared(trained, config, splits)
    return dict(score_knn(gallery, *_queries(trained, config, splits), config.evaluation.k_p))


def _open_compared(
    trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> tuple[ShardedIndex, Selection]:
    """(index of the training images, the test images to compare with them); RequestError if there are none."""
    if splits.query is None:
        raise RequestError(f"data.dataset={config.data.dataset} has no test and no val split to query with")
    return open_selection(trained, config, "gallery", splits.gallery), splits.query


def _score_retrieval(
    trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    """`auc@k`; `rel@k` if the data set has groups; `ja` if it has masks and the network has activation maps.

    Omitted scores are logged with the reason.
    """
    gallery, query = _open_compared(trained, config, splits)
    catalogue, settings = trained.catalogue, config.evaluation
    vectors, labels = _queries(trained, config, splits)
    nearest = find_neighbours(gallery, vectors, settings.k)
    scores: dict[str, float | Repeated] = dict(
        evaluate_retrieval(
            gallery.labels_of(nearest),
            labels,
            classes=splits.gallery.labels,
            ks=settings.k,
            positive=find_positive(settings.positive_class, catalogue.class_names),
            class_names=catalogue.class_names,
        )
    )
    groups = np.asarray(catalogue.groups)
    if (groups[query.ids] != NO_GROUP).any():
        scores |= {f"rel@{k}": relevance(groups[nearest], groups[query.ids], k) for k in settings.k}
    else:
        log.info(
            "rel@k is left out: it counts neighbours of the query's own group, and no query of data.dataset=%s has one "
            "(method.kind=%s; %d classes, %d groups; pack(group_column=…) names groups)",
            config.data.dataset, config.method.kind, catalogue.num_classes, len(catalogue.group_names),
        )  # fmt: skip
    if len(masked_ids(catalogue, query)):
        try:
            scores |= measure_agreement(trained, config, gallery, query)
        except RequestError as error:
            log.info("ja is left out: %s", error)
    return scores


def _score_maps(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> dict[str, float | Repeated]:
    """Only `ja`; raises an error if it cannot be measured."""
    gallery, query = _open_compared(trained, config, splits)
    return dict(measure_agreement(trained, config, gallery, query))


def _score_plugin(
    name: str, trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    """`NAME/…`: the scores of a metric from another distribution (docs/how_to/new_metric.md)."""
    gallery, _ = _open_compared(trained, config, splits)
    measure = load_plugin(find_plugins(METRICS)[name], "protocol")
    found = measure(
        gallery.vectors(0, gallery.num_vectors), gallery.labels, *_queries(trained, config, splits)
    )
    if not isinstance(found, Mapping):
        raise RequestError(
            f"protocol={name} must return a mapping of names to numbers; it returned a {type(found).__name__}"
        )
    return {f"{name}/{score}": float(value) for score, value in found.items()}


def _score_softmax(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> dict[str, float | Repeated]:
    """`softmax/acc`, `softmax/mcr`, `softmax/rs`, `softmax/auc`: scores of the network's own classifier.

    An AUC needs queries of two classes, and is omitted otherwise.
    """
    if not config.method.traits.has_classifier:
        raise other_method("softmax", "cross_entropy", config)
    if splits.query is None:
        raise RequestError(f"data.dataset={config.data.dataset} has no test and no val split to classify")
    index = open_selection(trained, config, splits.query_split, splits.query)
    # Raw embeddings: with index.metric=cosine those of an index have length 1, but the classifier was trained on raw
    # ones.
    vectors, labels = index.vectors(0, index.num_vectors, as_given=True), index.labels
    logits = trained.embedder.classify(vectors).astype(np.float64)
    predictions = splits.train.labels[logits.argmax(axis=1)]
    scores = knn_metrics(
        predictions, labels, class_labels=splits.gallery.labels, class_counts=splits.gallery.counts
    )
    positive = find_positive(config.evaluation.positive_class, trained.catalogue.class_names)
    if positive is not None or len(np.unique(labels)) > 1:
        scores["auc"] = class_auc(
            softmax(logits, axis=1),
            splits.train.labels,
            labels,
            positive=positive,
            class_names=trained.catalogue.class_names,
        )
    return {f"softmax/{name}": value for name, value in scores.items()}


def _score_prototypes(
    trained: TrainedRun, config: RunConfig, splits: RunSplits, base: dict[tuple[int, int], Prototypes]
) -> dict[str, float | Repeated]:
    prototypes = config.method.traits.prototypes
    if prototypes is None:
        raise other_method("prototypes", "pcn", config)
    gallery = open_selection(trained, config, "gallery", splits.gallery)
    novel, novel_labels = (None, None) if splits.novel is None else _novel(trained, config, splits.novel)
    return evaluate_prototypes(
        gallery.vectors(0, gallery.num_vectors),
        gallery.labels,
        *_queries(trained, config, splits),
        novel,
        novel_labels,
        base_clusters=config.base_clusters,
        novel_clusters=config.novel_clusters,
        temperature=prototypes.temperature,
        config=config.evaluation,
        seed=config.run.seed,
        class_names=trained.catalogue.class_names,
        fitted=base,
    )


def _score_few_shot_knn(
    trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    novel = require_novel("few_shot_knn", config, splits)
    gallery = open_selection(trained, config, "gallery", splits.gallery)
    return evaluate_few_shot_knn(
        gallery.vectors(0, gallery.num_vectors),
        gallery.labels,
        *_queries(trained, config, splits),
        *_novel(trained, config, novel),
        config=config.evaluation,
        seed=config.run.seed,
        metric=gallery.metric,
        class_names=trained.catalogue.class_names,
    )


def _score_fine_tune(
    trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    if not config.method.traits.has_classifier:
        raise other_method("fine_tune", "cross_entropy", config)
    novel = require_novel("fine_tune", config, splits)
    return evaluate_fine_tune(trained, config, splits, novel)


def _score_head(trained: TrainedRun, splits: RunSplits) -> dict[str, float | Repeated]:
    """`head/acc`, `head/mcr`, `head/ece`: the head of RUN/head.json, fitted to all training images."""
    from fsl_dist.evaluation.run_head import score_run_head  # which opens selections by this module

    if splits.query is None:
        raise RequestError(
            f"data.dataset={trained.config.data.dataset} has no test and no val split to classify"
        )
    score = score_run_head(trained, splits.query_split, splits.query)
    return {"head/acc": score.acc, "head/mcr": score.mcr, "head/ece": score.ece}


def _score_clusters(
    protocol: ClusterProtocol, trained: TrainedRun, config: RunConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    if splits.query is None:
        raise RequestError(
            f"protocol={protocol} clusters the test images; data.dataset={config.data.dataset} has no test and no "
            "val split (pack(split=classes) creates one)"
        )
    index = open_selection(trained, config, splits.query_split, splits.query)
    return dict(score_clusters(protocol, index, config.evaluation, seed=config.run.seed))


def other_method(protocol: str, kind: str, config: RunConfig) -> RequestError:
    """The error for a run whose method does not support the protocol."""
    return RequestError(
        f"protocol={protocol} belongs to method.kind={kind}; {config.run.dir} has {config.method.kind}"
    )


def require_novel(protocol: str, config: RunConfig, splits: RunSplits) -> Selection:
    """The novel split; RequestError where the data set has none."""
    if splits.novel is None:
        raise RequestError(
            f"protocol={protocol} scores novel classes; data.dataset={config.data.dataset} has none "
            "(pack(split=base-novel) creates them; protocol=knn scores the others)"
        )
    return splits.novel


Vectors = tuple[NDArray[np.float32], NDArray[np.int64]]


def _queries(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> Vectors:
    """Embeddings and labels of the base classes' test images, in the order of ids; empty if there are none."""
    if splits.query is None:
        return np.empty((0, trained.embedder.dim), dtype=np.float32), np.empty(0, dtype=np.int64)
    return _vectors(trained, config, splits.query_split, splits.query)


def _novel(trained: TrainedRun, config: RunConfig, selection: Selection) -> Vectors:
    """Embeddings and labels of the images of the novel classes that `evaluation.novel_classes` selects."""
    vectors, labels = _vectors(trained, config, "novel", selection)
    kept = np.isin(labels, largest_classes(labels, config.evaluation))
    return vectors[kept], labels[kept]


def _vectors(trained: TrainedRun, config: RunConfig, name: str, selection: Selection) -> Vectors:
    index = open_selection(trained, config, name, selection)
    return index.vectors(0, index.num_vectors), index.labels
