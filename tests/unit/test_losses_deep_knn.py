"""Neighbours within a batch and the deep kNN loss against float64 loops over all pairs and triplets."""

import pytest
import torch
from draws import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsl_dist.losses.deep_knn import batch_neighbours, deep_knn_loss


def reference_neighbours(
    embeddings: Tensor, labels: Tensor, ids: Tensor, num_same: int, num_other: int
) -> tuple[list[list[int]], list[list[int]]]:
    """Every image against every other by direct differences in float64, ties to the smaller id."""
    points = embeddings.double()
    same, other = [], []
    for i in range(len(points)):
        ranked = sorted(
            (((points[i] - points[j]) ** 2).sum().item(), ids[j].item(), j) for j in range(len(points))
        )
        mates = [j for _, sample, j in ranked if labels[j] == labels[i] and sample != ids[i]][:num_same]
        others = [j for _, _, j in ranked if labels[j] != labels[i]][:num_other]
        same.append(mates + [-1] * (num_same - len(mates)))
        other.append(others + [-1] * (num_other - len(others)))
    return same, other


def reference_loss(embeddings: Tensor, triplets: list[tuple[int, int, int]], margin: float) -> Tensor:
    """Eq. 2 and 3: the mean of the hinge over (anchor, same class, other class), one at a time."""
    hinges = []
    for x, y, z in triplets:
        to_same = torch.linalg.vector_norm(embeddings[x] - embeddings[y])
        to_other = torch.linalg.vector_norm(embeddings[x] - embeddings[z])
        hinges.append(torch.relu(to_same - to_other + margin))
    return torch.stack(hinges).mean()


