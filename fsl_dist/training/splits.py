"""Which samples a run trains on, stops by and is scored with, and what that is called in its results."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.selection import Selection
from fsl_dist.data.split import holdout
from fsl_dist.errors import RequestError


@dataclass(frozen=True, slots=True)
class RunSplits:
    """The selections of one run."""

    train: Selection
    """what the loss sees"""
    stop: Selection | None
    """what early stopping is decided on; None = the run cannot validate"""
    gallery: Selection
    """all of the train split, and of val where that is trained on: the base classes' images that queries are compared with"""
    query: Selection | None
    """test, else val; None = the data set has neither"""
    query_split: str
    """name of the split of `query`, empty when there is none"""
    novel: Selection | None
    """classes never trained on"""

    @property
    def has_stop(self) -> bool:
        """Whether validation is possible."""
        return self.stop is not None and len(self.stop) > 0

    @property
    def has_unseen_queries(self) -> bool:
        """Whether there are queries, and none is of a class that was trained on."""
        return self.query is not None and not np.isin(self.query.labels, self.gallery.labels).any()


def split_run(catalogue: Catalogue, config: RunConfig) -> RunSplits:
    """Gallery = train, and val where it is trained on; queries = test, else val; without a free val, early stopping holds out
    part of the gallery.

    What is held out divides no group; for a method that learns from groups, no unit (`Traits.kept_together`).

    Raises RequestError where there is no train split, or no val and test split with data.train_on_val.
    """
    present = catalogue.split_names
    if "train" not in present:
        raise RequestError(
            f"data.dataset={config.data.dataset} has no train split (it has {', '.join(present) or 'no samples'}); "
            "pack(split=stratified) makes one, and so does pack(split_column=…) with a column that names train"
        )
    gallery = catalogue.select("train")
    if config.data.train_on_val:
        gallery = _join_val(catalogue, gallery, config)
    train, stop = gallery, None
    if "test" in present and "val" in present and not config.data.train_on_val:
        stop = catalogue.select("val")
    elif config.data.holdout_fraction > 0 and config.training.patience > 0:
        undivided = catalogue.units if config.method.traits.kept_together == "unit" else catalogue.groups
        train, stop = holdout(gallery, np.asarray(undivided), config.data.holdout_fraction, config.run.seed)
    query_split = next((split for split in ("test", "val") if split in present), "")
    return RunSplits(
        train=train,
        stop=stop,
        gallery=gallery,
        query=catalogue.select(query_split) if query_split else None,
        query_split=query_split,
        novel=catalogue.select("novel") if "novel" in present else None,
    )


def _join_val(catalogue: Catalogue, train: Selection, config: RunConfig) -> Selection:
    """The train split, and the images of its classes in the val split."""
    if not {"val", "test"} <= set(catalogue.split_names):
        raise RequestError(
            f"data.train_on_val=true needs a val and a test split; data.dataset={config.data.dataset} has "
            f"{', '.join(catalogue.split_names)} (leave it out: what is held out of train is set by data.holdout_fraction)"
        )
    val = catalogue.select("val")
    val = val.keep_classes(np.isin(val.labels, train.labels))
    return Selection.from_labels(
        np.concatenate([train.ids, val.ids]), np.concatenate([train.sample_labels, val.sample_labels])
    )


def check_classes(splits: RunSplits, config: RunConfig, class_names: Sequence[str]) -> None:
    """Raise RequestError where the training images teach a method nothing: they are of one class, or no two of one class.

    A network that is not trained (training.epochs=0) may have any images.
    """
    if config.training.epochs == 0:
        return
    train = splits.gallery  # what is held out of it takes no class away
    if train.num_classes != 1:
        _check_pairs(splits, config)
        return
    raise RequestError(
        f"data.dataset={config.data.dataset} has {len(train)} training images of one class, "
        f"'{class_names[int(train.labels[0])]}'; method.kind={config.method.kind} learns to tell classes apart and needs two or "
        "more (pack a folder with one folder for each class; training.epochs=0 uses the network as it is)"
    )


