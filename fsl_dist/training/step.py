"""One optimizer step with any number of workers, equal to the plain computation on a single worker.

A step's batches are the same on every worker. Either whole batches are distributed (local episodes), or each batch is
divided into rows and the outputs are gathered (global batches). The gradient is that of the step's mean loss Σ
weight·loss / Σ weight: each worker multiplies by the world size, which cancels DDP's averaging.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fsl_dist.data.loader import Loader, Request
from fsl_dist.distributed import WorkerGroup
from fsl_dist.finite import are_finite, first_bad_row
from fsl_dist.methods.method import Batch, Method
from fsl_dist.models.batch_norm import as_one_call, deal_to_groups, group_sizes
from fsl_dist.samplers.scan import split_evenly
from fsl_dist.training.chunked import Chunk, PieceForward, cut_chunks, cut_units
from fsl_dist.training.divergence import DivergedError, OutputRows, find_bad_row

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows of a batch that one worker forwards, at once or in chunks."""

    batch: int
    """number of the batch in its step"""
    order: NDArray[np.int64]
    """int64 [num_images]: the whole batch's forward order, as positions into it"""
    rows: slice
    """the worker's part of `order`"""
    rows_of_rank: list[int]
    """rows each worker forwards of this batch"""
    chunks: list[Chunk]
    """this worker's rows in calls of the network"""
    is_cached: bool
    """whether the chunks go twice, with the gradient cached between; the same on all workers of a global batch"""

    @property
    def calls(self) -> list[Chunk]:
        """The chunks in the order in which their images are needed."""
        return self.chunks * 2 if self.is_cached else self.chunks

    @property
    def positions(self) -> NDArray[np.int64]:
        """Positions in the batch that this worker forwards; one dummy image if it has none."""
        own = self.order[self.rows]
        return own if len(own) else self.order[:1]

    @property
    def num_rows(self) -> int:
        """Images of the batch that this worker forwards."""
        return self.rows.stop - self.rows.start

    @property
    def is_empty(self) -> bool:
        """Whether this worker has no row of the batch and only participates in the collective calls."""
        return self.num_rows == 0


def deal_pieces(
    batches: list[Batch],
    *,
    is_global: bool,
    rank: int,
    world_size: int,
    is_ghost: bool,
    ghost_group: int,
    chunk_size: int = 0,
) -> list[Piece]:
    """This worker's pieces of a step's batches, at least one.

    Global: each batch is ordered so that consecutive groups contain its classes evenly, and divided between workers
    at group boundaries only (ghost batch norm) or into equal runs. A pair of mixed images is never divided. Local:
    batch j belongs to worker j mod world_size; a worker without a batch gets an empty piece, because DDP expects its
    backward pass. A piece of more than `chunk_size` images (0: no limit) is forwarded in chunks, see
    `fsl_dist.training.chunked`.
    """
    if is_global:
        return [
            _cut(number, batch, rank, world_size, is_ghost, ghost_group, chunk_size)
            for number, batch in enumerate(batches)
        ]
    pieces = []
    for number in range(rank, len(batches), world_size):
        num = len(batches[number].ids)
        order, sizes = _order(batches[number], is_ghost, ghost_group)
        together = batches[number].kept_together
        pieces.append(_piece(number, order, slice(0, num), [num], sizes, is_ghost, chunk_size, together))
    nothing = np.arange(len(batches[0].ids))
    return pieces or [_piece(0, nothing, slice(0, 0), [0], [1], is_ghost, chunk_size, 1)]


def _piece(
    number: int,
    order: NDArray[np.int64],
    rows: slice,
    rows_of_rank: list[int],
    sizes: list[int],
    is_ghost: bool,
    chunk_size: int,
    kept_together: int,
) -> Piece:
    # All workers cache, or none: DDP may talk in a forward pass with graph, which comes after the gathering where
    # the gradient is cached and before it where not.
    is_cached = 0 < chunk_size < max(rows_of_rank)
    chunks = cut_chunks(sizes, chunk_size, is_ghost=is_ghost, kept_together=kept_together)
    return Piece(number, order, rows, rows_of_rank, chunks, is_cached)


