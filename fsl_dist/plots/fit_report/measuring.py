"""The contents of the report, computed from the chosen candidate's embeddings and head within a time limit."""

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.ingest.duplicates import NearDuplicates, find_near_duplicates
from fsl_dist.data.ingest.inspection import summarise
from fsl_dist.data.ingest.near_pairs import read_fingerprints
from fsl_dist.data.store import ShardStore
from fsl_dist.evaluation.label_errors import columns_of, find_suspects, least_odds, predict_out_of_sample
from fsl_dist.heads.fitting import Embedded, Head
from fsl_dist.plots.fit_report.inputs import (
    DataFacts,
    FitFacts,
    Judged,
    LabelError,
    LabelFacts,
    Mistake,
    Mistakes,
    Near,
    NextFacts,
    Overview,
    Pair,
)
from fsl_dist.plots.fit_report.learning import measure_learning

_SHOWN_MISTAKES, _NEIGHBOURS = 16, 4
_SHOWN_PAIRS = 200
# Number of images that are decoded to estimate the time for comparing all of them.
_TRIED = 48


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chosen:
    """The chosen candidate, on the images that it is shown with."""

    head: Head
    """calibrated; temperature 1 if it was not"""
    train: Embedded
    """training images by its network"""
    scored: Embedded | None
    """embeddings of unseen images by its network: test, otherwise validation; None if there are none"""
    split: str
    """name of the split of `scored`"""


def measure_fit(
    overview: Overview,
    catalogue: Catalogue,
    chosen: Chosen,
    *,
    frozen: Embedded | None = None,
    near: NearDuplicates | None = None,
    seconds: float = 60.0,
    seed: int = 0,
) -> FitFacts:
    """Compute everything that the report shows.

    The cheap parts come first: scores, mistakes, exact copies. The learning curve, likely label errors and
    near-duplicates follow in the order of their usual cost, each within the rest of `seconds`; parts that do not fit
    are listed in `left_out`.

    Args:
        overview: the candidates and the choice.
        catalogue: the data set.
        chosen: the chosen candidate.
        frozen: training and validation images by the frozen backbone, for label errors; `groups` keeps images in one
            fold. None: label errors are left out.
        near: near-duplicates, if they were already found.
        seconds: time limit. Expensive parts are estimated before they start, so it is kept approximately.
        seed: of folds and draws.

    Raises:
        DataError: a shard is missing or truncated.
    """
    clock = Clock(seconds)
    judged = None if chosen.scored is None or not len(chosen.scored.ids) else _judge(chosen)
    mistakes = None if judged is None else _find_mistakes(chosen, judged)
    data = look_at_data(catalogue)
    curve: NextFacts | None = None
    if judged is None or chosen.scored is None:
        clock.leave_out("Confusion, mistakes and the learning curve: there are no test or validation images.")
    else:
        # At most half of the time: the two later parts are equally important.
        curve = measure_learning(
            chosen.head.config, chosen.train, chosen.scored, chosen.split, seconds=clock.left / 2, seed=seed
        )
        if curve is None:
            clock.leave_out(
                "The learning curve", "one fit of the head takes too long for the time that was left"
            )
    labels = None
    if frozen is None:
        clock.leave_out("Likely label errors: there are no embeddings by the frozen backbone.")
    elif clock.left <= 0:
        clock.leave_out("Likely label errors", "no time was left")
    else:
        labels = judge_labels(catalogue, frozen, clock.left / 2, seed)
        if labels is None:
            clock.leave_out(
                "Likely label errors", "comparing all images takes too long for the time that was left"
            )
    near = near or find_near(catalogue, clock)
    return FitFacts(
        catalogue=catalogue,
        overview=overview,
        data=data if near is None else with_near(data, catalogue, near),
        judged=judged,
        mistakes=mistakes,
        labels=labels,
        next=curve,
        left_out=tuple(clock.left_out),
    )


