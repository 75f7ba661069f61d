"""A run's scores: its embedding made once, and every protocol it has measured on it."""

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.embedder import SelectionIndex
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.config import EvaluationConfig
from fsl_dist.evaluation.knn import score_knn
from fsl_dist.evaluation.metrics import Repeated
from fsl_dist.evaluation.prototypes import evaluate_prototypes
from fsl_dist.methods.config import PCNConfig
from fsl_dist.training.distributed import WorkerGroup
from fsl_dist.training.splits import RunSplits, split_run
from fsl_dist.training.trained import TrainedRun, open_trained
from index import LocalIndex

PROTOCOLS = ("knn", "prototypes")


@dataclasses.dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What `fsl-dist evaluate` prints."""

    run: str
    dataset: str
    split: str
    """where the base classes' queries came from: test, else val"""
    metrics: dict[str, float | Repeated]
    """fractions in 0 … 1"""

    def to_json(self) -> dict:
        """The report as plain values; a repeated score is {"mean", "std", "n"}."""
        return dataclasses.asdict(self)


def evaluate_run(
    run: Path, *, protocol: str | None = None, settings: EvaluationConfig | None = None
) -> EvaluationReport:
    """Score a run's best checkpoint on its own data set.

    protocol: `knn`, `prototypes`, or None for all the method has. settings: in place of the run's `evaluation.*`.
    Embeddings are kept under RUN/evaluation, so that scoring again with other settings embeds nothing.

    Raises RequestError when the data set has nothing to score, or the method has no such protocol.
    """
    if protocol not in (None, *PROTOCOLS):
        raise RequestError(f"--protocol {protocol} is none of {', '.join(PROTOCOLS)}")
    trained = open_trained(run)
    config = trained.config
    if settings is not None:
        config = dataclasses.replace(config, evaluation=settings)
    splits = split_run(trained.catalogue, config)
    scores: dict[str, float | Repeated] = {}
    if protocol in (None, "prototypes"):
        if isinstance(config.method, PCNConfig):
            scores |= _score_prototypes(trained, config, config.method, splits)
        elif protocol is not None:
            raise RequestError(
                f"--protocol prototypes belongs to method.kind=pcn; {run} has {config.method.kind}"
            )
    if protocol == "knn" or (protocol is None and splits.query is not None):
        scores |= _score_knn(trained, config, splits)
    if not scores:
        raise RequestError(
            f"data.dataset={config.data.dataset} has no test, val or novel split to score {run} on"
        )
    trained.embedder.source.close()
    return EvaluationReport(str(run), config.data.dataset, splits.query_split, scores)


def _open(trained: TrainedRun, config: RunConfig, name: str, selection: Selection) -> LocalIndex:
    index = SelectionIndex(
        trained.embedder,
        trained.catalogue,
        selection,
        Path(config.run.dir) / "evaluation" / name,
        group=WorkerGroup(),
        config=config.index,
        owner=None,
        reuse=True,
    )
    index.move_to(trained.parameters)
    return index.open()


def _score_knn(trained: TrainedRun, config: RunConfig, splits: RunSplits) -> dict[str, float | Repeated]:
    if splits.query is None:
        raise RequestError(f"data.dataset={config.data.dataset} has no test and no val split to query with")
    gallery = _open(trained, config, "gallery", splits.gallery)
    queries = _open(trained, config, splits.query_split, splits.query)
    vectors = queries.vectors(0, queries.num_vectors)
    return dict(score_knn(gallery, vectors, queries.labels, config.evaluation.k_p))


def _score_prototypes(
    trained: TrainedRun, config: RunConfig, method: PCNConfig, splits: RunSplits
) -> dict[str, float | Repeated]:
    gallery = _open(trained, config, "gallery", splits.gallery)
    tested, tested_labels = _empty(gallery.dim)
    if splits.query is not None:
        queries = _open(trained, config, splits.query_split, splits.query)
        tested, tested_labels = queries.vectors(0, queries.num_vectors), queries.labels
    novel, novel_labels = None, None
    if splits.novel is not None:
        novels = _open(trained, config, "novel", splits.novel)
        novel, novel_labels = novels.vectors(0, novels.num_vectors), novels.labels
    return evaluate_prototypes(
        gallery.vectors(0, gallery.num_vectors),
        gallery.labels,
        tested,
        tested_labels,
        novel,
        novel_labels,
        base_clusters=config.base_clusters,
        novel_clusters=config.novel_clusters,
        temperature=method.temperature,
        config=config.evaluation,
        seed=config.run.seed,
        class_names=trained.catalogue.class_names,
    )


def _empty(dim: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return np.empty((0, dim), dtype=np.float32), np.empty(0, dtype=np.int64)
