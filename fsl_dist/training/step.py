"""One optimizer step over any number of workers, equal to the plain computation on one.

A step's batches are the same on every worker. Either whole batches are dealt out (local episodes), or each
batch is cut into rows and the outputs are gathered (global batches). The gradient is that of the step's mean
loss Σ weight·loss / Σ weight: each worker scales by the world size, which DDP's averaging takes away again.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fsl_dist.data.loader import Loader, Request
from fsl_dist.errors import TrainingError
from fsl_dist.methods.method import Batch, Method
from fsl_dist.models.batch_norm import (
    deal_to_groups,
    group_sizes,
    set_ghost_groups,
)
from fsl_dist.samplers.scan import split_evenly
from fsl_dist.training.distributed import WorkerGroup


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a batch that one worker forwards in one call."""

    batch: int
    """number of the batch in its step"""
    order: NDArray[np.int64]
    """int64 [num_images]: the whole batch's forward order, as positions into it"""
    rows: slice
    """the worker's part of `order`"""
    rows_of_rank: list[int]
    """rows each worker forwards of this batch"""
    ghost_sizes: list[int]
    """sizes of the batch-norm groups inside this worker's rows"""

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions in the batch that this worker forwards; one stand-in image when it has none."""
        own = self.order[self.rows]
        return own if len(own) else self.order[:1]

    @property
    def is_empty(self) -> bool:
        """Whether this worker has no row of the batch and only takes part in the collective calls."""
        return self.rows.start == self.rows.stop


def deal_pieces(
    batches: list[Batch], *, is_global: bool, rank: int, world_size: int, is_ghost: bool, ghost_group: int
) -> list[Piece]:
    """This worker's pieces of a step's batches, at least one.

    Global: each batch is ordered so that consecutive groups hold its classes evenly, and cut between workers at
    group boundaries only (ghost batch norm) or into equal runs. Local: batch j belongs to worker j mod
    world_size; a worker without a batch gets an empty piece, because DDP counts on its backward pass.
    """
    if is_global:
        return [
            _cut(number, batch, rank, world_size, is_ghost, ghost_group)
            for number, batch in enumerate(batches)
        ]
    pieces = []
    for number in range(rank, len(batches), world_size):
        num = len(batches[number].ids)
        order, sizes = _order(batches[number], is_ghost, ghost_group)
        pieces.append(Piece(number, order, slice(0, num), [num], sizes))
    return pieces or [Piece(0, np.arange(len(batches[0].ids)), slice(0, 0), [0], [1])]


def _order(batch: Batch, is_ghost: bool, ghost_group: int) -> tuple[NDArray[np.int64], list[int]]:
    if not is_ghost:
        return np.arange(len(batch.ids)), [len(batch.ids)]
    return deal_to_groups(batch.labels, ghost_group), group_sizes(len(batch.ids), ghost_group)


def _cut(number: int, batch: Batch, rank: int, world_size: int, is_ghost: bool, ghost_group: int) -> Piece:
    if is_ghost:
        order, sizes = _order(batch, True, ghost_group)
    else:
        order, sizes = np.arange(len(batch.ids)), [1] * len(batch.ids)
    groups = split_evenly(len(sizes), world_size)  # [world_size + 1] group numbers
    edges = np.append(0, np.cumsum(sizes))[groups]  # [world_size + 1] rows
    start, stop = int(edges[rank]), int(edges[rank + 1])
    own_sizes = sizes[int(groups[rank]) : int(groups[rank + 1])] if is_ghost else [stop - start]
    return Piece(
        number, order, slice(start, stop), np.diff(edges).tolist(), own_sizes if stop > start else [1]
    )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of an epoch: all its batches, and this worker's pieces of them."""

    step: int
    batches: list[Batch]
    pieces: list[Piece]


def step_requests(
    method: Method,
    epoch: int,
    steps: range,
    *,
    group: WorkerGroup,
    is_ghost: bool,
    ghost_group: int,
) -> Iterator[Request]:
    """What this worker loads for `steps`, piece by piece; a request's tag is (PlannedStep, Piece)."""
    for step in steps:
        batches = method.batches(epoch, step)
        pieces = deal_pieces(
            batches,
            is_global=method.is_global,
            rank=group.rank,
            world_size=group.world_size,
            is_ghost=is_ghost,
            ghost_group=ghost_group,
        )
        planned = PlannedStep(step, batches, pieces)
        for piece in pieces:
            yield Request(batches[piece.batch].ids[piece.positions], epoch, (planned, piece))


