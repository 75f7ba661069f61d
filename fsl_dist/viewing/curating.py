"""Images of a data set that a curator should look at: likely label errors, near-duplicates across splits or classes,
images unlike their class, and classes with few images.

The first two are the lists of the report on a fit (`plots.fit_report`).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.plots.fit_report.inputs import Pair
from fsl_dist.plots.fit_report.measuring import Clock, find_near, judge_labels, look_at_data, with_near
from fsl_dist.plots.fit_report.of_run import embed_selection
from fsl_dist.training.splits import RunSplits, split_run
from fsl_dist.training.trained import TrainedRun, open_start, open_trained
from fsl_dist.viewing.familiarity import cost_of

Kind = Literal["label", "duplicate", "unlike", "thin"]
KINDS: tuple[Kind, ...] = ("label", "duplicate", "unlike", "thin")

_MOST_ITEMS = 200
# A class with fewer training images is thin, and too small to say which of them is unlike the others.
_THIN = 5
_IMAGES_OF_A_CLASS = 3
# Robust standard deviations above the median distance of a class; of a normal distribution, 3 in 10 million exceed 5.
_UNLIKE_DEVIATIONS = 5.0
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A reason to look at an image."""

    sample: int
    """id of the image"""
    kind: Kind
    reason: str
    """one sentence"""
    suggested: str = ""
    """name of another class for it; empty: none"""
    partner: int = -1
    """id of an image to compare it with; −1: none"""


@dataclass(frozen=True, slots=True)
class Suspicions:
    """All lists."""

    items: dict[Kind, list[Suspicion]]
    """at most 200 of each kind, the most suspicious first"""
    numbers: dict[Kind, int]
    """how many there are of each kind"""
    left_out: tuple[str, ...] = ()
    """sentences on what was not computed, and why"""


def find_suspicions(run: Path, *, seconds: float) -> Suspicions:
    """Open a run and compute all lists.

    Args:
        run: folder of the run, which is opened separately, so that a thread of its own can work.
        seconds: approximate time limit of label errors and near-duplicates, without embedding; lists that do not fit
            are named in `left_out`.
    """
    trained = open_trained(run)
    try:
        return _find(trained, Clock(seconds))
    finally:
        trained.close()


def _find(trained: TrainedRun, clock: Clock) -> Suspicions:
    catalogue, splits = trained.catalogue, split_run(trained.catalogue, trained.config)
    found: dict[Kind, list[Suspicion]] = {
        "label": _find_label_errors(trained, splits, clock),
        "duplicate": _find_duplicates(catalogue, clock),
        "unlike": _find_unlike(trained, splits),
        "thin": _find_thin(catalogue, splits),
    }
    return Suspicions(
        {kind: items[:_MOST_ITEMS] for kind, items in found.items()},
        {kind: len(items) for kind, items in found.items()},
        tuple(clock.left_out),
    )


def _find_label_errors(trained: TrainedRun, splits: RunSplits, clock: Clock) -> list[Suspicion]:
    """Labels that are contradicted by a classifier on the features of the network before training."""
    start = open_start(trained)
    if start is None:
        clock.leave_out("Likely label errors: the run has no checkpoint of its start")
        return []
    frozen = embed_selection(start, "gallery", splits.gallery)
    facts = judge_labels(trained.catalogue, frozen, clock.left / 2, seed=0)
    if facts is None:
        clock.leave_out("Likely label errors", "comparing all images takes too long")
        return []
    name = trained.catalogue.label_name
    return [
        Suspicion(
            error.id,
            "label",
            f"{name(error.suggested)} has {error.probability * 100:.0f} % and its label {error.own * 100:.1f} %, "
            "by images in other folds.",
            suggested=name(error.suggested),
        )
        for error in facts.errors
    ]


def _find_duplicates(catalogue: Catalogue, clock: Clock) -> list[Suspicion]:
    """Copies and near-duplicates in different splits or classes; the one outside the train split is listed."""
    data = look_at_data(catalogue)
    near = find_near(catalogue, clock)
    if near is not None:
        data = with_near(data, catalogue, near)
    return [_suspect_pair(pair, catalogue) for pair in (*data.copies, *(data.near or ()))]


def _suspect_pair(pair: Pair, catalogue: Catalogue) -> Suspicion:
    # Ids are in the order of splits, train first: the later one is the leak into another split.
    one, other = pair.second, pair.first
    splits = [SPLITS[catalogue.splits[sample]] for sample in (one, other)]
    names = [catalogue.label_name(int(catalogue.labels[sample])) for sample in (one, other)]
    what = "The same file" if pair.is_copy else f"Nearly the same picture ({pair.bits} of 64 bits differ)"
    where = f"is in {splits[1]}" if splits[0] != splits[1] else f"is in {splits[0]} too"
    labelled = f", labelled {names[1]}" if names[0] != names[1] else ""
    suggested = names[1] if labelled else ""
    return Suspicion(one, "duplicate", f"{what} {where}{labelled}.", suggested=suggested, partner=other)


def _find_unlike(trained: TrainedRun, splits: RunSplits) -> list[Suspicion]:
    """Training images that are much farther from the next image of their class than others of that class are.

    By the trained network, whose distances the answers use.
    """
    index = open_selection(trained, trained.config, "gallery", splits.gallery)
    labels, ids = np.asarray(index.labels), np.asarray(index.ids)
    counts = np.bincount(labels)
    rows = np.flatnonzero(counts[labels] >= _THIN)
    if len(rows) == 0:
        return []
    vectors = np.asarray(index.vectors(0, index.num_vectors, as_given=True))[rows]
    result = index.search(vectors, 1, same_class=labels[rows], query_ids=ids[rows])
    costs = cost_of(index, result.exact_distances[:, 0])
    far = np.sqrt(costs) if index.metric == "l2" else costs
    deviations = _deviations(far, labels[rows])
    order = np.lexsort((rows, -deviations))
    order = order[deviations[order] > _UNLIKE_DEVIATIONS]
    return [
        Suspicion(
            int(ids[rows[row]]),
            "unlike",
            f"The next image of its class is {deviations[row]:.0f} robust standard deviations farther than usual.",
            partner=int(result.ids[row, 0]),
        )
        for row in order.tolist()
    ]


def _deviations(values: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """How far each value is above the median of its class, in robust standard deviations: float64 [n]."""
    found = np.zeros(len(values))
    for label in np.unique(labels):
        members = labels == label
        above = values[members] - np.median(values[members])
        spread = _MAD_TO_DEVIATION * np.median(np.abs(above))
        found[members] = above / spread if spread > 0 else 0.0
    return found


def _find_thin(catalogue: Catalogue, splits: RunSplits) -> list[Suspicion]:
    """A few images of each class with fewer than 5 training images, the smallest class first."""
    found = []
    for place in np.argsort(splits.gallery.counts, kind="stable").tolist():
        count = int(splits.gallery.counts[place])
        if count >= _THIN:
            break
        images = "one training image" if count == 1 else f"{count} training images"
        name = catalogue.label_name(int(splits.gallery.labels[place]))
        found += [
            Suspicion(int(sample), "thin", f"{name} has only {images}.")
            for sample in splits.gallery.of_class(place)[:_IMAGES_OF_A_CLASS]
        ]
    return found