@settings(max_examples=40)
@given(
    num=st.integers(1, 20),
    num_classes=st.integers(1, 5),
    num_same=st.integers(0, 6),
    num_other=st.integers(0, 6),
    is_coarse=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_neighbours_are_the_brute_force_ones(
    num: int, num_classes: int, num_same: int, num_other: int, is_coarse: bool, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    embeddings = random(num, 3, seed=seed)
    if is_coarse:  # few distinct points: ties everywhere
        embeddings = embeddings.round()
    labels = torch.randint(num_classes, (num,), generator=draw)
    ids = torch.randperm(1000, generator=draw)[:num]
    same, other = batch_neighbours(embeddings.float(), labels, ids, num_same, num_other)
    expected = reference_neighbours(embeddings.float(), labels, ids, num_same, num_other)
    assert (same.shape, other.shape) == ((num, num_same), (num, num_other))
    assert (same.tolist(), other.tolist()) == expected


def test_neighbours_of_many_duplicates_are_the_smallest_ids() -> None:
    ids = torch.arange(60).flip(0)
    labels = (ids % 2).long()
    same, other = batch_neighbours(torch.full((60, 4), 0.1), labels, ids, 3, 2)
    assert ids[same[ids == 0][0]].tolist() == [2, 4, 6]
    assert ids[same[ids == 31][0]].tolist() == [1, 3, 5]
    assert ids[other[ids == 31][0]].tolist() == [0, 2]


def test_neighbours_in_pieces_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels, ids = random(17, 3), torch.arange(17) % 3, torch.arange(17)
    whole = batch_neighbours(embeddings, labels, ids, 2, 4)
    monkeypatch.setattr("fsl_dist.losses.ranking._NUMBERS_PER_CHUNK", 30)  # 5 rows, then 2
    pieces = batch_neighbours(embeddings, labels, ids, 2, 4)
    assert torch.equal(whole[0], pieces[0])
    assert torch.equal(whole[1], pieces[1])


def test_neighbours_survive_an_offset() -> None:
    """Norm 16, spread 0.01: ranking by a float32 product of these puts about one neighbour in four wrong."""
    direction = torch.nn.functional.normalize(random(1, 64, seed=9), dim=-1)
    embeddings = (16 * direction + 0.01 * random(80, 64)).float()
    labels = torch.arange(80) % 4
    same, other = batch_neighbours(embeddings, labels, torch.arange(80), 5, 5)
    assert (same.tolist(), other.tolist()) == reference_neighbours(embeddings, labels, torch.arange(80), 5, 5)


def test_an_image_is_left_out_by_its_id_not_its_place() -> None:
    embeddings = torch.tensor([[0.0], [0.0], [1.0], [5.0]])
    same, _ = batch_neighbours(embeddings, torch.tensor([0, 0, 0, 1]), torch.tensor([7, 7, 8, 9]), 2, 1)
    assert same.tolist() == [[2, -1], [2, -1], [0, 1], [-1, -1]]


def test_neighbours_carry_no_gradient_and_take_an_empty_batch() -> None:
    same, other = batch_neighbours(torch.zeros(0, 3), torch.zeros(0).long(), torch.zeros(0).long(), 2, 3)
    assert (same.shape, other.shape) == ((0, 2), (0, 3))
    embeddings = random(4, 3).requires_grad_()
    same, _ = batch_neighbours(embeddings, torch.zeros(4).long(), torch.arange(4), 2, 1)
    assert not same.requires_grad


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_loss_over_all_neighbours_is_the_mean_over_all_triplets(dtype: torch.dtype, tolerance: float) -> None:
    points = random(14, 5).to(dtype)
    labels = torch.tensor([0] * 6 + [1] * 4 + [2] * 3 + [3])
    embeddings, exact_embeddings = points.clone().requires_grad_(), points.double().requires_grad_()
    same, other = batch_neighbours(embeddings, labels, torch.arange(14), 5, 14)
    loss, active = deep_knn_loss(embeddings, torch.arange(14), same, other, 1.0)
    triplets = [
        (x, y, z)
        for x in range(14)
        for y in range(14)
        for z in range(14)
        if x != y and labels[x] == labels[y] and labels[x] != labels[z]
    ]
    exact = reference_loss(exact_embeddings, triplets, 1.0)
    loss.backward()
    exact.backward()
    assert loss.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(loss.detach().double(), exact.detach(), **close)
    torch.testing.assert_close(embeddings.grad.double(), exact_embeddings.grad, **close)
    positive = sum(reference_loss(points.double(), [triplet], 1.0).item() > 0 for triplet in triplets)
    assert active.item() == pytest.approx(positive / len(triplets), rel=1e-6)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_order_of_images_does_not_matter(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    embeddings, labels, ids = random(12, 3, seed=seed), torch.arange(12) % 3, torch.arange(12)

    def loss(order: Tensor) -> float:
        same, other = batch_neighbours(embeddings[order], labels[order], ids[order], 2, 3)
        return deep_knn_loss(embeddings[order], torch.arange(12), same, other, 1.0)[0].item()

    assert loss(torch.randperm(12, generator=draw)) == pytest.approx(loss(ids), rel=1e-12)
    # The names of the classes do not matter either.
    labels = torch.randperm(3, generator=draw)[labels]
    assert loss(ids) == pytest.approx(loss(torch.randperm(12, generator=draw)), rel=1e-12)


def test_gradcheck_with_missing_neighbours() -> None:
    anchor, same = torch.tensor([0, 3, 5]), torch.tensor([[1, 2], [4, -1], [-1, -1]])
    other = torch.tensor([[3, 5], [-1, 1], [0, 2]])
    embeddings = random(6, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda e: deep_knn_loss(e, anchor, same, other, 1.0)[0], (embeddings,))
    triplets = [(0, 1, 3), (0, 1, 5), (0, 2, 3), (0, 2, 5), (3, 4, 1)]
    loss, _ = deep_knn_loss(embeddings, anchor, same, other, 1.0)
    torch.testing.assert_close(loss, reference_loss(embeddings, triplets, 1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("anchor", "same", "other"),
    [
        (torch.tensor([0, 1]), torch.full((2, 3), -1), torch.tensor([[2], [3]])),
        (torch.tensor([0, 1]), torch.tensor([[2], [3]]), torch.full((2, 3), -1)),
        (torch.tensor([0]), torch.tensor([[1]]), torch.zeros(1, 0, dtype=torch.int64)),
        (torch.zeros(0, dtype=torch.int64),) + 2 * (torch.zeros(0, 2, dtype=torch.int64),),
    ],
)
def test_no_triplet_gives_a_loss_and_gradient_of_zero(anchor: Tensor, same: Tensor, other: Tensor) -> None:
    embeddings = random(4, 3).requires_grad_()
    loss, active = deep_knn_loss(embeddings, anchor, same, other, 1.0)
    loss.backward()
    assert (loss.item(), active.item()) == (0, 0)
    assert torch.equal(embeddings.grad, torch.zeros(4, 3, dtype=torch.float64))


def test_duplicates_of_the_anchor_give_no_nan() -> None:
    embeddings = torch.zeros(4, 3, requires_grad=True)
    loss, active = deep_knn_loss(
        embeddings, torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[2, 3]]), 0.2
    )
    loss.backward()
    assert loss.item() == pytest.approx(0.2)
    assert active.item() == 1.0
    assert (embeddings.grad == 0).all()


def test_satisfied_triplets_count_as_zeros() -> None:
    embeddings = torch.tensor([[0.0], [1.0], [1.5], [10.0]])
    loss, active = deep_knn_loss(
        embeddings, torch.tensor([0]), torch.tensor([[1]]), torch.tensor([[2, 3]]), 1.0
    )
    assert loss.item() == pytest.approx(0.25)  # (1 − 1.5 + 1 and 0) / 2
    assert active.item() == 0.5


def test_bf16_embeddings_are_compared_in_float32() -> None:
    embeddings = random(8, 16).bfloat16()
    labels = torch.arange(8) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same, other = batch_neighbours(embeddings, labels, torch.arange(8), 2, 2)
        loss, _ = deep_knn_loss(embeddings, torch.arange(8), same, other, 1.0)
    expected = reference_neighbours(embeddings, labels, torch.arange(8), 2, 2)
    assert (same.tolist(), other.tolist()) == expected
    triplets = [(x, y, z) for x in range(8) for y in expected[0][x] for z in expected[1][x]]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(reference_loss(embeddings.double(), triplets, 1.0).item(), rel=1e-5)