def _check_pairs(splits: RunSplits, config: RunConfig) -> None:
    """Raise RequestError where a method that compares images of a class has no class with two."""
    train = splits.train
    learns_from_groups = config.method.traits.kept_together == "unit"  # and looks for its pairs itself
    if not _needs_pairs(config) or learns_from_groups or (train.counts > 1).any():
        return
    held_out = 0 if splits.stop is None or len(splits.gallery) == len(train) else len(splits.stop)
    after = f" once {held_out} are held out for validation" if held_out else ""
    way_out = (
        "training.patience=0 holds none out" if held_out else "method.kind=cross_entropy takes such classes"
    )
    raise RequestError(
        f"data.dataset={config.data.dataset} has one training image of each of its {train.num_classes} classes{after}; "
        f"method.kind={config.method.kind} compares images of a class and needs a class with two ({way_out}; more images for "
        "each class)"
    )


def _needs_pairs(config: RunConfig) -> bool:
    """Whether an image teaches only with another of its class: classifiers need none, episodes have a rule of their own."""
    traits = config.method.traits
    return not traits.has_classifier and not traits.is_episodic


def describe_gaps(splits: RunSplits, config: RunConfig, class_names: Sequence[str]) -> list[str]:
    """What the classes' sizes cost a run that can be trained: a sentence for each gap, for warnings."""
    train, stop = splits.train, splits.stop
    if config.training.epochs == 0:
        return []
    gaps = []
    lone = train.labels[train.counts == 1]
    if len(lone) and _needs_pairs(config):
        gaps.append(
            f"{len(lone)} of {train.num_classes} classes have one training image ({_name_some(lone, class_names)}); it has no "
            f"other image of its class, so method.kind={config.method.kind} uses it only as an image of another class"
        )
    if config.training.patience == 0:
        return gaps
    if stop is None or not splits.has_stop:
        gaps.append(NO_VALIDATION)
    elif not config.stops_by_clusters:
        unseen = train.labels[~np.isin(train.labels, stop.labels)]
        if len(unseen):
            gaps.append(
                f"{len(unseen)} of {train.num_classes} classes have no image for validation "
                f"({_name_some(unseen, class_names)}); {config.stop_metric} scores the other classes only"
            )
    return gaps


NO_VALIDATION = (
    "there are no images for validation, so the last epoch is kept and nothing is compared with the start "
    "(data.holdout_fraction above 0 keeps some where classes have two images or more)"
)


def _name_some(labels: NDArray[np.int64], class_names: Sequence[str], most: int = 5) -> str:
    names = [f"'{class_names[int(label)]}'" for label in labels[:most]]
    return ", ".join(names) + (f" and {len(labels) - most} more" if len(labels) > most else "")


def check_stop(splits: RunSplits, config: RunConfig) -> None:
    """Raise RequestError where the images kept for validation cannot be scored by the stop metric.

    A run that does not train (training.epochs=0) is not validated then (`decides`).
    """
    problem = _find_stop_problem(splits, config)
    if problem and config.training.patience > 0 and config.training.epochs > 0:
        raise RequestError(problem)


def decides(splits: RunSplits, config: RunConfig) -> bool:
    """Whether validations choose the run's best checkpoint and end it."""
    return config.training.patience > 0 and splits.has_stop and not _find_stop_problem(splits, config)


def _find_stop_problem(splits: RunSplits, config: RunConfig) -> str:
    """Why the stop metric cannot score the images kept for validation; empty where it can, or where there are none."""
    stop = splits.stop
    if stop is None or not splits.has_stop:
        return ""
    if config.stops_by_clusters:
        if stop.num_classes < 2:
            return (
                f"training.stop_metric={config.stop_metric} clusters the images kept for validation and needs two classes of "
                f"them; there is {stop.num_classes} (training.patience=0 keeps the last epoch instead)"
            )
    elif not np.isin(stop.labels, splits.train.labels).any():
        return (
            f"training.stop_metric={config.stop_metric} compares images with others of their class; none of the "
            f"{stop.num_classes} classes of the val split is among the {splits.train.num_classes} of train "
            "(training.stop_metric=kmeans/ca clusters them instead)"
        )
    return ""
