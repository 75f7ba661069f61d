"""A piece in chunks has the gradient and the running statistics of the piece in one call."""

import copy
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fsl_dist.methods.method import Batch
from fsl_dist.models.batch_norm import (
    GhostBatchNorm,
    apply_batch_norm,
    as_one_call,
    group_sizes,
    running_statistics,
    set_ghost_groups,
)
from fsl_dist.training.chunked import Chunk, PieceForward, cut_chunks
from fsl_dist.training.step import deal_pieces

CPU = torch.device("cpu")
SIZES = [6, 6, 5, 5]


@given(
    num=st.integers(1, 90), group=st.integers(2, 30), chunk_size=st.integers(0, 60), is_ghost=st.booleans()
)
def test_chunks_hold_every_row_once_and_cut_no_group(
    num: int, group: int, chunk_size: int, is_ghost: bool
) -> None:
    sizes = group_sizes(num, group) if is_ghost else [num]
    chunks = cut_chunks(sizes, chunk_size, is_ghost=is_ghost)
    rows = [row for chunk in chunks for row in range(num)[chunk.rows]]
    assert rows == list(range(num))
    assert [sum(chunk.ghost_sizes) for chunk in chunks] == [chunk.num_images for chunk in chunks]
    if is_ghost:
        assert [size for chunk in chunks for size in chunk.ghost_sizes] == sizes
    if chunk_size == 0:
        assert len(chunks) == 1
    else:
        limit = max(chunk_size, max(sizes)) if is_ghost else chunk_size
        assert max(chunk.num_images for chunk in chunks) <= limit


@given(num=st.integers(2, 70), world_size=st.integers(1, 4), group=st.integers(2, 20), is_ghost=st.booleans())
def test_all_workers_of_a_global_batch_cache_or_none(
    num: int, world_size: int, group: int, is_ghost: bool
) -> None:
    """Else a worker would gather before DDP's own exchange, and another after it."""
    batch = Batch(np.arange(num), np.sort(np.arange(num) % 3))
    pieces = [
        deal_pieces(
            [batch],
            is_global=True,
            rank=rank,
            world_size=world_size,
            is_ghost=is_ghost,
            ghost_group=group,
            chunk_size=20,
        )[0]
        for rank in range(world_size)
    ]
    assert len({piece.is_cached for piece in pieces}) == 1
    for piece in pieces:
        assert len(piece.calls) == len(piece.chunks) * (2 if piece.is_cached else 1)
        assert sum(chunk.num_images for chunk in piece.chunks) == len(piece.positions)
        assert piece.is_cached or len(piece.chunks) == 1


def small_network(mode: str, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(dropout)),
        nn.Flatten(),
        nn.Linear(4 * 16, 5),
        nn.BatchNorm1d(5) if mode != "none" else nn.Identity(),
        nn.Dropout(dropout),
    )
    if mode == "none":
        network[0][1] = nn.Identity()
    else:
        apply_batch_norm(network, mode)  # type: ignore[arg-type]
    for statistic in running_statistics(network):
        nn.init.uniform_(statistic, 0.5, 2.0)
    return network.to(dtype).train()


