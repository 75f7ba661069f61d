"""The selections of a run for training, early stopping and scoring, with their names in its results."""

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
    """the images that the loss uses"""
    stop: Selection | None
    """what early stopping is decided on; None = the run cannot validate"""
    gallery: Selection
    """images of base classes that queries are compared with: all of the train split, and of val if it is trained on"""
    query: Selection | None
    """test, otherwise val; None if the data set has neither"""
    query_split: str
    """name of the split of `query`, empty if there is none"""
    novel: Selection | None
    """classes never trained on"""

    @property
    def has_stop(self) -> bool:
        """Whether validation is possible."""
        return self.stop is not None and len(self.stop) > 0

    @property
    def has_unseen_queries(self) -> bool:
        """Whether there are queries, none of them of a class that was trained on."""
        return self.query is not None and not np.isin(self.query.labels, self.gallery.labels).any()


def split_run(catalogue: Catalogue, config: RunConfig) -> RunSplits:
    """Choose the selections: gallery = train, and val if it is trained on; queries = test, otherwise val; without a
    separate val split, early stopping holds out a part of the gallery.

    The held-out part divides no group, or no unit for a method that learns from groups (`Traits.kept_together`).

    Raises RequestError if there is no train split, or if data.train_on_val is set and val or test is missing.
    """
    present = catalogue.split_names
    if "train" not in present:
        raise RequestError(
            f"data.dataset={config.data.dataset} has no train split (it has {', '.join(present) or 'no samples'}); "
            "pack(split=stratified) creates one, and so does pack(split_column=…) with a column that contains train"
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
    """Raise RequestError if a method cannot learn from the training images: they are of one class, or no class has
    two of them.

    A network that is not trained (training.epochs=0) may have any images.
    """
    if config.training.epochs == 0:
        return
    train = splits.gallery  # holding out a part of it removes no class
    if train.num_classes != 1:
        _check_pairs(splits, config)
        return
    raise RequestError(
        f"data.dataset={config.data.dataset} has {len(train)} training images of one class, "
        f"'{class_names[int(train.labels[0])]}'; method.kind={config.method.kind} learns to distinguish classes "
        "and needs two or more (pack a folder with one folder for each class; training.epochs=0 uses the network "
        "as it is)"
    )


def _check_pairs(splits: RunSplits, config: RunConfig) -> None:
    """Raise RequestError if a method that compares images of a class has no class with two."""
    train = splits.train
    learns_from_groups = config.method.traits.kept_together == "unit"  # such a method checks its pairs itself
    if not _needs_pairs(config) or learns_from_groups or (train.counts > 1).any():
        return
    held_out = 0 if splits.stop is None or len(splits.gallery) == len(train) else len(splits.stop)
    after = f" once {held_out} are held out for validation" if held_out else ""
    way_out = (
        "training.patience=0 holds none out"
        if held_out
        else "method.kind=cross_entropy supports such classes"
    )
    raise RequestError(
        f"data.dataset={config.data.dataset} has one training image of each of its {train.num_classes} classes{after}; "
        f"method.kind={config.method.kind} compares images of a class and needs a class with two ({way_out}; more "
        "images for each class)"
    )


def _needs_pairs(config: RunConfig) -> bool:
    """Whether an image is useful only with another of its class:
    classifiers need none, episodes have their own rule."""
    traits = config.method.traits
    return not traits.has_classifier and not traits.is_episodic


def describe_gaps(splits: RunSplits, config: RunConfig, class_names: Sequence[str]) -> list[str]:
    """The effects of class sizes on a run that can be trained: a sentence per gap, for warnings."""
    train, stop = splits.train, splits.stop
    if config.training.epochs == 0:
        return []
    gaps = []
    lone = train.labels[train.counts == 1]
    if len(lone) and _needs_pairs(config):
        gaps.append(
            f"{len(lone)} of {train.num_classes} classes have one training image "
            f"({_name_some(lone, class_names)}); it has no "
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
    """Raise RequestError if the stop metric cannot score the validation images.

    A run that does not train (training.epochs=0) is not validated in that case (`decides`).
    """
    problem = _find_stop_problem(splits, config)
    if problem and config.training.patience > 0 and config.training.epochs > 0:
        raise RequestError(problem)


def decides(splits: RunSplits, config: RunConfig) -> bool:
    """Whether validations choose the run's best checkpoint and end it."""
    return config.training.patience > 0 and splits.has_stop and not _find_stop_problem(splits, config)


def _find_stop_problem(splits: RunSplits, config: RunConfig) -> str:
    """Why the stop metric cannot score the validation images; empty if it can, or if there are none."""
    stop = splits.stop
    if stop is None or not splits.has_stop:
        return ""
    if config.stops_by_clusters:
        if stop.num_classes < 2:
            return (
                f"training.stop_metric={config.stop_metric} clusters the validation images and needs two of their "
                f"classes; there is {stop.num_classes} (training.patience=0 keeps the last epoch instead)"
            )
    elif not np.isin(stop.labels, splits.train.labels).any():
        return (
            f"training.stop_metric={config.stop_metric} compares images with others of their class; none of the "
            f"{stop.num_classes} classes of the val split is among the {splits.train.num_classes} of train "
            "(training.stop_metric=kmeans/ca clusters them instead)"
        )
    return ""