def _order(batch: Batch, is_ghost: bool, ghost_group: int) -> tuple[NDArray[np.int64], list[int]]:
    if not is_ghost:
        return np.arange(len(batch.ids)), [len(batch.ids)]
    if batch.mixing is None:
        return deal_to_groups(batch.labels, ghost_group), group_sizes(len(batch.ids), ghost_group)
    # Pairs are dealt to groups, by the class of their first image.
    num, pairs_in_group = len(batch.ids), max(1, ghost_group // 2)
    pairs = deal_to_groups(batch.labels[::2], pairs_in_group)
    order = np.stack([2 * pairs, 2 * pairs + 1], axis=1)
    edges = np.append(0, np.cumsum(group_sizes(len(pairs), pairs_in_group)))
    sizes = [int((order[first:last] < num).sum()) for first, last in pairwise(edges.tolist())]
    return order[order < num], sizes


def _cut(
    number: int,
    batch: Batch,
    rank: int,
    world_size: int,
    is_ghost: bool,
    ghost_group: int,
    chunk_size: int,
) -> Piece:
    if is_ghost:
        order, sizes = _order(batch, True, ghost_group)
    else:
        order, sizes = np.arange(len(batch.ids)), cut_units(len(batch.ids), batch.kept_together)
    groups = split_evenly(len(sizes), world_size)  # [world_size + 1] group numbers
    edges = np.append(0, np.cumsum(sizes))[groups]  # [world_size + 1] rows
    start, stop = int(edges[rank]), int(edges[rank + 1])
    own_sizes = sizes[int(groups[rank]) : int(groups[rank + 1])] if is_ghost else [stop - start]
    if start == stop:
        own_sizes = [1]
    rows_of_rank = np.diff(edges).tolist()
    return _piece(
        number, order, slice(start, stop), rows_of_rank, own_sizes, is_ghost, chunk_size, batch.kept_together
    )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step of an epoch: all of its batches, and this worker's pieces of them."""

    step: int
    batches: list[Batch]
    pieces: list[Piece]

    @property
    def num_images(self) -> int:
        """Images that all workers forward."""
        return sum(len(batch.ids) for batch in self.batches)

    @property
    def num_requests(self) -> int:
        """Number of requests of the step to the loader."""
        return sum(len(piece.calls) for piece in self.pieces)


def step_requests(
    method: Method,
    epoch: int,
    steps: range,
    *,
    group: WorkerGroup,
    is_ghost: bool,
    ghost_group: int,
    chunk_size: int = 0,
) -> Iterator[Request]:
    """Yield this worker's requests for `steps`, in the order in which they are forwarded;
    a request's tag is its PlannedStep.

    A cached piece requests each chunk twice: only the images of one chunk are in memory at a time.
    """
    for step in steps:
        batches = method.batches(epoch, step)
        pieces = deal_pieces(
            batches,
            is_global=method.is_global,
            rank=group.rank,
            world_size=group.world_size,
            is_ghost=is_ghost,
            ghost_group=ghost_group,
            chunk_size=chunk_size,
        )
        planned = PlannedStep(step, batches, pieces)
        for piece in pieces:
            batch = batches[piece.batch]
            for chunk in piece.calls:
                positions = piece.positions[chunk.rows]
                mix = None if batch.mixing is None else partial(batch.mixing.apply, positions=positions)
                yield Request(batch.ids[positions], epoch, planned, mix)


def planned_steps(loader: Loader) -> Iterator[tuple[PlannedStep, Iterator[Tensor]]]:
    """Group a loader's results by step: (plan, the images of its requests, read from the loader when they are needed).

    A step's images must be consumed before the next step is requested.
    """
    answers = iter(loader)
    for request, first in answers:
        planned = request.tag
        assert isinstance(planned, PlannedStep)
        others = (images for _, images in islice(answers, planned.num_requests - 1))
        yield planned, chain([first], others)


@dataclass(frozen=True, slots=True)
class StepResult:
    """The result of a step, reduced over all workers."""

    metrics: dict[str, float]
    updates: list[tuple[int, tuple[Tensor, ...]]]
    """this worker's (batch number, contribution) to the method's memory"""
    is_asked_to_stop: bool = False
    """whether any worker has a stop request; the same on all"""


_BAD_OUTPUTS = "pieces with outputs that are not finite"
_STOPS = "workers that were asked to stop"


def run_step(
    network: torch.nn.Module,
    method: Method,
    planned: PlannedStep,
    images: Iterator[Tensor],
    *,
    group: WorkerGroup,
    device: torch.device,
    use_bf16: bool = False,
    is_asked_to_stop: bool = False,
) -> StepResult:
    """Run forward and backward of one step; the step's gradient is in the parameters afterwards.

    network: DDP, or the bare network for one worker. images: of the step's requests, in their order.
    is_asked_to_stop: whether this worker has a stop request. Raises DivergedError, the same on every worker, if an
    output of the network or the loss is not finite. Both are checked, because the loss alone can be finite: a hinge
    over NaN distances is 0.
    """
    bare = network.module if isinstance(network, DistributedDataParallel) else network
    total_weight = sum(batch.weight for batch in planned.batches)
    calls = _statistics_calls(bare, planned, is_global=method.is_global, group=group)
    sums: dict[str, Tensor] = {_BAD_OUTPUTS: torch.zeros((), device=device)}
    sums[_STOPS] = torch.full((), float(is_asked_to_stop), device=device)
    updates: list[tuple[int, tuple[Tensor, ...]]] = []
    forwarded: list[OutputRows] = []
    for position, piece in enumerate(planned.pieces):
        batch = planned.batches[piece.batch]
        # A dummy image must not affect the batch-norm statistics; the other workers' images do.
        if bare.training == piece.is_empty:
            bare.train(not piece.is_empty)
        if not piece.is_empty:
            next(calls)
        work = PieceForward(
            network,
            piece.chunks,
            images,
            is_cached=piece.is_cached,
            device=device,
            use_bf16=use_bf16,
            # DDP reduces gradients once per step: in the backward pass of the last piece.
            holds_back=position < len(planned.pieces) - 1,
        )
        outputs = work.forward()
        if piece.is_empty and not method.is_global:
            work.backward(outputs.sum() * 0.0)
            continue
        local = outputs[:0] + outputs.sum() * 0.0 if piece.is_empty else outputs
        gathered = group.gather_rows(local, piece.rows_of_rank) if method.is_global else local
        if piece.is_empty:
            # Keep this worker's parameters in the graph: DDP waits for the gradient of each.
            gathered = gathered + outputs.sum() * 0.0
        if not piece.is_empty:
            forwarded.append(OutputRows(piece.batch, piece.order[piece.rows], outputs.detach()))
            sums[_BAD_OUTPUTS] += (~are_finite(outputs)).float()
        in_order = _put_back(gathered, piece.order)
        try:
            result = method.loss(in_order, batch)
        except (
            Exception
        ) as error:  # a method may fail on NaN in any way; the outputs are checked at the end of the step
            if first_bad_row(in_order) < 0:
                raise
            log.debug("the loss of outputs that are not finite: %s", error)
            work.backward(outputs.sum() * 0.0)  # the other workers wait for this one's gradient
            continue
        work.backward(result.loss * (batch.weight / total_weight * group.world_size))
        if method.is_global and not group.is_first:
            continue  # the first worker speaks for a batch all workers have in common
        share = batch.weight / total_weight
        for name, value in {"train/loss": result.loss.detach(), **result.metrics}.items():
            part = value.float() if share == 1 else value.float() * share
            sums[name] = sums[name] + part if name in sums else part
        if result.update is not None:
            updates.append((piece.batch, result.update))
    next(calls, None)  # the update of the last call
    metrics = _reduce(sums, (_BAD_OUTPUTS, _STOPS, "train/loss", *method.metrics), group, device)
    stops = metrics.pop(_STOPS) > 0
    if metrics.pop(_BAD_OUTPUTS):
        raise DivergedError(planned, find_bad_row(forwarded, group, device), stops)
    if not np.isfinite(metrics["train/loss"]):
        raise DivergedError(planned, f"the loss is {metrics['train/loss']}", stops)
    return StepResult(metrics, updates, stops)


def _statistics_calls(
    bare: torch.nn.Module, planned: PlannedStep, *, is_global: bool, group: WorkerGroup
) -> Iterator[int]:
    """Define one update of the running statistics: yields before each piece with images.

    A batch that is divided among all workers is one update; batches that are distributed as a whole form one update
    together. So the average over the workers is the same for any number of them.
    """
    if is_global:
        return chain.from_iterable(
            as_one_call(
                bare,
                [] if piece.is_empty else [piece.num_rows],
                group.world_size * piece.num_rows / sum(piece.rows_of_rank),
            )
            for piece in planned.pieces
        )
    own = [piece.num_rows for piece in planned.pieces if not piece.is_empty]
    total = sum(len(batch.ids) for batch in planned.batches)
    return as_one_call(bare, own, group.world_size * sum(own) / total)


def _put_back(outputs: Tensor, order: NDArray[np.int64]) -> Tensor:
    """Outputs in the batch's own order, from forward order."""
    positions = np.arange(len(order))
    if np.array_equal(order, positions):
        return outputs
    back = np.empty_like(order)
    back[order] = positions
    return outputs[torch.from_numpy(back).to(outputs.device)]


def _reduce(
    sums: dict[str, Tensor], names: tuple[str, ...], group: WorkerGroup, device: torch.device
) -> dict[str, float]:
    """Sum the workers' shares of each metric, in one collective call."""
    values = torch.stack([sums.get(name, torch.zeros((), device=device)) for name in names])
    return dict(zip(names, group.sum_(values).tolist(), strict=True))