class Clock:
    """The rest of a time limit, and the parts that were left out."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        """Seconds, 0 or more."""
        return max(self._until - time.monotonic(), 0.0)

    def leave_out(self, what: str, why: str = "") -> None:
        """Record a missing part; with `why`, the time limit is the reason."""
        self.left_out.append(f"{what}: {why} (time limit: {self._seconds:.0f} s)." if why else what)


def _judge(chosen: Chosen) -> Judged:
    head, scored = chosen.head, chosen.scored
    assert scored is not None
    before = None
    if head.config.temperature != 1:
        before = head.with_temperature(1.0).probabilities(scored.vectors, scored.logits)
    counts = np.bincount(columns_of(chosen.train.labels, head.classes), minlength=len(head.classes))
    return Judged(
        split=chosen.split,
        ids=scored.ids,
        labels=scored.labels,
        classes=head.classes,
        probabilities=head.probabilities(scored.vectors, scored.logits),
        train_counts=counts,
        before=before,
    )


def _find_mistakes(chosen: Chosen, judged: Judged) -> Mistakes:
    scored, train, config = chosen.scored, chosen.train, chosen.head.config
    assert scored is not None
    predicted = judged.predicted
    confidence = judged.probabilities.max(axis=1)
    wrong = np.flatnonzero(predicted != judged.labels)
    shown = wrong[np.lexsort((judged.ids[wrong], -confidence[wrong]))][:_SHOWN_MISTAKES]
    columns = columns_of(judged.labels, judged.classes)
    metric = "l2" if config.kind in ("knn", "lmnn") and config.metric == "l2" else "cosine"
    if metric == "cosine" and not (
        train.vectors.any(axis=1).all() and scored.vectors[shown].any(axis=1).all()
    ):
        metric = "l2"  # a vector of zeros has no direction
    k = min(_NEIGHBOURS, len(train.ids))
    rows, distances = np.zeros((0, k), dtype=np.int64), np.zeros((0, k))
    if len(shown):
        rows, distances = _nearest(scored.vectors[shown], train.vectors, k, metric)
    found = [
        Mistake(
            id=int(judged.ids[row]),
            label=int(judged.labels[row]),
            predicted=int(predicted[row]),
            confidence=float(confidence[row]),
            own=float(judged.probabilities[row, columns[row]]) if columns[row] >= 0 else 0.0,
            neighbours=tuple(
                Near(id=int(train.ids[place]), label=int(train.labels[place]), distance=distance)
                for place, distance in zip(of_row.tolist(), far.tolist(), strict=True)
            ),
        )
        for row, of_row, far in zip(shown.tolist(), rows, distances, strict=True)
    ]
    measure = "Euclidean distance" if metric == "l2" else "cosine distance"
    return Mistakes(shown=tuple(found), number=len(wrong), measure=measure)


def _nearest(
    queries: NDArray[np.float32], gallery: NDArray[np.float32], k: int, metric: str
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(rows of the gallery, distances), [n, k]."""
    others, points = gallery.astype(np.float64), queries.astype(np.float64)
    if metric == "cosine":
        others /= np.linalg.norm(others, axis=1, keepdims=True)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
    squared = np.maximum((points**2).sum(1)[:, None] + (others**2).sum(1) - 2 * points @ others.T, 0.0)
    rows = np.argsort(squared, axis=1, kind="stable")[:, :k]
    found = np.take_along_axis(squared, rows, axis=1)
    # Of unit vectors: 1 − cosine = ‖x − y‖² / 2.
    return rows, found / 2 if metric == "cosine" else np.sqrt(found)