def images_of(num: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (3.0 + torch.randn(num, 2, 6, 6, generator=torch.Generator().manual_seed(1))).to(dtype)


def loss_of(outputs: Tensor) -> Tensor:
    """Every row meets every other one, so that no chunk's gradient follows from the chunk alone."""
    return torch.cdist(outputs[:7], outputs[7:]).square().softmax(dim=1).square().sum() + outputs.tanh().sum()


def step(network: nn.Module, images: Tensor, chunks: list[Chunk], use_bf16: bool = False) -> Tensor:
    """The flat gradient after one step, cached where there are several chunks."""
    calls = chunks * 2 if len(chunks) > 1 else chunks
    work = PieceForward(
        network,
        chunks,
        iter([images[chunk.rows] for chunk in calls]),
        is_cached=len(chunks) > 1,
        device=CPU,
        use_bf16=use_bf16,
    )
    outputs = work.forward()
    work.backward(loss_of(outputs.float() if use_bf16 else outputs))
    return flat_gradient(network)


def flat_gradient(network: nn.Module) -> Tensor:
    return torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()])  # type: ignore[union-attr]


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("mode", ["ghost", "frozen", "none"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("chunk_size", [6, 11, 12, 21])
def test_a_chunked_step_is_the_plain_one(
    mode: str, dtype: torch.dtype, limit: float, chunk_size: int
) -> None:
    plain, chunked = small_network(mode, dtype=dtype), small_network(mode, dtype=dtype)
    images, is_ghost = images_of(22, dtype), mode == "ghost"
    sizes = SIZES if is_ghost else [22]
    chunks = cut_chunks(sizes, chunk_size, is_ghost=is_ghost)
    assert len(chunks) > 1
    before = [statistic.clone() for statistic in running_statistics(plain)]
    expected = step(plain, images, [Chunk(slice(0, 22), sizes)])
    assert expected.norm() > 1e-3
    assert relative(expected, step(chunked, images, chunks)) <= limit
    for one, other in zip(plain.state_dict().values(), chunked.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=limit, atol=0.1 * limit)
    if mode == "frozen":
        assert all(torch.equal(*pair) for pair in zip(before, running_statistics(chunked), strict=True))
    if mode == "ghost":
        assert not torch.equal(before[0], running_statistics(chunked)[0])


def test_one_chunk_in_two_passes_is_the_plain_step() -> None:
    """What a worker does whose share fits one chunk, where another's does not."""
    plain, chunked, images = small_network("ghost"), small_network("ghost"), images_of(22)
    chunk = Chunk(slice(0, 22), SIZES)
    work = PieceForward(chunked, [chunk], iter([images, images]), is_cached=True, device=CPU)
    work.backward(loss_of(work.forward()))
    assert relative(step(plain, images, [chunk]), flat_gradient(chunked)) <= 1e-12
    torch.testing.assert_close(plain.state_dict(), chunked.state_dict(), rtol=1e-12, atol=0)


def test_dropout_draws_in_the_second_pass_what_it_drew_in_the_first() -> None:
    """The plain computation of the very same draws: all chunks in one graph."""
    oracle, chunked, images = small_network("frozen", 0.4), small_network("frozen", 0.4), images_of(22)
    chunks = cut_chunks([22], 6, is_ghost=False)
    torch.manual_seed(5)
    loss_of(torch.cat([oracle(images[chunk.rows]) for chunk in chunks])).backward()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    assert relative(flat_gradient(oracle), step(chunked, images, chunks)) <= 1e-12
    # What is drawn next follows the first pass alone, as it would the only one.
    assert torch.equal(torch.get_rng_state(), after)
    torch.manual_seed(6)
    chunked.zero_grad()
    assert relative(flat_gradient(oracle), step(chunked, images, chunks)) > 1e-3


def test_both_passes_run_under_autocast() -> None:
    """bf16 rounds, so the step is near the plain one and equal to that of all chunks in one graph."""
    networks = [small_network("frozen", dtype=torch.float32) for _ in range(3)]
    images, chunks = images_of(22, torch.float32), cut_chunks([22], 6, is_ghost=False)
    parts = []
    for chunk in chunks:
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(networks[0](images[chunk.rows]))
    assert parts[0].dtype == torch.bfloat16
    loss_of(torch.cat(parts).float()).backward()
    exact = step(networks[1], images, [Chunk(slice(0, 22), [22])])
    cached = step(networks[2], images, chunks, use_bf16=True)
    assert relative(flat_gradient(networks[0]), cached) <= 5e-3
    assert 1e-5 < relative(exact, cached) <= 2e-2


@pytest.mark.parametrize("momentum", [0.3, None])
def test_calls_that_count_as_one_move_running_statistics_as_one(momentum: float | None) -> None:
    once = nn.Sequential(GhostBatchNorm(2, momentum=momentum)).double().train()
    nn.init.normal_(once[0].running_mean)
    apart, images = copy.deepcopy(once), images_of(22)
    for _ in range(2):
        set_ghost_groups(once, SIZES)
        once(images)
        parts = [(images[:12], SIZES[:2]), (images[12:17], SIZES[2:3]), (images[17:], SIZES[3:])]
        for number in as_one_call(apart, [12, 5, 5]):
            set_ghost_groups(apart, parts[number][1])
            apart(parts[number][0])
    torch.testing.assert_close(once.state_dict(), apart.state_dict(), rtol=1e-12, atol=1e-12)
    assert apart[0].num_batches_tracked == 2


def test_one_chunk_of_images_and_activations_exists_at_a_time() -> None:
    """Counted where they are made: a chunk's are gone before the next chunk's are loaded."""
    network, images = small_network("ghost"), images_of(22)
    chunks = cut_chunks(SIZES, 6, is_ghost=True)
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def keep(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        alive.append(weakref.ref(output))

    network[0][0].register_forward_hook(keep)

    def load() -> Iterator[Tensor]:
        nonlocal most
        for chunk in chunks * 2:
            most = max(most, sum(reference() is not None for reference in alive))
            chunk_images = images[chunk.rows].clone()
            alive.append(weakref.ref(chunk_images))
            yield chunk_images
            del chunk_images

    work = PieceForward(network, chunks, load(), is_cached=True, device=CPU)
    work.backward(loss_of(work.forward()))
    assert len(alive) == 4 * len(chunks)
    assert most == 0
