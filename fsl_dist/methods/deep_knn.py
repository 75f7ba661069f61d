"""Deep kNN: triplets of an anchor, its K nearest of the same class and its M nearest of the others.

`mining.source=batch` finds the neighbours inside the global mini-batch, as the paper does; `dataset` finds them
among all training images by the neighbour index, which the paper could not afford (its section 2.2).
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.losses.deep_knn import batch_neighbours, deep_knn_loss
from fsl_dist.methods.config import DeepKNNConfig
from fsl_dist.methods.method import Batch, BatchLoss, Memoryless, TrainingIndex
from fsl_dist.methods.neighbour_table import NeighbourTable, write_part
from fsl_dist.samplers.neighbourhood import (
    Neighbourhood,
    anchors_of_step,
    anchors_per_step,
    gather_neighbourhood,
)
from fsl_dist.samplers.stratified import stratified_batch, stratified_steps
from fsl_dist.training.distributed import WorkerGroup
from index.storage import new_token


class _DeepKNN(Memoryless):
    """What both minings share: the loss's settings and global batches."""

    is_global = True
    num_outputs = 0
    metrics: tuple[str, ...] = ("train/active_triplets",)

    def __init__(
        self, config: RunConfig, method: DeepKNNConfig, selection: Selection, labels: NDArray[np.int64]
    ) -> None:
        self.method = method
        self.labels = labels
        self.normalise = method.normalise
        self.selection = selection
        self.seed = config.run.seed
        self.batch_size = config.training.batch_size

    def _loss(self, outputs: Tensor, anchor: Tensor, same: Tensor, other: Tensor) -> BatchLoss:
        loss, active = deep_knn_loss(outputs, anchor, same, other, self.method.margin)
        return BatchLoss(loss, {"train/active_triplets": active})


class BatchMining(_DeepKNN):
    """Stratified batches; each image is an anchor and finds its neighbours in the batch."""

    def num_steps(self) -> int:
        """An epoch is ⌈images / batch⌉ steps."""
        return stratified_steps(self.selection, self.batch_size)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One stratified batch a step."""
        ids = stratified_batch(
            self.selection,
            batch_size=self.batch_size,
            num_classes=self.method.classes_per_batch,
            seed=self.seed,
            epoch=epoch,
            step=step,
        )
        return [Batch(ids, self.labels[ids])]

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Deep kNN Eq. 3 over the batch, neighbours by its own embeddings."""
        ids = torch.from_numpy(batch.ids).to(outputs.device)
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        same, other = batch_neighbours(outputs, labels, ids, self.method.k_same, self.method.m_other)
        return self._loss(outputs, torch.arange(len(ids), device=outputs.device), same, other)


class DatasetMining(_DeepKNN):
    """Every training image an anchor once an epoch, with its neighbours among all training images."""

    def __init__(
        self, config: RunConfig, method: DeepKNNConfig, selection: Selection, labels: NDArray[np.int64]
    ) -> None:
        super().__init__(config, method, selection, labels)
        self.per_step = anchors_per_step(self.batch_size, method.k_same, method.m_other)
        self.refresh_steps = config.mining.refresh_steps
        self.tables = Path(config.run.dir) / "mining"
        self.table: NeighbourTable | None = None

    def num_steps(self) -> int:
        """An epoch is ⌈images / anchors a step⌉ steps."""
        return -(-len(self.selection) // self.per_step)

    def prepares_at(self, epoch: int, step: int) -> bool:
        """At the start of every epoch, or every `mining.refresh_steps` steps of the run."""
        if self.refresh_steps == 0:
            return step == 0
        return (epoch * self.num_steps() + step) % self.refresh_steps == 0

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Search the neighbours of every training image; each worker those of the images it embedded."""
        neighbours = index.open()
        share = index.share()
        found = neighbours.neighbours(
            neighbours.vectors(share.start, share.stop),
            self.selection.sample_labels[share],
            self.selection.ids[share],
            self.method.k_same,
            self.method.m_other,
        )
        # A folder of its own: a killed attempt's parts, perhaps of other workers, must not be mixed in.
        folder = self.tables / f"step-{global_step:08d}-{group.share_text(new_token())}"
        write_part(folder, group.rank, share.start, found.same_ids, found.other_ids)
        group.barrier()
        self.table = NeighbourTable.open(folder, self.method.k_same, global_step)
        return {"mining/refreshed_at_step": float(global_step)}

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """The step's anchors with their mined neighbours, each image once."""
        assert self.table is not None
        positions = anchors_of_step(
            len(self.selection), self.per_step, seed=self.seed, epoch=epoch, step=step
        )
        same, other = self.table.rows(positions)
        hood = gather_neighbourhood(self.selection.ids[positions], same, other)
        return [Batch(hood.ids, self.labels[hood.ids], payload=hood)]

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Deep kNN Eq. 3 over the mined triplets, distances at the present parameters."""
        hood = batch.payload
        assert isinstance(hood, Neighbourhood)
        anchor, same, other = (
            torch.from_numpy(part).to(outputs.device) for part in (hood.anchor, hood.same, hood.other)
        )
        return self._loss(outputs, anchor, same, other)

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Report how old the table is that this step used."""
        assert self.table is not None
        return {"mining/staleness_steps": float(global_step - self.table.step)}

    def state(self) -> dict[str, Tensor | str | int]:
        """Name and hash of the active table."""
        if self.table is None:
            return {}
        return {
            "table": self.table.folder.name,
            "table_crc32": self.table.crc32,
            "table_step": self.table.step,
        }

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Open the table a checkpoint names; its hash must be the checkpoint's."""
        if not state:
            return
        name, crc32, step = state["table"], state["table_crc32"], state["table_step"]
        assert isinstance(name, str)
        assert isinstance(crc32, int)
        assert isinstance(step, int)
        self.table = NeighbourTable.reopen(self.tables / name, self.method.k_same, step, crc32)
