"""A run's embeddings and its draws, image by image, where `report` has only their scores: for pictures."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.fine_tune import TunedDraw, tune_draw
from fsl_dist.evaluation.protocols import open_selection, other_method, require_novel
from fsl_dist.methods.prototypes import Prototypes, fit_prototypes, join
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.metrics.few_shot import check_novel, draw_novel, largest_classes
from fsl_dist.metrics.prototypes import prototype_scores
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun, open_trained
from index import ShardedIndex


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """Some images of a data set, embedded."""

    ids: NDArray[np.int64]
    """int64 [n]: sample ids"""
    labels: NDArray[np.int64]
    """int64 [n]"""
    vectors: NDArray[np.float32]
    """float32 [n, D]"""

    def take(self, rows: NDArray) -> "Images":
        """Those at `rows` (int64 positions, or bool [n])."""
        return Images(self.ids[rows], self.labels[rows], self.vectors[rows])

    def of_class(self, label: int) -> "Images":
        """The images of one class."""
        return self.take(self.labels == label)

    def join(self, other: "Images") -> "Images":
        """These images, followed by the other ones."""
        return Images(
            np.concatenate([self.ids, other.ids]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.vectors, other.vectors]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """One draw of the few-shot protocol: the support images, the test images, and their predictions."""

    prototypes: Prototypes
    """of the base classes, then of the novel ones"""
    learnt: Images
    """training images of base classes, then this draw's support images of novel classes"""
    tested: Images
    """test images of base classes, then this draw's of novel classes"""
    predicted: NDArray[np.int64]
    """int64 [n]: label that each of `tested` got"""


class EmbeddedRun:
    """A run's best network, its embeddings of the images for scoring, and its draws.

    Embeds on first use, or reads the embeddings that `evaluate` has stored under RUN/evaluation.
    """

    def __init__(self, run: Path, trained: TrainedRun, config: RunConfig) -> None:
        self.run = run
        self.catalogue = trained.catalogue
        self.config = config
        """the run's, with the requested evaluation settings"""
        self._trained = trained
        self._splits = split_run(trained.catalogue, config)
        self.query_split = self._splits.query_split
        """name of the split of `query`, empty if there is none"""

    @cached_property
    def gallery(self) -> ShardedIndex:
        """Index of the training images."""
        return self._open("gallery", self._splits.gallery)

    @cached_property
    def learnt(self) -> Images:
        """The training images."""
        return _read(self.gallery)

    @cached_property
    def query(self) -> Images:
        """Base classes' test images, otherwise val; RequestError if there is nothing at all to test."""
        query, novel = self._splits.query, self._splits.novel
        if query is not None:
            return _read(self._open(self._splits.query_split, query))
        if novel is None:
            raise RequestError(
                f"data.dataset={self.config.data.dataset} has no test, val or novel split to test {self.run} on"
            )
        none = np.empty(0, dtype=np.int64)
        return Images(none, none, np.empty((0, self.gallery.dim), dtype=np.float32))

    @cached_property
    def novel(self) -> Images | None:
        """All images of the novel classes that are scored; None if there are none."""
        novel = self._splits.novel
        if novel is None:
            return None
        images = _read(self._open("novel", novel))
        return images.take(np.isin(images.labels, largest_classes(images.labels, self.config.evaluation)))

    @property
    def num_draws(self) -> int:
        """Draws of novel images; without novel classes nothing is drawn, and one draw is all."""
        return 1 if self._splits.novel is None else self.config.evaluation.draws

    @property
    def temperature(self) -> float:
        """τ of the draws: the training temperature, plus `evaluation.delta_tau` if that is a single value.

        Raises RequestError for a run without prototypes, and for several Δτ without 0.
        """
        method, deltas = self.config.method, self.config.evaluation.delta_tau
        prototypes = method.traits.prototypes
        if prototypes is None:
            raise RequestError(
                f"{self.run} has method.kind={method.kind}; prototypes belong to method.kind=pcn"
            )
        if len(deltas) > 1 and 0.0 not in deltas:
            raise RequestError(
                f"evaluation.delta_tau={list(deltas)} has several values and no 0; a draw is scored at one "
                f"(evaluation.delta_tau=[{deltas[0]:g}])"
            )
        return prototypes.temperature + (deltas[0] if len(deltas) == 1 else 0.0)

    def draw(self, number: int) -> Draw:
        """Draw `number`, exactly as an evaluation scores it.

        Raises RequestError where the run has no prototypes, nothing to test, or novel classes with too few images.
        """
        temperature = self.temperature
        prototypes, learnt, tested = self._base, self.learnt, self.query
        if self.novel is not None:
            support, test = self._draw_novel(self.novel, number)
            novel = self._fit(support, self.config.novel_clusters, epoch=number)
            prototypes = join(prototypes, novel)
            learnt, tested = learnt.join(support), tested.join(test)
        scores = prototype_scores(tested.vectors, prototypes, temperature)
        return Draw(prototypes, learnt, tested, prototypes.labels[scores.argmax(axis=1)])

    def tuned_draw(self, number: int) -> TunedDraw:
        """Draw `number` by a classifier that is retrained for it, as in protocol fine_tune; trains it if necessary.

        Raises RequestError if the run has no classifier, or if the data set has no novel classes.
        """
        if not self.config.method.traits.has_classifier:
            raise other_method("fine_tune", "cross_entropy", self.config)
        novel = require_novel("fine_tune", self.config, self._splits)
        return tune_draw(self._trained, self.config, self._splits, novel, number)

    @cached_property
    def _base(self) -> Prototypes:
        return self._fit(self.learnt, self.config.base_clusters, epoch=0)

    def _fit(self, images: Images, num_clusters: int, *, epoch: int) -> Prototypes:
        starts = self.config.evaluation.kmeans_runs
        seed = self.config.run.seed
        return fit_prototypes(
            images.vectors, images.labels, num_clusters, seed=seed, epoch=epoch, starts=starts
        )

    def _draw_novel(self, novel: Images, number: int) -> tuple[Images, Images]:
        """Support and test images of a draw."""
        settings, names = self.config.evaluation, self.catalogue.class_names
        check_novel(novel.labels, self._base.labels, settings, names)
        draw = draw_novel(novel.labels, settings, seed=self.config.run.seed, draw=number)
        return novel.take(draw.support), novel.take(draw.test)

    def _open(self, name: str, selection: Selection) -> ShardedIndex:
        return open_selection(self._trained, self.config, name, selection)


def _read(index: ShardedIndex) -> Images:
    return Images(index.ids, index.labels, index.vectors(0, index.num_vectors))


@contextmanager
def open_embedded(run: Path, settings: EvaluationConfig | None = None) -> Iterator[EmbeddedRun]:
    """Open a run's best checkpoint for its own data set. settings: override the run's `evaluation.*`.

    Raises ConfigError if `run` is not a run folder, RequestError if it has no checkpoint or its data set has no train
    split.
    """
    trained = open_trained(run)
    config = trained.config
    if settings is not None:
        config = dataclasses.replace(config, evaluation=settings)
    try:
        yield EmbeddedRun(run, trained, config)
    finally:
        trained.embedder.source.close()
