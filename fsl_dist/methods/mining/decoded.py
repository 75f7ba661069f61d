"""Deep kNN with neighbours of the whole data set that are decoded and forwarded with their anchors."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from fsl_dist.methods.deep_knn import DeepKNNConfig, NeighbourLoss
from fsl_dist.methods.method import Batch, MethodContext, TrainingIndex
from fsl_dist.methods.mining.neighbour_table import NeighbourTable
from fsl_dist.methods.mining.passes import Passes
from fsl_dist.samplers.class_power import ClassPowerDraws
from fsl_dist.samplers.neighbourhood import Neighbourhood, anchors_per_step, gather_neighbourhood
from fsl_dist.samplers.shuffled import shuffled_steps

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.distributed import WorkerGroup


class DecodedMining(NeighbourLoss):
    """A step consists of some anchors and the neighbours in each one's row of a table, every image once.

    In the loss all of them are anchors, with the neighbours that they find in the step. The table is rebuilt every
    `mining.refresh_steps`, by default every epoch.
    """

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        super().__init__(context, method)
        self.num_same, num_other = method.check_decoded()
        per_step = anchors_per_step(context.batch_size, self.num_same, num_other)
        steps = shuffled_steps(context.selection, context.batch_size)
        self.draws = ClassPowerDraws(
            context.selection,
            power=context.mining.anchor_power,
            num_draws=steps * per_step,
            num_steps=steps,
            seed=context.seed,
        )
        self.tables = context.folder / "mining"
        self.passes = Passes(
            context.mining,
            self.tables,
            default_steps=steps,
            num_rows=len(context.selection),
            num_same=self.num_same,
            num_other=num_other,
        )
        self.table: NeighbourTable | None = None

    def num_steps(self) -> int:
        """An epoch has ⌈images / batch⌉ steps, so that it processes about as many images as the training set has."""
        return self.draws.num_steps

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Where a pass starts or takes effect."""
        return self.passes.is_due(epoch * self.num_steps() + step)

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Start a pass if one is due, and switch to the table of the running one when it is due."""
        started = time.perf_counter()
        made = self.passes.advance(global_step, index, group)
        if made is None:
            return {}
        self.table = NeighbourTable.open(made.folder, self.num_same, made.step)
        return {
            "mining/refreshed_at_step": float(made.step),
            "time/mining_wait_s": time.perf_counter() - started,
        }

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """The step's anchors with their neighbours, each image once."""
        assert self.table is not None
        positions = np.unique(self.draws.of_step(epoch, step))
        same, other = self.table.rows(positions)
        hood = gather_neighbourhood(self.selection.ids[positions], same, other)
        return [Batch(hood.ids, self.labels[hood.ids], payload=hood)]

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Report the age of the table that this step used, and the number of images for its anchors."""
        assert self.table is not None
        (batch,) = batches
        assert isinstance(batch.payload, Neighbourhood)
        return {
            "mining/staleness_steps": float(global_step - self.table.step),
            "mining/images_per_anchor": len(batch.ids) / len(batch.payload.anchor),
        }

    def state(self) -> dict[str, Tensor | str | int]:
        """Name, hash and step of the active table, and the pass under way."""
        state = self.passes.state()
        if self.table is not None:
            state |= {
                "table": self.table.folder.name,
                "table_crc32": self.table.crc32,
                "table_step": self.table.step,
            }
        return state

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Open the table a checkpoint names; its hash must be the checkpoint's."""
        self.passes.load_state(state)
        if "table" not in state:
            return
        name, crc32, step = state["table"], state["table_crc32"], state["table_step"]
        assert isinstance(name, str)
        assert isinstance(crc32, int)
        assert isinstance(step, int)
        self.table = NeighbourTable.reopen(self.tables / name, self.num_same, step, crc32)
