"""Gradient caching: a batch of any size in the memory of one chunk, with the gradient of the whole batch.

The loss L depends on the parameters θ only through the rows e₁ … e_n of the network's outputs, so
dL/dθ = Σ_chunks (∂L/∂e_chunk)·(de_chunk/dθ). The chunks are forwarded without graph, and the loss of all rows gives
∂L/∂e. Then each chunk is forwarded again with graph and backpropagates its rows of ∂L/∂e (Gao, Zhang, Han & Callan
2021).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fsl_dist.models.batch_norm import as_one_call, set_ghost_groups, updating_running_statistics
from fsl_dist.samplers.scan import split_evenly


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows of a piece that go through the network in one call."""

    rows: slice
    """positions in the piece"""
    ghost_sizes: list[int]
    """sizes of the batch-norm groups inside `rows`"""

    @property
    def num_images(self) -> int:
        """Rows of the chunk."""
        return self.rows.stop - self.rows.start


def cut_units(num: int, kept_together: int) -> list[int]:
    """Sizes of the smallest parts into which `num` images may be divided: `kept_together` each;
    the last may be smaller."""
    whole, rest = divmod(num, kept_together)
    return [kept_together] * whole + [rest] * (rest > 0)


def cut_chunks(
    ghost_sizes: list[int], chunk_size: int, *, is_ghost: bool, kept_together: int = 1
) -> list[Chunk]:
    """Divide a piece of sum(ghost_sizes) images, in consecutive groups, into chunks as equal as its groups allow.

    A chunk has at most `chunk_size` images (0: no limit, one chunk). With `is_ghost` no chunk divides a group, and a
    larger group is a separate chunk; otherwise the sizes only give the number of images, and each `kept_together`
    consecutive images stay in one chunk.
    """
    num = sum(ghost_sizes)
    if chunk_size == 0 or num <= chunk_size:
        return [Chunk(slice(0, num), ghost_sizes)]
    units = ghost_sizes if is_ghost else cut_units(num, kept_together)
    per_chunk = max(1, chunk_size // max(units))
    edges = split_evenly(len(units), -(-len(units) // per_chunk)).tolist()
    chunks: list[Chunk] = []
    for first, last in pairwise(edges):
        start, size = (chunks[-1].rows.stop if chunks else 0), sum(units[first:last])
        chunks.append(Chunk(slice(start, start + size), units[first:last] if is_ghost else [size]))
    return chunks


class PieceForward:
    """The passes of a piece through the network: `forward`, then `backward` from a loss of the result.

    With caching, each chunk is forwarded twice, and only the activations of one chunk exist at a time. The second
    pass draws the same random numbers as the first (dropout); only the second updates running statistics, like one
    call of the whole piece. Without caching it is the plain computation on a single chunk.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        chunks: list[Chunk],
        images: Iterator[Tensor],
        *,
        is_cached: bool,
        device: torch.device,
        use_bf16: bool = False,
        holds_back: bool = False,
    ) -> None:
        """network: DDP, or the bare network for one worker. images: the chunks' in order, and again if `is_cached`.

        holds_back: DDP must not reduce gradients in this piece's backward pass; otherwise it does so once, in that of
        the last chunk.
        """
        assert is_cached or len(chunks) == 1
        self._wrapped = network if isinstance(network, DistributedDataParallel) else None
        self._bare: torch.nn.Module = network if self._wrapped is None else self._wrapped.module
        self._network = network
        self._chunks = chunks
        self._images = images
        self._is_cached = is_cached
        self._device = device
        self._use_bf16 = use_bf16
        self._holds_back = holds_back
        self._outputs: Tensor | None = None
        self._random_states: list[list[Tensor]] = []

    def forward(self) -> Tensor:
        """Outputs of the piece, float [num_images, dim], that a loss can be made of."""
        if not self._is_cached:
            with self._reducing(not self._holds_back):
                return self._call(self._network, self._chunks[0])
        parts = []
        with torch.no_grad(), updating_running_statistics(self._bare, False):
            for chunk in self._chunks:
                self._random_states.append(_random_state(self._device))
                parts.append(self._call(self._bare, chunk))
        self._outputs = torch.cat(parts).requires_grad_()
        return self._outputs

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` [], a function of what `forward` gave, to the parameters'."""
        if self._outputs is None:
            with self._reducing(not self._holds_back):
                loss.backward()
            return
        (gradient,) = torch.autograd.grad(loss, self._outputs)
        last = len(self._chunks) - 1
        for number in as_one_call(self._bare, [chunk.num_images for chunk in self._chunks]):
            chunk = self._chunks[number]
            with (
                self._reducing(number == last and not self._holds_back),
                _drawing_from(self._random_states[number], self._device),
            ):
                self._call(self._network, chunk).backward(gradient[chunk.rows])

    def _call(self, network: torch.nn.Module, chunk: Chunk) -> Tensor:
        set_ghost_groups(self._bare, chunk.ghost_sizes)
        images = next(self._images).to(self._device, non_blocking=True)
        # Autocast caches a weight's bf16 copy until it ends: a block around both passes would give the second pass
        # the copies of the first one, which have no graph.
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._use_bf16):
            outputs: Tensor = network(images)
        return outputs

    def _reducing(self, reduces: bool) -> AbstractContextManager[None]:
        """Forward and backward in here reduce gradients over the workers, or leave them on this one."""
        return nullcontext() if reduces or self._wrapped is None else self._wrapped.no_sync()


def _random_state(device: torch.device) -> list[Tensor]:
    """The states of the generators that a forward pass on `device` uses: the CPU's, and the GPU's there."""
    gpu = [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []
    return [torch.get_rng_state(), *gpu]


@contextmanager
def _drawing_from(state: list[Tensor], device: torch.device) -> Iterator[None]:
    """Use the random state `state` inside the block; the previous states of the generators are restored after it."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state[1], device)
        yield
