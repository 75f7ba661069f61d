"""Which samples a run trains on, stops by and is scored with, and what that is called in its results."""

from dataclasses import dataclass

import numpy as np

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
    """all of the train split: the base classes' images that queries are compared with"""
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
    """Gallery = train; queries = test, else val; with val as queries, early stopping holds out part of train.

    What is held out divides no group; for a method that learns from groups, no unit (`Traits.kept_together`).

    Raises RequestError when there is no train split.
    """
    present = catalogue.split_names
    if "train" not in present:
        raise RequestError(
            f"data.dataset={config.data.dataset} has no train split (it has {', '.join(present) or 'no samples'}); "
            "pack(split=stratified) makes one, and so does pack(split_column=…) with a column that names train"
        )
    gallery = catalogue.select("train")
    train, stop = gallery, None
    if "test" in present and "val" in present:
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


def check_stop(splits: RunSplits, config: RunConfig) -> None:
    """Raise RequestError where the images kept for validation cannot be scored by the stop metric."""
    stop = splits.stop
    if stop is None or not splits.has_stop or config.training.patience == 0 or config.training.epochs == 0:
        return
    if config.stops_by_clusters:
        if stop.num_classes < 2:
            raise RequestError(
                f"training.stop_metric={config.stop_metric} clusters the images kept for validation and needs two classes of "
                f"them; there is {stop.num_classes} (training.patience=0 keeps the last epoch instead)"
            )
    elif not np.isin(stop.labels, splits.train.labels).any():
        raise RequestError(
            f"training.stop_metric={config.stop_metric} compares images with others of their class; none of the "
            f"{stop.num_classes} classes of the val split is among the {splits.train.num_classes} of train "
            "(training.stop_metric=kmeans/ca clusters them instead)"
        )
