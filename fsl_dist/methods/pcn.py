"""Prototypical clustering networks (PCN) and, with one cluster, prototypical networks (PN, PN*).

The batches are episodes, the loss is `losses.pcn`, the memory contains the prototypes of every training class: k-means
computes them at the start of an epoch, Eq. 4 updates them after each step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fsl_dist.methods.episodic import Episodes, count_episodes, split_outputs
from fsl_dist.methods.method import (
    Batch,
    BatchLoss,
    EpochPlan,
    EpochSize,
    MethodContext,
    MethodSettings,
    PrototypeTraits,
    TrainingIndex,
    Traits,
)
from fsl_dist.samplers.episode import Episode
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.distributed import WorkerGroup


@settings("method")
class PCNConfig(MethodSettings):
    """Prototypical clustering networks; clusters 1 and memory 0 is a prototypical network (PN), memory 0.5 PN*."""

    kind: Literal["pcn"] = "pcn"
    clusters: Annotated[int, Field(ge=1)] = 10
    """prototypes a base class is trained and evaluated with (M_k of PCN Eq. 1)"""
    novel_clusters: Annotated[int, Field(ge=1)] = 4
    """prototypes a novel class is evaluated with"""
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """share of the old prototype that is kept at each update (α of PCN Eq. 4), 0 to below 1"""
    temperature: Annotated[float, Field(gt=0)] = 3.0
    """τ of the responsibilities in training (PCN Eq. 3), above 0; the paper is silent on its value"""
    detach_responsibilities: bool = False
    """stop the gradient through the support's responsibilities; the paper is silent"""
    min_responsibility: Annotated[float, Field(gt=0)] = 1e-6
    """a cluster whose responsibilities sum to less keeps its prototype; not specified in the paper"""

    @property
    def keeps_nothing(self) -> bool:
        """PN: Eq. 4 discards the old prototype completely, so there is no memory to compute or to update."""
        return self.clusters == 1 and self.memory == 0

    @property
    def traits(self) -> Traits:
        """Trained on episodes; validated, scored and predicting by prototypes."""
        return Traits(
            is_episodic=True,
            prototypes=PrototypeTraits(self.clusters, self.novel_clusters, self.temperature),
            prepares_from_all_images=not self.keeps_nothing,
            protocols=("prototypes", "knn"),
            stop_metric="mca/base",
        )

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """An epoch has `episode.per_epoch` episodes."""
        return count_episodes(plan)

    def build(self, context: MethodContext) -> PCN:
        """The method over the training images."""
        return PCN(context, self)


class PCN(Episodes):
    """Episodes, PCN's loss, and a memory of prototypes."""

    metrics = (
        "train/accuracy",
        "train/responsibility_perplexity",
        "train/low_responsibility_share",
    )

    def __init__(self, context: MethodContext, method: PCNConfig) -> None:
        from fsl_dist.methods.prototype_memory import PrototypeMemory

        super().__init__(context)
        self.method = method
        self.all_classes = context.selection
        self.starts_of_kmeans = context.kmeans_runs
        self.memory = PrototypeMemory(self.selection.labels, method.clusters, context.device)

    def prepares_at(self, epoch: int, step: int) -> bool:
        """The memory is rebuilt at the start of each epoch."""
        return step == 0

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Set the memory by k-means of each class. Collective."""
        if self.method.keeps_nothing:
            self.memory.empty(index.dim)
            return {}
        fitted = self.memory.fit(
            index.open(), self.all_classes, group, seed=self.seed, epoch=epoch, starts=self.starts_of_kmeans
        )
        return {"method/clusters_per_class": fitted}

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """PCN's Algorithm 1 on one episode, against the prototypes of the step's start."""
        from fsl_dist.losses.pcn import pcn_episode_loss

        episode, support, query = split_outputs(outputs, batch)
        result = pcn_episode_loss(
            support,
            query,
            *self.memory.of(episode.classes),
            temperature=self.method.temperature,
            memory=self.method.memory,
            detach_responsibilities=self.method.detach_responsibilities,
            min_responsibility=self.method.min_responsibility,
        )
        metrics = {
            "train/accuracy": result.accuracy,
            "train/responsibility_perplexity": result.responsibility_perplexity,
            "train/low_responsibility_share": result.low_share,
        }
        return BatchLoss(result.loss, metrics, (result.numerators, result.denominators))

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Move the memory by the supports of the step's episodes, on all workers. Collective."""
        if not self.method.keeps_nothing:
            self.memory.merge(
                [_episode_of(batch) for batch in batches],
                updates,
                group,
                memory=self.method.memory,
                min_responsibility=self.method.min_responsibility,
            )
        return {}

    def state(self) -> dict[str, Tensor | str | int]:
        """The prototypes and which of them exist."""
        return self.memory.state()

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Restore the prototypes of a checkpoint."""
        self.memory.load_state(state)


def _episode_of(batch: Batch) -> Episode:
    assert isinstance(batch.payload, Episode)
    return batch.payload