def look_at_data(catalogue: Catalogue) -> DataFacts:
    """Sizes and exact copies: of two files with equal CRC-32 and size, those to be shown are compared byte by byte."""
    where = catalogue.locate(np.arange(catalogue.num_samples))
    order = np.lexsort((np.arange(catalogue.num_samples), where.size, where.crc32))
    is_next = (np.diff(where.crc32[order].astype(np.int64)) == 0) & (np.diff(where.size[order]) == 0)
    starts = np.concatenate([[True], ~is_next]) if catalogue.num_samples else np.zeros(0, dtype=np.bool_)
    first = order[np.maximum.accumulate(np.where(starts, np.arange(len(order)), 0))]
    copies = [
        (one, other)
        for one, other in zip(first[~starts].tolist(), order[~starts].tolist(), strict=True)
        if catalogue.splits[one] != catalogue.splits[other]
        or catalogue.labels[one] != catalogue.labels[other]
    ]
    store, shown = ShardStore(catalogue), list[Pair]()
    try:
        for one, other in sorted(copies)[:_SHOWN_PAIRS]:
            (left, right), _ = store.read_compared(np.array([one, other]))
            if left == right:
                shown.append(Pair(min(one, other), max(one, other), 0, is_copy=True))
    finally:
        store.close()
    cells = catalogue.splits.astype(np.int64) * catalogue.num_classes + catalogue.labels
    counts = np.bincount(cells, minlength=len(SPLITS) * catalogue.num_classes)
    return DataFacts(
        summary=summarise(catalogue),
        counts=counts.reshape(len(SPLITS), -1),
        copies=tuple(shown),
        num_copies=int((~starts).sum()),
    )


def find_near(catalogue: Catalogue, clock: Clock) -> NearDuplicates | None:
    """Near-duplicates, where decoding all images fits into the time that is left."""
    tried = np.unique(np.linspace(0, catalogue.num_samples - 1, _TRIED).astype(np.int64))
    started = time.monotonic()
    if clock.left <= 0:
        clock.leave_out("Near-duplicates", "no time was left")
        return None
    read_fingerprints(catalogue, tried)
    needed = (time.monotonic() - started) / len(tried) * catalogue.num_samples
    if needed > clock.left:
        clock.leave_out("Near-duplicates", f"decoding all images takes about {needed:.0f} s")
        return None
    return find_near_duplicates(catalogue)


def with_near(data: DataFacts, catalogue: Catalogue, near: NearDuplicates) -> DataFacts:
    """`data` with the near-duplicates that are in different splits or classes; exact copies are already included."""
    id_of = {key: sample for sample, key in enumerate(catalogue.keys(np.arange(catalogue.num_samples)))}
    known = {(pair.first, pair.second) for pair in data.copies}
    found = []
    for pair in near.pairs:
        if pair.first_split == pair.second_split and pair.first_label == pair.second_label:
            continue
        first, second = sorted((id_of[pair.first], id_of[pair.second]))
        if (first, second) not in known:
            found.append(Pair(first, second, pair.distance, is_copy=False))
    return DataFacts(
        summary=data.summary,
        counts=data.counts,
        copies=data.copies,
        num_copies=data.num_copies,
        near=tuple(found[:_SHOWN_PAIRS]),
        num_near=(near.num_pairs, near.num_across_splits, near.num_across_classes),
    )


def judge_labels(catalogue: Catalogue, frozen: Embedded, seconds: float, seed: int) -> LabelFacts | None:
    classes = np.unique(frozen.labels)
    found = predict_out_of_sample(frozen, classes, seconds=seconds, seed=seed)
    if found is None:
        return None
    rows = np.flatnonzero(found.is_judged)
    ids, labels = frozen.ids[rows], columns_of(frozen.labels[rows], classes)
    probabilities = found.probabilities[rows]
    own_share = probabilities[np.arange(len(rows)), labels]
    suspects = find_suspects(probabilities, labels)
    own = np.full(catalogue.num_samples, np.nan)
    own[ids] = own_share
    return LabelFacts(
        errors=tuple(
            LabelError(
                id=int(ids[row]),
                label=int(classes[labels[row]]),
                suggested=int(classes[suggested]),
                probability=float(probabilities[row, suggested]),
                own=float(own_share[row]),
                is_confident=bool(is_confident),
            )
            for row, suggested, is_confident in zip(
                suspects.rows.tolist(),
                suspects.suggested.tolist(),
                suspects.is_confident.tolist(),
                strict=True,
            )
        ),
        odds=least_odds(len(classes)),
        acc=float((probabilities.argmax(axis=1) == labels).mean()) if len(rows) else 0.0,
        num_judged=len(rows),
        not_judged=tuple(np.unique(frozen.labels[~found.is_judged]).tolist()),
        method=found.head.name,
        own=own,
    )
