"""Deep kNN: triplets of an anchor, its K nearest of the same class and its M nearest of the others.

`mining.source=batch` finds the neighbours inside the global mini-batch, as the paper does; `dataset` finds them
among all training images by the neighbour index, which the paper could not afford (its section 2.2).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fsl_dist.errors import RequestError
from fsl_dist.methods.method import (
    Batch,
    BatchLoss,
    EpochPlan,
    EpochSize,
    Method,
    MethodContext,
    MethodSettings,
    TrainingIndex,
    Traits,
    on_device,
)
from fsl_dist.methods.neighbour_table import WEIGHTS, NeighbourTable, is_whole
from fsl_dist.methods.stratified import StratifiedBatches
from fsl_dist.samplers.neighbourhood import (
    Neighbourhood,
    anchors_of_step,
    anchors_per_step,
    gather_neighbourhood,
)
from index.base.files import new_token
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.distributed import WorkerGroup


@settings("method")
class DeepKNNConfig(MethodSettings):
    """Deep kNN: every image nearer to its same-class neighbours than to its other-class ones."""

    kind: Literal["deep_knn"] = "deep_knn"
    k_same: Annotated[int, Field(ge=1)] = 5
    """same-class neighbours of an anchor (K of deep kNN Eq. 3)"""
    m_other: Annotated[int, Field(ge=1)] = 5
    """other-class neighbours of an anchor (M of deep kNN Eq. 3)"""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """α of deep kNN Eq. 2, in units of distance, above 0; the paper is silent (0.2 suits normalised embeddings)"""
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: Annotated[int, Field(ge=2)] = 9
    """classes in a stratified batch (mining.source=batch)"""

    @property
    def traits(self) -> Traits:
        """Neighbours may be mined in the whole data set."""
        return Traits(mines_dataset=True)

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """With mining.source=dataset, anchors and their neighbours are the batch."""
        if plan.mining.source == "batch":
            return MethodSettings.count_epoch(self, plan)
        anchors = anchors_per_step(plan.batch_size, self.k_same, self.m_other)
        images = anchors * (1 + self.k_same + self.m_other)
        return EpochSize(-(-plan.num_images // anchors), 1, images, is_global=True)

    def build(self, context: MethodContext) -> Method:
        """The method over the training images, by where its neighbours are mined."""
        return (DatasetMining if context.mining.source == "dataset" else BatchMining)(context, self)


class BatchMining(StratifiedBatches):
    """Stratified batches; each image is an anchor and finds its neighbours in the batch."""

    metrics = ("train/active_triplets",)

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        super().__init__(context, num_classes=method.classes_per_batch, normalise=method.normalise)
        self.method = method

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Deep kNN Eq. 3 over the batch, neighbours by its own embeddings."""
        from fsl_dist.losses.deep_knn import batch_neighbours, deep_knn_loss

        ids, labels, anchor = on_device(outputs.device, batch.ids, batch.labels, np.arange(len(batch.ids)))
        same, other = batch_neighbours(outputs, labels, ids, self.method.k_same, self.method.m_other)
        loss, active = deep_knn_loss(outputs, anchor, same, other, self.method.margin)
        return BatchLoss(loss, {"train/active_triplets": active})


@dataclass(slots=True)
class _Order:
    """An epoch's order of near anchors, and what it is made from: the table in force at the epoch's first step."""

    epoch: int
    table: NeighbourTable
    anchors: NDArray[np.int64] | None = None
    """int64 [N]: positions in the selection, once they are needed"""


@dataclass(frozen=True, slots=True)
class _Refresh:
    """A neighbour table in the making."""

    folder: Path
    step: int
    """optimizer step whose parameters it is made with"""