def planned_steps(loader: Loader) -> Iterator[tuple[PlannedStep, list[tuple[Piece, Tensor]]]]:
    """Group a loader's answers by step: (plan, [(piece, images)])."""
    loaded: list[tuple[Piece, Tensor]] = []
    for request, images in loader:
        tag = request.tag
        assert isinstance(tag, tuple)
        planned, piece = tag
        loaded.append((piece, images))
        if len(loaded) == len(planned.pieces):
            yield planned, loaded
            loaded = []


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step came to, reduced over all workers."""

    metrics: dict[str, float]
    updates: list[tuple[int, tuple[Tensor, ...]]]
    """this worker's (batch number, contribution) to the method's memory"""


def run_step(
    network: torch.nn.Module,
    method: Method,
    planned: PlannedStep,
    loaded: list[tuple[Piece, Tensor]],
    *,
    group: WorkerGroup,
    device: torch.device,
    use_bf16: bool = False,
) -> StepResult:
    """Forward and backward of one step; leaves the step's gradient in the parameters.

    network: what DDP wraps, or the bare network for one worker. Raises TrainingError when the loss is not finite.
    """
    wrapped = network if isinstance(network, DistributedDataParallel) else None
    bare = network if wrapped is None else wrapped.module
    total_weight = sum(batch.weight for batch in planned.batches)
    sums: dict[str, Tensor] = {}
    updates: list[tuple[int, tuple[Tensor, ...]]] = []
    for position, (piece, images) in enumerate(loaded):
        batch = planned.batches[piece.batch]
        set_ghost_groups(network, piece.ghost_sizes)
        # A stand-in image must leave no trace in the batch-norm statistics.
        bare.train(not piece.is_empty)
        # DDP reduces gradients once a step: in the backward pass of the last piece.
        holds_back = wrapped is not None and position < len(loaded) - 1
        with wrapped.no_sync() if wrapped is not None and holds_back else nullcontext():
            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16):
                outputs = network(images.to(device, non_blocking=True))
            if piece.is_empty and not method.is_global:
                (outputs.sum() * 0.0).backward()
                continue
            local = outputs[:0] + outputs.sum() * 0.0 if piece.is_empty else outputs
            gathered = group.gather_rows(local, piece.rows_of_rank) if method.is_global else local
            if piece.is_empty:
                # Keep this worker's parameters in the graph: DDP waits for a gradient of each.
                gathered = gathered + outputs.sum() * 0.0
            result = method.loss(_put_back(gathered, piece.order), batch)
            (result.loss * (batch.weight / total_weight * group.world_size)).backward()
        if method.is_global and not group.is_first:
            continue  # the first worker speaks for a batch all workers have in common
        share = batch.weight / total_weight
        for name, value in {"train/loss": result.loss.detach(), **result.metrics}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.float() * share
        if result.update is not None:
            updates.append((piece.batch, result.update))
    metrics = _reduce(sums, ("train/loss", *method.metrics), group, device)
    if not np.isfinite(metrics["train/loss"]):
        raise TrainingError(
            f"the loss is {metrics['train/loss']} at step {planned.step} of the epoch "
            "(a smaller training.lr, or training.precision=float32, may help)"
        )
    return StepResult(metrics, updates)


def _put_back(outputs: Tensor, order: NDArray[np.int64]) -> Tensor:
    """Outputs in the batch's own order, from forward order."""
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return outputs[torch.from_numpy(back).to(outputs.device)]


def _reduce(
    sums: dict[str, Tensor], names: tuple[str, ...], group: WorkerGroup, device: torch.device
) -> dict[str, float]:
    """Sum the workers' shares of each metric, in one collective call."""
    values = torch.stack([sums.get(name, torch.zeros((), device=device)) for name in names])
    return dict(zip(names, group.sum_(values).tolist(), strict=True))
