"""The report on a single run that was trained by hand: its best checkpoint against the network that it started from."""

from pathlib import Path
from typing import Literal

import numpy as np

from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.heads.calibrating import calibrate
from fsl_dist.heads.config import HeadConfig
from fsl_dist.heads.fitting import Embedded, Head, fit_head
from fsl_dist.heads.head_file import read_head
from fsl_dist.heads.scoring import HeadScore, compare, score_head
from fsl_dist.plots.fit_report.inputs import Candidate, Difference, Overview, Score
from fsl_dist.plots.fit_report.measuring import Chosen, measure_fit
from fsl_dist.plots.fit_report.page import write_fit_report
from fsl_dist.training.splits import RunSplits, split_run
from fsl_dist.training.trained import TrainedRun, open_start


def report_run(trained: TrainedRun, out: Path, *, seconds: float = 120.0) -> Path:
    """Write the report on a run: OUT/report.html and OUT/label_errors.csv.

    The run is scored by its head (RUN/head.json), by its classifier's softmax, or by a vote of neighbours. The
    network that it started from is used as the frozen backbone.

    Args:
        trained: the run, opened.
        out: folder, created if it is missing.
        seconds: time limit for everything but embedding images; parts that do not fit are listed in the report.

    Returns:
        The page.

    Raises:
        RequestError: the run is on feature vectors, its data set has no train split, or `out` is a file.
    """
    config = trained.config
    if out.exists() and not out.is_dir():
        raise RequestError(f"out={out} is a file; the report is written into a folder")
    if config.data.features:
        raise RequestError(
            f"{trained.run} was trained on data.features={config.data.features}; the report shows images"
        )
    splits = split_run(trained.catalogue, config)
    train = embed_selection(trained, "gallery", splits.gallery)
    scored = None if splits.query is None else embed_selection(trained, splits.query_split, splits.query)
    head = _fit(trained, train, splits)
    start = open_start(trained)
    frozen = None if start is None else embed_selection(start, "gallery", splits.gallery)
    candidates, differences = [Candidate(name=Path(trained.run).name, head=head.config.name)], []
    if scored is not None:
        own = score_head(head, scored)
        candidates = [_candidate(Path(trained.run).name, head, own, splits.query_split)]
        if start is not None and frozen is not None and not trained.is_start:
            plain = fit_head(_vote(trained, frozen), frozen, head.classes)
            other = score_head(plain, embed_selection(start, splits.query_split, _require(splits.query)))
            candidates.append(_candidate(_START, plain, other, splits.query_split, is_frozen=True))
            differences.append(_differ(own, other, splits.query_split))
    overview = Overview(
        dataset=Path(config.data.dataset).name,
        candidates=tuple(candidates),
        chosen=candidates[0].name,
        differences=tuple(differences),
        notes=("This is one run that was trained by hand: nothing was chosen among candidates.",),
        commands=(
            f'run = fsl_dist.open_run("{trained.run}")',
            'run.predict(["image.jpg"])',
            'run.explain(["image.jpg"], out="evidence")',
        ),
    )
    chosen = Chosen(head=head, train=train, scored=scored, split=splits.query_split)
    return write_fit_report(
        out, measure_fit(overview, trained.catalogue, chosen, frozen=frozen, seconds=seconds)
    )


_START = "the network it started from"


def embed_selection(trained: TrainedRun, name: str, selection: Selection) -> Embedded:
    """The embeddings of a selection, cached under the run like those of `evaluate`;
    with logits if there is a classifier."""
    index = open_selection(trained, trained.config, name, selection)
    ids, labels, vectors = index.ids, index.labels, index.vectors(0, index.num_vectors)
    logits = None
    if trained.config.method.traits.has_classifier and trained.embedder.network.classifier is not None:
        logits = trained.embedder.classify(vectors)
    catalogue = trained.catalogue
    groups = catalogue.units if catalogue.unit_names else catalogue.groups
    return Embedded(ids, vectors, labels, logits, groups[ids] if (groups[ids] >= 0).any() else None)


def _fit(trained: TrainedRun, train: Embedded, splits: RunSplits) -> Head:
    """The run's head; without a head file, one that is calibrated on the run's validation images."""
    classes = np.unique(train.labels)
    config = read_head(Path(trained.run))
    if config is not None:
        return fit_head(config, train, classes)
    config = _vote(trained, train)
    if train.logits is not None and train.logits.shape[1] == len(classes):
        config = HeadConfig(kind="softmax")
    if splits.stop is None or not len(splits.stop) or splits.query_split == "val":
        return fit_head(config, train, classes)
    held_out = np.isin(train.ids, splits.stop.ids)
    head = fit_head(config, train.rows(~held_out) if held_out.any() else train, classes)
    stop = train.rows(held_out) if held_out.any() else embed_selection(trained, "val", splits.stop)
    return fit_head(calibrate(config, head, stop), train, classes)


def _vote(trained: TrainedRun, train: Embedded) -> HeadConfig:
    """The vote of neighbours that the run was validated by."""
    metric: Literal["l2", "cosine"] = "l2" if trained.config.index.metric == "l2" else "cosine"
    return HeadConfig(kind="knn", metric=metric, k_p=min(trained.config.validation_k_p, len(train.ids)))


def _candidate(name: str, head: Head, found: HeadScore, split: str, *, is_frozen: bool = False) -> Candidate:
    score = Score(
        n=found.n,
        acc=found.acc,
        mcr=found.mcr,
        acc_interval=found.acc_interval,
        mcr_interval=found.mcr_interval,
    )
    return Candidate(
        name=name,
        head=head.config.name,
        test=score if split == "test" else None,
        validation=score if split != "test" else None,
        is_frozen=is_frozen,
    )


def _differ(own: HeadScore, other: HeadScore, split: str) -> Difference:
    acc, mcr = compare(own, other, "acc"), compare(own, other, "mcr")
    return Difference(
        against=_START,
        images="test" if split == "test" else "validation",
        acc=acc.difference,
        acc_interval=acc.interval,
        mcr=mcr.difference,
        mcr_interval=mcr.interval,
    )


def _require(selection: Selection | None) -> Selection:
    assert selection is not None  # the caller has scored it
    return selection