class DatasetMining(Method):
    """Every training image an anchor once an epoch, with its neighbours among all training images.

    A refresh of the neighbour table that starts at step s takes effect at exactly step s + `mining.refresh_lag`,
    whoever makes the table and however long that takes: the run is a function of its configuration.

    Every image is an anchor once an epoch, so an epoch has one order of anchors, whatever tables it goes through. With
    `mining.anchors=near` the table in force at its first step makes it, and checkpoints name that one too.
    """

    metrics = ("train/active_triplets",)

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        self.method = method
        self.labels: NDArray[np.int64] = context.catalogue.labels
        self.normalise = method.normalise
        self.selection = context.selection
        self.seed = context.seed
        self.per_step = anchors_per_step(context.batch_size, method.k_same, method.m_other)
        self.refresh_steps = context.mining.refresh_steps or self.num_steps()
        self.lag = context.mining.refresh_lag
        if self.lag >= self.refresh_steps:
            raise RequestError(
                f"mining.refresh_lag={self.lag} must be below the {self.refresh_steps} steps between two refreshes (an "
                "epoch, with mining.refresh_steps=0)"
            )
        self.tables = context.folder / "mining"
        self.table: NeighbourTable | None = None
        self.pending: _Refresh | None = None
        self._is_pending_restored = False
        self.is_near = context.mining.anchors == "near"
        self.order: _Order | None = None

    def num_steps(self) -> int:
        """An epoch is ⌈images / anchors a step⌉ steps."""
        return -(-len(self.selection) // self.per_step)

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Where a refresh starts or takes effect; and at once where a checkpoint left one under way."""
        global_step = epoch * self.num_steps() + step
        return (
            global_step % self.refresh_steps == 0
            or (global_step - self.lag) % self.refresh_steps == 0
            or self._is_pending_restored
        )

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Start a refresh where one is due, and take up the table of the one under way where that is due."""
        k_same, m_other = self.method.k_same, self.method.m_other
        if self._is_pending_restored:
            self._restart(index, group)
        if global_step % self.refresh_steps == 0:
            self.pending = _Refresh(self._new_folder(global_step, group), global_step)
            index.start_table(self.pending.folder, k_same, m_other)
        if self.pending is None or (self.table and global_step < self.pending.step + self.lag):
            return {}
        started = time.perf_counter()
        index.finish_table(self.pending.folder)
        self.table = NeighbourTable.open(self.pending.folder, k_same, self.pending.step)
        self.pending = None
        return {
            "mining/refreshed_at_step": float(self.table.step),
            "time/mining_wait_s": time.perf_counter() - started,
        }

    def _restart(self, index: TrainingIndex, group: WorkerGroup) -> None:
        """Resume the refresh that a checkpoint names: reuse its table if it is complete, else rebuild it from its weights."""
        assert self.pending is not None
        self._is_pending_restored = False
        old = self.pending
        whole = group.is_first and is_whole(old.folder, len(self.selection))
        if not group.share_text("whole" if whole else ""):
            self.pending = replace(old, folder=self._new_folder(old.step, group))
            index.start_table(
                self.pending.folder, self.method.k_same, self.method.m_other, old.folder / WEIGHTS
            )

    def _new_folder(self, step: int, group: WorkerGroup) -> Path:
        # A folder of its own: a killed attempt's parts, perhaps of other workers, must not be mixed in.
        return self.tables / f"step-{step:08d}-{group.share_text(new_token())}"

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """The step's anchors with their mined neighbours, each image once."""
        assert self.table is not None
        positions = self._anchors(epoch, step)
        same, other = self.table.rows(positions)
        hood = gather_neighbourhood(self.selection.ids[positions], same, other)
        return [Batch(hood.ids, self.labels[hood.ids], payload=hood)]

    def _anchors(self, epoch: int, step: int) -> NDArray[np.int64]:
        """The step's anchors as positions in the selection."""
        ids, per_step = self.selection.ids, self.per_step
        if not self.is_near:
            return anchors_of_step(len(ids), per_step, seed=self.seed, epoch=epoch, step=step)
        assert self.table is not None
        if self.order is None or self.order.epoch != epoch:
            self.order = _Order(epoch, self.table)  # this is the epoch's first step
        if self.order.anchors is None:
            position_of = np.full(ids.max() + 2, -1, dtype=np.int64)  # −1, no neighbour, reads the last one
            position_of[ids] = np.arange(len(ids))
            neighbours = position_of[np.concatenate(self.order.table.rows(np.arange(len(ids))), axis=1)]
            # Here, not above: it imports SciPy's sparse matrices, 0.2 s that other runs do without.
            from fsl_dist.samplers.near_order import near_order

            self.order.anchors = near_order(neighbours, per_step, seed=self.seed, epoch=epoch)
        return self.order.anchors[step * per_step : (step + 1) * per_step]

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Deep kNN Eq. 3 over the mined triplets, distances at the present parameters."""
        hood = batch.payload
        assert isinstance(hood, Neighbourhood)
        from fsl_dist.losses.deep_knn import deep_knn_loss

        anchor, same, other = on_device(outputs.device, hood.anchor, hood.same, hood.other)
        loss, active = deep_knn_loss(outputs, anchor, same, other, self.method.margin)
        return BatchLoss(loss, {"train/active_triplets": active})

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Report how old the table is that this step used, and how many images its anchors took."""
        assert self.table is not None
        (batch,) = batches
        assert isinstance(batch.payload, Neighbourhood)
        return {
            "mining/staleness_steps": float(global_step - self.table.step),
            "mining/images_per_anchor": len(batch.ids) / len(batch.payload.anchor),
        }

    def state(self) -> dict[str, Tensor | str | int]:
        """Name, hash and step of the active table and of the one the epoch's order is made from; the one under way."""
        state: dict[str, Tensor | str | int] = {}
        if self.table is not None:
            state |= _name_table("table", self.table)
        if self.order is not None:
            state |= {"order_epoch": self.order.epoch, **_name_table("order", self.order.table)}
        if self.pending is not None:
            state |= {"pending": self.pending.folder.name, "pending_step": self.pending.step}
        return state

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Open the tables a checkpoint names; their hashes must be the checkpoint's."""
        self.table = self._reopen("table", state)
        ordered_by = self._reopen("order", state)
        if ordered_by is not None:
            epoch = state["order_epoch"]
            assert isinstance(epoch, int)
            self.order = _Order(epoch, ordered_by)
        if "pending" in state:
            name, step = state["pending"], state["pending_step"]
            assert isinstance(name, str)
            assert isinstance(step, int)
            self.pending = _Refresh(self.tables / name, step)
            self._is_pending_restored = True

    def _reopen(self, key: str, state: dict[str, Tensor | str | int]) -> NeighbourTable | None:
        """The table that `_name_table` put into `state` under `key`, if any."""
        if key not in state:
            return None
        name, crc32, step = state[key], state[f"{key}_crc32"], state[f"{key}_step"]
        assert isinstance(name, str)
        assert isinstance(crc32, int)
        assert isinstance(step, int)
        return NeighbourTable.reopen(self.tables / name, self.method.k_same, step, crc32)


def _name_table(key: str, table: NeighbourTable) -> dict[str, str | int]:
    return {key: table.folder.name, f"{key}_crc32": table.crc32, f"{key}_step": table.step}
