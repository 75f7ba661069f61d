"""Deep kNN against the embeddings of all training images:
every image of a step is an anchor, and no neighbour is decoded."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fsl_dist.losses.deep_knn import NO_TERMS, is_first, log_sum, neighbour_softmax, triplet_hinge
from fsl_dist.losses.distances import at_least_float32, euclidean_rows, smallest, squared_distances
from fsl_dist.methods.deep_knn import BatchMining, DeepKNNConfig
from fsl_dist.methods.method import Batch, MethodContext, TrainingIndex
from fsl_dist.methods.mining.embedding_memory import (
    Anchors,
    EmbeddingMemory,
    LogSums,
    check_memory,
    class_ranges,
)
from fsl_dist.methods.mining.neighbour_table import read_embeddings
from fsl_dist.methods.mining.passes import Passes

if TYPE_CHECKING:
    from fsl_dist.distributed import WorkerGroup
    from index.config import IndexConfig


class MemoryMining(BatchMining):
    """Neighbours are rows of an `EmbeddingMemory`; those whose images are in the step carry a gradient.

    The first step embeds all training images; later passes follow every `mining.refresh_steps`. Each step's embeddings
    overwrite their rows. A row of class c has weight n_c^(power − 1), power `mining.anchor_power`. Sums over all rows
    then equal the expectation over an infinite batch of draws, and a large class does not dominate the denominators.
    A checkpoint contains the memory, N·D·4 bytes, because rows that earlier steps wrote cannot be recomputed.
    """

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        super().__init__(context, method)
        self.context = context
        self.passes = Passes(
            context.mining, context.folder / "mining", default_steps=0, num_rows=len(context.selection)
        )
        self.ranges = class_ranges(context.selection)
        counts = np.repeat(context.selection.counts, context.selection.counts)
        weights = (context.mining.anchor_power - 1) * np.log(counts)
        self.log_weights = torch.from_numpy(weights.astype(np.float32)).to(context.device)  # [N]
        self.memory: EmbeddingMemory | None = None
        self._stored: dict[str, Tensor | str | int] = {}
        self._step: tuple[Tensor, Tensor] | None = None  # rows and embeddings of the step under way

    def check_embeddings(self, dim: int, index: IndexConfig) -> None:
        """Raise RequestError where the memory would be too large, or cannot be searched by `index.kind`."""
        context = self.context
        check_memory(
            len(self.selection),
            dim,
            context.num_workers,
            index=index,
            most_bytes=context.mining.memory_gb * 1e9,
        )

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Where a pass starts or takes effect; and with an ivf_flat index, at the start of an epoch,
        where it is reclustered."""
        return (
            self.passes.is_due(epoch * self.num_steps() + step)
            or self.memory is None
            or (step == 0 and self.memory.lists is not None)
        )

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Write a pass's embeddings into the memory when it takes effect. Collective."""
        if self.memory is None:
            self.memory = EmbeddingMemory(
                self.selection,
                index.dim,
                group=group,
                device=self.context.device,
                index=index.config,
                most_bytes=self.context.mining.memory_gb * 1e9,
            )
            if "memory" in self._stored:
                self.memory.load_state(self._stored)
                self.memory.sort_into_lists(global_step)
            self._stored = {}
        started = time.perf_counter()
        made = self.passes.advance(global_step, index, group)
        if made is None:
            if self.memory.lists is not None and global_step % self.num_steps() == 0:
                self.memory.sort_into_lists(global_step)
            return {}
        vectors = read_embeddings(made.folder, self.memory.start, self.memory.stop)
        self.memory.fill(torch.from_numpy(vectors), made.step)
        return {
            "mining/refreshed_at_step": float(made.step),
            "time/mining_wait_s": time.perf_counter() - started,
        }

    def neighbour_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss with neighbours in the memory, and its metric. Collective."""
        assert self.memory is not None
        assert isinstance(batch.payload, np.ndarray)
        rows = torch.from_numpy(batch.payload)
        anchors = Anchors(
            at_least_float32(embeddings.detach())[0],
            rows.to(embeddings.device),
            torch.from_numpy(self.ranges[batch.payload]).to(embeddings.device),
        )
        self._step = (anchors.rows, anchors.embeddings)
        in_step = squared_distances(embeddings, embeddings)  # [B, B], with gradient
        same, other = self._masks(batch, anchors.rows)
        if self.method.loss == "hinge":
            return self._hinge(embeddings, anchors, in_step, same, other)
        return self._softmax(embeddings, anchors, in_step, same, other)

    def _masks(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which images of the step are neighbours of which, of its class and of others: bool [B, B] each."""
        labels = torch.from_numpy(batch.labels).to(rows.device)
        is_same_class = labels[:, None] == labels[None, :]
        counts = is_first(rows)
        return is_same_class & (rows[:, None] != rows[None, :]) & counts, ~is_same_class & counts

    def _softmax(
        self, embeddings: Tensor, anchors: Anchors, in_step: Tensor, same: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        method, memory, tau = self.method, self.memory, self.method.temperature
        assert memory is not None
        all_same, all_other = memory.sum_all(
            anchors, tau, self.log_weights, same=method.k_same == "all", other=method.m_other == "all"
        )
        weights = self.log_weights[anchors.rows]
        logs = []
        for of_all, num, mask, is_same in (
            (all_same, method.k_same, same, True),
            (all_other, method.m_other, other, False),
        ):
            if of_all is not None:
                in_memory = _with_gradient(of_all, embeddings, tau)
                logs.append(torch.logaddexp(in_memory, log_sum(in_step / -tau + weights, mask)))
            else:
                assert isinstance(num, int)
                squared, exists, rows = self._nearest(embeddings, anchors, in_step, mask, num, same=is_same)
                logs.append(log_sum(squared / -tau + self.log_weights[rows], exists))
        return neighbour_softmax(*logs)

    def _hinge(
        self, embeddings: Tensor, anchors: Anchors, in_step: Tensor, same: Tensor, other: Tensor
    ) -> tuple[Tensor, Tensor]:
        method = self.method
        assert isinstance(method.k_same, int)
        assert isinstance(method.m_other, int)
        to_same, is_same, _ = self._nearest(embeddings, anchors, in_step, same, method.k_same, same=True)
        to_other, is_other, _ = self._nearest(embeddings, anchors, in_step, other, method.m_other, same=False)
        return triplet_hinge(_root(to_same), _root(to_other), is_same, is_other, method.margin)

    def _nearest(
        self,
        embeddings: Tensor,
        anchors: Anchors,
        in_step: Tensor,
        mask: Tensor,
        num: int,
        *,
        same: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """An anchor's `num` nearest in memory and step: [B, num] squared distances with gradient, which exist,
        and their rows."""
        assert self.memory is not None
        rows, squared = self.memory.nearest(anchors, num, same=same)
        if num <= _FEW:  # direct differences keep the precision of small distances
            vectors = self.memory.gather(rows).to(anchors.embeddings.dtype)
            to_memory = euclidean_rows(embeddings[:, None], vectors).square()
        else:
            to_memory = _Squared.apply(embeddings.float(), self.memory, rows, squared)
        everything = torch.cat([to_memory, in_step], dim=1)
        exists = torch.cat([rows >= 0, mask], dim=1)
        ranked = everything.detach().masked_fill(~exists, torch.inf)
        _, places = smallest(ranked, num, is_sorted=False)
        where = torch.cat([rows.clamp_min(0), anchors.rows.expand(len(rows), -1)], dim=1)
        return everything.gather(1, places), exists.gather(1, places), where.gather(1, places)

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Overwrite the rows of the step's images with their embeddings."""
        assert self.memory is not None
        assert self._step is not None
        rows, embeddings = self._step
        self._step = None
        self.memory.write(rows, embeddings, global_step)
        return {"mining/row_age_steps": self.memory.age(global_step)}

    def state(self) -> dict[str, Tensor | str | int]:
        """The memory, and the pass under way. Collective."""
        return {**(self.memory.state() if self.memory else self._stored), **self.passes.state()}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Keep the memory of a checkpoint until the workers are known, and resume the running pass."""
        self._stored = state
        self.passes.load_state(state)


_FEW = 64


def _with_gradient(sums: LogSums, embeddings: Tensor, temperature: float) -> Tensor:
    """`sums.values` [B] as a function of the anchors: its gradient is that of log Σ exp(−‖a − m‖²/τ), −2/τ (a − mean
    of the m)."""
    gradient = (embeddings.detach() - sums.means) * (-2.0 / temperature)
    gradient = gradient.masked_fill((sums.values <= NO_TERMS)[:, None], 0.0)
    # The difference is 0; only its gradient counts.
    return sums.values + ((embeddings - embeddings.detach()) * gradient).sum(1)


class _Squared(torch.autograd.Function):
    """Squared distances that are known, as a function of the anchors: the gradient of ‖a − m‖² is 2 (a − m).

    The rows are read in the backward pass alone, before the step overwrites some. Both passes are collective.
    """

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, memory: EmbeddingMemory, rows: Tensor, squared: Tensor
    ) -> Tensor:
        """embeddings: float32 [B, D]; rows: int64 [B, num], −1 = none; squared:
        their distances, [B, num], which it returns."""
        ctx.save_for_backward(embeddings, rows)
        ctx.memory = memory
        return squared.view_as(squared)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """gradient: [B, num]; returns the gradient of the anchors, [B, D]."""
        embeddings, rows = ctx.saved_tensors
        pulls = ctx.memory.weighted_sum(rows, gradient)
        return 2.0 * (gradient.sum(1, keepdim=True) * embeddings - pulls), None, None, None


def _root(squared: Tensor) -> Tensor:
    """Square roots whose gradient at 0 is 0."""
    is_zero = squared <= 0
    return squared.masked_fill(is_zero, 1.0).sqrt().masked_fill(is_zero, 0.0)
