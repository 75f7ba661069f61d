"""Batch-hard triplets and few-shot NCA against float64 loops over all pairs."""

import math

import pytest
import torch
from draws import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsl_dist.losses.batch_hard import batch_hard_loss
from fsl_dist.losses.nca import few_shot_nca_loss
from fsl_dist.losses.ranking import rank_pairs


def batches(draw_seed: int, num: int, num_classes: int, is_coarse: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings float64 [num, 3], labels and shuffled ids; coarse ones are full of ties."""
    draw = torch.Generator().manual_seed(draw_seed)
    embeddings = random(num, 3, seed=draw_seed)
    labels = torch.randint(num_classes, (num,), generator=draw)
    return embeddings.round() if is_coarse else embeddings, labels, torch.randperm(999, generator=draw)[:num]


def reference_batch_hard(
    embeddings: Tensor, labels: Tensor, ids: Tensor, margin: float
) -> tuple[Tensor, float]:
    """One anchor at a time; equal distances to the smaller id. The loss and the share of hinges above zero."""
    hinges = []
    for i in range(len(labels)):
        squared = [((embeddings[i] - embeddings[j]) ** 2).sum().item() for j in range(len(labels))]
        mates = [j for j in range(len(labels)) if j != i and labels[j] == labels[i]]
        others = [j for j in range(len(labels)) if labels[j] != labels[i]]
        if not mates or not others:
            continue
        y = min(mates, key=lambda j: (-squared[j], ids[j].item()))
        z = min(others, key=lambda j: (squared[j], ids[j].item()))
        to_mate = torch.linalg.vector_norm(embeddings[i] - embeddings[y])
        to_other = torch.linalg.vector_norm(embeddings[i] - embeddings[z])
        hinges.append(torch.relu(to_mate - to_other + margin))
    if not hinges:
        return embeddings.sum() * 0.0, 0.0
    return torch.stack(hinges).mean(), sum(hinge.item() > 0 for hinge in hinges) / len(hinges)


def reference_nca(embeddings: Tensor, labels: Tensor) -> Tensor:
    """−log of each anchor's probability of drawing a positive, exponentials summed one at a time."""
    terms = []
    for i in range(len(labels)):
        weights = {
            j: torch.exp(-((embeddings[i] - embeddings[j]) ** 2).sum()) for j in range(len(labels)) if j != i
        }
        mates = [weight for j, weight in weights.items() if labels[j] == labels[i]]
        if mates:
            terms.append(-torch.log(sum(mates) / sum(weights.values())))
    return torch.stack(terms).mean() if terms else embeddings.sum() * 0.0


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 14),
    num_classes=st.integers(1, 5),
    is_coarse=st.booleans(),
    margin=st.sampled_from([0.2, 1.0]),
)
def test_batch_hard_and_its_gradient_are_the_loop(
    seed: int, num: int, num_classes: int, is_coarse: bool, margin: float
) -> None:
    points, labels, ids = batches(seed, num, num_classes, is_coarse)
    ours, exact = points.clone().requires_grad_(), points.clone().requires_grad_()
    loss, active = batch_hard_loss(ours, labels, ids, margin)
    expected, share = reference_batch_hard(exact, labels, ids, margin)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-9, atol=1e-12)
    assert active.item() == pytest.approx(share, abs=1e-6)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 14), num_classes=st.integers(1, 5))
def test_few_shot_nca_and_its_gradient_are_the_loop(seed: int, num: int, num_classes: int) -> None:
    points, labels, _ = batches(seed, num, num_classes, False)
    ours, exact = points.clone().requires_grad_(), points.clone().requires_grad_()
    loss, probability = few_shot_nca_loss(ours, labels)
    expected = reference_nca(exact, labels)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-7, atol=1e-9)
    assert 0 <= probability.item() <= 1


def test_a_mate_far_away_costs_its_distance_and_no_overflow() -> None:
    """exp(−10⁶) is 0 in any float: only in log-space is the loss 10⁶ − 1 and its gradient finite."""
    embeddings = torch.tensor([[0.0], [1000.0], [1.0]], requires_grad=True)
    loss, probability = few_shot_nca_loss(embeddings, torch.tensor([0, 0, 1]))
    loss.backward()
    # Anchor 0: its positive at 10⁶, the other at 1; anchor 1: its positive at 10⁶, the other at 999².
    assert loss.item() == pytest.approx(((1e6 - 1) + (1e6 - 999**2)) / 2, rel=1e-6)
    assert probability.item() == 0
    assert embeddings.grad.isfinite().all()


