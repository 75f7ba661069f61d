"""CHAI Eq. 1 against a float64 loop over the triplets."""

import numpy as np
import pytest
import torch
from draws import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsl_dist.losses.triplet import score_triplets, triplet_gaps, triplet_loss


def triplets_of(num_images: int, num: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(num_images, size=(num, 3)))


def squared(a: Tensor, b: Tensor) -> Tensor:
    return sum((x - y) * (x - y) for x, y in zip(a, b, strict=True))


def reference(embeddings: Tensor, triplets: Tensor, margin: float) -> tuple[Tensor, float, float]:
    """Eq. 1 one triplet and one coordinate at a time; the share above zero, and the share with a and b nearer."""
    hinges, right = [], 0
    for a, b, c in triplets.tolist():
        to_mate = squared(embeddings[a], embeddings[b])
        to_other = 0.5 * (squared(embeddings[a], embeddings[c]) + squared(embeddings[b], embeddings[c]))
        right += bool(to_mate < to_other)
        value = margin + to_mate - to_other
        hinges.append(value if value > 0 else value * 0.0)
    active = sum(hinge.item() > 0 for hinge in hinges) / len(hinges)
    return sum(hinges) / len(hinges), active, right / len(hinges)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    num_images=st.integers(1, 9),
    num=st.integers(1, 12),
    dim=st.integers(1, 5),
    margin=st.sampled_from([0.1, 1.0, 3.0]),
)
def test_the_loss_and_its_gradient_are_the_loop(
    seed: int, num_images: int, num: int, dim: int, margin: float
) -> None:
    points, triplets = random(num_images, dim, seed=seed), triplets_of(num_images, num, seed)
    ours, exact = points.clone().requires_grad_(), points.clone().requires_grad_()
    loss, active = triplet_loss(ours, triplets, margin)
    expected, share, right = reference(exact, triplets, margin)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.grad, exact.grad, rtol=1e-9, atol=1e-12)
    assert active.item() == pytest.approx(share, abs=1e-6)
    # In pieces of four triplets, the last of them short.
    assert score_triplets(points, triplets, margin, at_a_time=4) == pytest.approx(
        (expected.item(), right), rel=1e-12
    )


def test_the_loss_by_hand() -> None:
    embeddings = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]], requires_grad=True)
    # D(a,b) = 1, D(a,c) = 4, D(b,c) = 5: 1 − 4.5 = −3.5.
    assert triplet_gaps(embeddings, torch.tensor([[0, 1, 2]])).tolist() == [-3.5]
    # a with c, against b: 4 − ½(1 + 5) = 1.
    loss, active = triplet_loss(embeddings, torch.tensor([[0, 1, 2], [0, 2, 1]]), 1.0)
    assert loss.item() == 1.0  # (0 + 2) / 2
    assert active.item() == 0.5
    loss.backward()
    # Of the second alone: 2(a−c) − (a−b), 2(c−a) − (c−b), (a−b) + (c−b), halved by the mean.
    assert embeddings.grad.tolist() == [[0.5, -2.0], [-1.0, 1.0], [0.5, 1.0]]


def test_a_and_b_may_change_places_and_triplets_their_order() -> None:
    points, triplets = random(9, 4), triplets_of(9, 30, 1)
    loss, _ = triplet_loss(points, triplets, 1.0)
    swapped, _ = triplet_loss(points, triplets[:, [1, 0, 2]].flip(0), 1.0)
    torch.testing.assert_close(swapped, loss, rtol=1e-12, atol=0)


def test_near_duplicates_far_from_the_origin_keep_their_distances() -> None:
    """Offset 1000, spread 0.01: a matrix product in float32 would lose squared distances of 1e-4 altogether."""
    spread = random(60, 8) * 0.01
    points = (1000 + spread).float()
    triplets = triplets_of(60, 200, 0)
    expected, _, _ = reference(points.double(), triplets, 1e-4)
    loss, _ = triplet_loss(points, triplets, 1e-4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_is_float32_under_autocast() -> None:
    embeddings, triplets = random(9, 16).bfloat16(), triplets_of(9, 20, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = triplet_loss(embeddings, triplets, 1.0)
    assert loss.dtype == torch.float32
    expected, _, _ = reference(embeddings.double(), triplets, 1.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
