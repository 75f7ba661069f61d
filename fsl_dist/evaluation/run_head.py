"""The head of a run: chosen on its validation images, written to RUN/head.json,
and fitted to its training images when used."""

import dataclasses
import io
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.data.split import holdout
from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.heads.choosing import Choice, candidate_heads, choose, score_heads
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, Head, Linear, Neighbours, fit_head
from fsl_dist.heads.head_file import HEAD_FILE, read_head, write_head
from fsl_dist.heads.scoring import HeadScore, Metric, score_head
from fsl_dist.metrics.retrieval import NO_GROUP
from fsl_dist.training.splits import RunSplits, split_run
from fsl_dist.training.trained import TrainedRun
from index.base.files import write_atomic

log = logging.getLogger(__name__)

_HELD_OUT = 0.1


def embed_part(trained: TrainedRun, name: str, selection: Selection) -> Embedded:
    """Embed a selection in the form that heads use; the embeddings are cached under RUN/evaluation/NAME.

    The embeddings are the network's raw output, not normalised to length 1 even if `index.metric=cosine`.
    """
    index = open_selection(trained, trained.config, name, selection)
    vectors = np.asarray(index.vectors(0, index.num_vectors, as_given=True))
    has_classifier = trained.config.method.traits.has_classifier
    groups = np.asarray(trained.catalogue.groups)[index.ids]
    return Embedded(
        np.asarray(index.ids),
        vectors,
        np.asarray(index.labels),
        trained.embedder.classify(vectors) if has_classifier else None,
        groups if (groups != NO_GROUP).any() else None,
    )


def choose_run_head(trained: TrainedRun, metric: Metric = "mcr") -> Choice:
    """Score all applicable heads on the run's validation images, and write the best one to RUN/head.json.

    The heads are fitted to the training images without those held out for validation. The validation images are those
    of early stopping. An untrained network has seen no image, so a tenth of its training images is held out if it has
    none.

    Args:
        trained: the run.
        metric: criterion for the best head: mean class recall or accuracy.

    Returns:
        All heads and their scores, the best one first.

    Raises:
        RequestError: there are no validation images, or none of a class that was trained on.
    """
    splits = split_run(trained.catalogue, trained.config)
    train, validation = _validation_parts(trained, splits)
    if not np.isin(validation.labels, train.labels).any():
        raise RequestError(
            f"{trained.run} cannot choose a head: no validation image is of a class that was trained on "
            "(heads name classes of training; evaluate(protocol=kmeans) clusters unseen ones)"
        )
    choice = choose(score_heads(candidate_heads(train), train, validation, splits.gallery.labels), metric)
    write_head(Path(trained.run), choice.config)
    return choice


def _validation_parts(trained: TrainedRun, splits: RunSplits) -> tuple[Embedded, Embedded]:
    """(training images without the validation images, validation images)."""
    gallery = embed_part(trained, "gallery", splits.gallery)
    stop = splits.stop
    if stop is None or len(stop) == 0:
        if not trained.is_start and trained.config.training.epochs > 0:
            raise RequestError(
                f"{trained.run} has no validation images, on which a head is chosen (train with training.patience and "
                "data.holdout_fraction above 0, or on a data set with a val and a test split)"
            )
        groups = np.asarray(trained.catalogue.groups)
        _, stop = holdout(splits.gallery, groups, _HELD_OUT, trained.config.run.seed)
        if len(stop) == 0:
            raise RequestError(
                f"{trained.run} cannot choose a head: no class has a training image to hold out for validation "
                "(classes need two images or more)"
            )
    is_held_out = np.isin(gallery.ids, stop.ids)
    if is_held_out.any():
        return gallery.rows(~is_held_out), gallery.rows(is_held_out)
    return gallery, embed_part(trained, "val", stop)


def open_head(trained: TrainedRun) -> tuple[Head, Embedded] | None:
    """Return the head of RUN/head.json, fitted to all training images, and these images; None if there is no such file.

    An expensive fit is cached in RUN/evaluation/head.npz. Raises ConfigError if the file is damaged or does not fit
    the run.
    """
    run = Path(trained.run)
    config = read_head(run)
    if config is None:
        return None
    if config.kind == "softmax" and not trained.config.method.traits.has_classifier:
        raise ConfigError(
            f"{run / HEAD_FILE} has kind=softmax, which needs a classifier; {run} was trained with "
            f"method.kind={trained.config.method.kind}, which has none (choose_head() writes another head)"
        )
    gallery = split_run(trained.catalogue, trained.config).gallery
    if config.k_p > len(gallery):
        raise ConfigError(
            f"{run / HEAD_FILE} has k_p={config.k_p}; {run} has {len(gallery)} training images (choose_head() "
            "writes another head)"
        )
    train = embed_part(trained, "gallery", gallery)
    return _fit_kept(trained, config, train, gallery.labels), train


def _fit_kept(trained: TrainedRun, config: HeadConfig, train: Embedded, classes: NDArray[np.int64]) -> Head:
    """`fit_head`, or the cached fit in RUN/evaluation/head.npz for logistic regression or LMNN on the same images."""
    if config.kind not in ("logistic", "lmnn"):
        return fit_head(config, train, classes)
    facts = json.dumps(
        {
            "parameters": trained.parameters,
            "catalogue": trained.catalogue.fingerprint,
            "head": dataclasses.asdict(dataclasses.replace(config, temperature=1.0, novel_temperature=1.0)),
        }
    )
    path = Path(trained.run) / "evaluation" / "head.npz"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            if str(stored["facts"]) == facts:
                arrays = {name: stored[name] for name in stored.files if name != "facts"}
                if config.kind == "logistic":
                    return Head(config, classes, Linear(**arrays))
                return Head(
                    config,
                    classes,
                    Neighbours(arrays.pop("vectors"), train.labels, classes, "l2", config.k_p, **arrays),
                )
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile):
        pass  # missing, or in another format than the one written below: fit again
    head = fit_head(config, train, classes)
    kept = (
        ("weights", "biases", "centre", "scale")
        if config.kind == "logistic"
        else ("vectors", "transform", "centre")
    )
    packed = io.BytesIO()
    np.savez(packed, facts=facts, **{name: getattr(head.model, name) for name in kept})
    write_atomic(path, packed.getvalue())
    return head


def score_run_head(trained: TrainedRun, query_split: str, query: Selection) -> HeadScore:
    """The head of RUN/head.json on the queries of an evaluation.

    Raises RequestError where the run has no head.
    """
    opened = open_head(trained)
    if opened is None:
        raise RequestError(
            f"protocol=head scores the head of {Path(trained.run) / HEAD_FILE}, which is not there (choose_head() "
            "writes it)"
        )
    return score_head(opened[0], embed_part(trained, query_split, query))