def test_few_shot_nca_of_equal_distances_is_a_share() -> None:
    # Four images at one point: each draws its one positive with probability 1/3.
    loss, probability = few_shot_nca_loss(torch.zeros(4, 2), torch.tensor([0, 0, 1, 1]))
    assert loss.item() == pytest.approx(math.log(3), rel=1e-6)
    assert probability.item() == pytest.approx(1 / 3, rel=1e-6)


def test_batch_hard_by_hand() -> None:
    embeddings = torch.tensor([[0.0], [1.0], [4.0], [2.5]], requires_grad=True)
    # Hinges: 0 → 4, 2.5: 2.5; 1 → 4, 2.5: 2.5; 4 → 0, 2.5: 3.5; the single image of class 1 has no positive.
    loss, active = batch_hard_loss(embeddings, torch.tensor([0, 0, 0, 1]), torch.arange(4), 1.0)
    assert loss.item() == pytest.approx((2.5 + 2.5 + 3.5) / 3)
    assert active.item() == 1


@pytest.mark.parametrize("labels", [[0, 1, 2], [0, 0, 0]])
def test_no_triplet_gives_a_loss_and_gradient_of_zero(labels: list[int]) -> None:
    embeddings = random(3, 2).requires_grad_()
    loss, active = batch_hard_loss(embeddings, torch.tensor(labels), torch.arange(3), 1.0)
    loss.backward()
    assert (loss.item(), active.item()) == (0, 0)
    assert (embeddings.grad == 0).all()


def test_no_mate_gives_a_loss_and_gradient_of_zero() -> None:
    embeddings = random(3, 2).requires_grad_()
    loss, probability = few_shot_nca_loss(embeddings, torch.tensor([0, 1, 2]))
    loss.backward()
    assert (loss.item(), probability.item()) == (0, 0)
    assert (embeddings.grad == 0).all()


def test_losses_are_float32_under_autocast() -> None:
    embeddings, labels = random(8, 16).bfloat16(), torch.arange(8) % 3
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hard, _ = batch_hard_loss(embeddings, labels, torch.arange(8), 1.0)
        nca, _ = few_shot_nca_loss(embeddings, labels)
    assert hard.dtype == nca.dtype == torch.float32
    exact, _ = reference_batch_hard(embeddings.double(), labels, torch.arange(8), 1.0)
    assert hard.item() == pytest.approx(exact.item(), rel=1e-5)
    assert nca.item() == pytest.approx(reference_nca(embeddings.double(), labels).item(), rel=1e-4)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), num=st.integers(1, 12), width=st.integers(0, 5), furthest=st.booleans())
def test_pairs_are_ranked_as_a_sort_ranks_them(seed: int, num: int, width: int, furthest: bool) -> None:
    points, labels, ids = batches(seed, num, 3, True)
    allowed = labels[:, None] <= labels[None, :]
    found = rank_pairs(points, allowed, ids, width, furthest=furthest).tolist()
    for i in range(num):
        squared = [((points[i] - points[j]) ** 2).sum().item() for j in range(num)]
        sign = -1 if furthest else 1
        ranked = sorted(
            (j for j in range(num) if allowed[i, j]), key=lambda j: (sign * squared[j], ids[j].item())
        )
        assert found[i] == (ranked + [-1] * width)[:width]


@pytest.mark.parametrize("furthest", [False, True])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e15])
def test_pairs_of_tight_clusters_and_of_codes_are_ranked_exactly(scale: float, furthest: bool) -> None:
    """More pairs than are compared directly at once, so that a product proposes."""
    centres = random(4, 96) * 1e6
    tight = (centres[torch.arange(100) % 4] + random(100, 96)).float() * scale
    codes = (random(100, 96) > 0).float() * scale
    ids = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    for points in (tight, codes):
        allowed = ~torch.eye(100, dtype=torch.bool)
        found = rank_pairs(points, allowed, ids, 6, furthest=furthest)
        exact = (points.double()[:, None] - points.double()).square().sum(-1) * (-1 if furthest else 1)
        for row in range(100):
            ranked = sorted((exact[row, j].item(), ids[j].item(), j) for j in range(100) if j != row)
            assert found[row].tolist() == [j for *_, j in ranked[:6]]
