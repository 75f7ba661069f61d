"""A run's scores: its embedding made once, and every protocol it has measured on it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fsl_dist.config import RunConfig
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.protocols import METRICS, Done, score
from fsl_dist.indexing import check_gallery
from fsl_dist.metrics.class_scores import Repeated
from fsl_dist.metrics.config import PROTOCOLS, EvaluationConfig
from fsl_dist.notebook import html_table
from fsl_dist.plugins import find_plugins
from fsl_dist.training.splits import RunSplits, split_run
from fsl_dist.training.trained import TrainedRun, open_start, open_trained
from index import ShardedIndex


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationReport(Mapping[str, float | Repeated]):
    """The scores of a run by their names: `report["knn/acc@5"]`."""

    run: str
    dataset: str
    split: str
    """split of the base classes' queries: test, otherwise val"""
    metrics: dict[str, float | Repeated]
    """fractions in 0 … 1; `rel@k` is a number of images, 0 … k"""
    start: dict[str, float | Repeated] = dataclasses.field(default_factory=dict)
    """scores of `SCORED_AT_START` for the network before its first step; empty if the run has no start checkpoint"""

    def __getitem__(self, name: str) -> float | Repeated:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __len__(self) -> int:
        return len(self.metrics)

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.items())
        return f"EvaluationReport('{self.run}' on '{self.dataset}': {scores})"

    def _repr_html_(self) -> str:
        columns = {"value": self.metrics, "start": self.start} if self.start else {"value": self.metrics}
        rows = [
            [name, *(f"{scores[name]:.4f}" if name in scores else "" for scores in columns.values())]
            for name in self
        ]
        return html_table(["metric", *columns], rows, caption=f"{self.run} on {self.dataset} ({self.split})")

    def to_json(self) -> dict:
        """The report as plain values; a repeated score is {"mean", "std", "n"}."""
        return dataclasses.asdict(self)


def evaluate_run(
    run: Path,
    *,
    protocol: str | None = None,
    settings: EvaluationConfig | None = None,
    gallery: ShardedIndex | None = None,
) -> EvaluationReport:
    """Score a run's best checkpoint on its data set.

    Embeddings are kept under RUN/evaluation, so that scoring again with other settings embeds nothing.

    Args:
        protocol: one of `PROTOCOLS`, or None for the method's default (`Traits.protocols`), which is replaced by
            `kmeans` and `spectral` if no query is of a class that was trained on. All others must be selected by name.
        settings: override the run's `evaluation.*`.
        gallery: the index that `index build RUN DATASET` made of the training images, opened here or as Ray actors.

    Raises:
        RequestError: the data set has nothing to score, the method does not support the protocol, or `gallery` was
            made with another network or other data, or was changed since.
    """
    trained = open_trained(run)
    try:
        (report,) = evaluate_settings(trained, [settings], protocol=protocol, gallery=gallery)
    finally:
        trained.close()
    return report


def evaluate_settings(
    trained: TrainedRun,
    settings: Sequence[EvaluationConfig | None],
    *,
    protocol: str | None = None,
    gallery: ShardedIndex | None = None,
) -> list[EvaluationReport]:
    """`evaluate_run` under each of `settings`, with the same scores: the run is opened once, and what does not depend
    on what differs between two settings is computed once."""
    known = (*PROTOCOLS, *find_plugins(METRICS))
    if protocol not in (None, *known):
        raise RequestError(f"protocol={protocol} must be one of {', '.join(known)}")
    splits = split_run(trained.catalogue, trained.config)
    if gallery is not None:
        check_gallery(gallery, trained, splits.gallery)
        trained = dataclasses.replace(trained, gallery=gallery)
    done = Done()
    reports = []
    for evaluation in settings:
        config = trained.config
        if evaluation is not None:
            config = dataclasses.replace(config, evaluation=evaluation)
        scores: dict[str, float | Repeated] = {}
        for name in [protocol] if protocol else _default_protocols(config, splits):
            key = (name, *(getattr(config.evaluation, field) for field in _READ_BY.get(name, ())))
            if key not in done.scores:
                done.scores[key] = score(name, trained, config, splits, done)
            scores |= done.scores[key]
        if not scores:
            raise RequestError(
                f"data.dataset={config.data.dataset} has no test, val or novel split to score {trained.run} on"
            )
        reports.append(EvaluationReport(trained.run, config.data.dataset, splits.query_split, scores))
    return reports


SCORED_AT_START = ("knn", "prototypes", "few_shot_knn", "kmeans", "spectral")
"""protocols that use only embeddings: the classifier of an untrained network has random weights"""


def with_start(
    report: EvaluationReport, trained: TrainedRun, *, protocol: str | None, settings: EvaluationConfig
) -> EvaluationReport:
    """Return `report` with the scores of the network that `trained` started from in `start`.

    protocol, settings: those of `report`. The first call embeds the images with the start network too, which takes
    the same time again; the embeddings are kept under RUN/evaluation/start. If the run has no start checkpoint,
    because it did not validate or was trained by an earlier version, `report` is returned unchanged.
    """
    config = dataclasses.replace(trained.config, evaluation=settings)
    splits = split_run(trained.catalogue, config)
    names = [protocol] if protocol else _default_protocols(config, splits)
    names = [name for name in names if name in SCORED_AT_START]
    start = open_start(trained) if names else None
    if start is None:
        return report
    done = Done()
    scores: dict[str, float | Repeated] = {}
    for name in names:
        scores |= score(name, start, config, splits, done)
    return dataclasses.replace(report, start=scores)


_NOVEL = ("novel_classes", "novel_shots", "novel_test", "draws")
_READ_BY: dict[str, tuple[str, ...]] = {
    "knn": ("k_p",),
    "prototypes": (*_NOVEL, "delta_tau", "base_clusters", "novel_clusters", "kmeans_runs"),
    "softmax": ("positive_class",),
    "retrieval": ("k", "positive_class", "mask_above"),
    "maps": ("mask_above",),
    "few_shot_knn": (*_NOVEL, "k_p"),
    "fine_tune": (*_NOVEL, "fine_tune_epochs"),
    "kmeans": ("num_clusters", "clustering_runs"),
    "spectral": ("num_clusters", "clustering_runs", "spectral_neighbors", "kmeans_runs"),
}
"""the `evaluation.*` settings that a protocol's scores depend on"""


def _default_protocols(config: RunConfig, splits: RunSplits) -> list[str]:
    if splits.has_unseen_queries:
        return ["kmeans", "spectral"]
    # Without queries of base classes, novel ones alone can be scored.
    own = config.method.traits.protocols
    return [name for name in own if splits.query is not None or name in ("prototypes", "kmeans", "spectral")]
