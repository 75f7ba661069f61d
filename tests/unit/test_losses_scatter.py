"""The scatter loss, its cross entropy and their mix against float64 loops over the paper's sums."""

import pytest
import torch
from draws import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fsl_dist.losses.pcn import pcn_episode_loss
from fsl_dist.losses.scatter import (
    Distance,
    prototype_cross_entropy,
    scatter_episode_loss,
    scatter_loss,
)


def reference_scatter(support: Tensor) -> Tensor:
    """Eq. 1 as it is printed: over images, and over pairs of classes."""
    means = [torch.stack(list(of_class)).sum(0) / len(of_class) for of_class in support]
    inside = sum(
        ((x - mean) ** 2).sum() for of_class, mean in zip(support, means, strict=True) for x in of_class
    )
    pairs = [(i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
    between = sum(((means[i] - means[j]) ** 2).sum() for i, j in pairs)
    return inside / torch.maximum(between, 1e-6 * inside.detach() + 1e-12)


def reference_cross_entropy(support: Tensor, query: Tensor, distance: str) -> tuple[Tensor, float]:
    """Eq. 2, one query at a time; the loss and the share of queries whose own mean is nearest."""
    means = [of_class.sum(0) / len(of_class) for of_class in support]
    terms, right = [], 0
    for label, of_class in enumerate(query):
        for x in of_class:
            squared = [((x - mean) ** 2).sum() for mean in means]
            d = torch.stack([s.sqrt() if distance == "euclidean" else s for s in squared])
            terms.append(d[label] + torch.log(torch.exp(-(d - d.min())).sum()) - d.min())
            right += int(d.argmin().item() == label)
    return torch.stack(terms).mean(), right / len(terms)


EPISODES = {
    "num_classes": st.integers(2, 5),
    "k_shot": st.integers(1, 5),
    "n_query": st.integers(1, 4),
    "dim": st.integers(1, 6),
    "seed": st.integers(0, 10**6),
}


@settings(max_examples=40)
@given(
    **EPISODES,
    scatter_weight=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    distance=st.sampled_from(["euclidean", "squared"]),
)
def test_the_mix_and_its_gradient_are_the_loops(
    num_classes: int,
    k_shot: int,
    n_query: int,
    dim: int,
    seed: int,
    scatter_weight: float,
    distance: Distance,
) -> None:
    points, queries = (
        random(num_classes, k_shot, dim, seed=seed),
        random(num_classes, n_query, dim, seed=seed + 1),
    )
    ours = [points.clone().requires_grad_(), queries.clone().requires_grad_()]
    exact = [points.clone().requires_grad_(), queries.clone().requires_grad_()]
    found = scatter_episode_loss(*ours, scatter_weight=scatter_weight, distance=distance)
    scatter = reference_scatter(exact[0])
    cross_entropy, accuracy = reference_cross_entropy(*exact, distance)
    expected = scatter_weight * scatter + (1 - scatter_weight) * cross_entropy
    found.loss.backward()
    expected.backward()
    torch.testing.assert_close(found.loss, expected, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(ours, exact, strict=True):
        gradient = torch.zeros_like(mine) if mine.grad is None else mine.grad
        torch.testing.assert_close(gradient, theirs.grad, rtol=1e-7, atol=1e-9)
    if scatter_weight > 0:
        torch.testing.assert_close(found.scatter, scatter.detach(), rtol=1e-10, atol=1e-12)
    if scatter_weight < 1:
        assert found.accuracy.item() == pytest.approx(accuracy, abs=1e-6)
        torch.testing.assert_close(found.cross_entropy, cross_entropy.detach(), rtol=1e-10, atol=1e-12)


def test_a_term_of_weight_zero_is_not_computed() -> None:
    """0 times what is not finite would be NaN."""
    support, query = random(3, 4, 5), random(3, 2, 5, seed=1)
    only_cross_entropy = scatter_episode_loss(support, query, scatter_weight=0.0)
    assert (only_cross_entropy.scatter, only_cross_entropy.is_clamped) == (None, None)
    only_scatter = scatter_episode_loss(support, torch.full_like(query, torch.inf), scatter_weight=1.0)
    assert (only_scatter.cross_entropy, only_scatter.accuracy) == (None, None)
    assert only_scatter.loss.item() == pytest.approx(reference_scatter(support).item())


@settings(max_examples=40)
@given(**EPISODES)
def test_squared_distances_and_no_scatter_are_prototypical_networks(
    num_classes: int, k_shot: int, n_query: int, dim: int, seed: int
) -> None:
    points, queries = (
        random(num_classes, k_shot, dim, seed=seed),
        random(num_classes, n_query, dim, seed=seed + 1),
    )
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        ours, theirs = (points.to(dtype).clone().requires_grad_() for _ in range(2))
        query = queries.to(dtype)
        found = scatter_episode_loss(ours, query, scatter_weight=0.0, distance="squared")
        nothing = torch.zeros(num_classes, 1, dim, dtype=dtype)
        mask = torch.ones(num_classes, 1, dtype=torch.bool)
        pn = pcn_episode_loss(theirs, query, nothing, mask, temperature=3.0, memory=0.0)
        found.loss.backward()
        pn.loss.backward()
        # Relative, but a loss near 0 is a difference of logits of this size.
        size = max(1.0, (queries.flatten(0, 1)[:, None] - points.mean(1)).square().sum(-1).max().item())
        assert abs(found.loss.item() - pn.loss.item()) <= tolerance * size
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=100 * tolerance, atol=100 * tolerance * size)
        assert found.accuracy.item() == pytest.approx(pn.accuracy.item())


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), scatter_weight=st.sampled_from([0.0, 0.3, 1.0]))
def test_order_of_classes_and_images_does_not_matter(seed: int, scatter_weight: float) -> None:
    support, query = random(4, 5, 3, seed=seed), random(4, 3, 3, seed=seed + 1)
    shuffle = torch.Generator().manual_seed(seed)
    classes, images, queries = (torch.randperm(n, generator=shuffle) for n in (4, 5, 3))
    plain = scatter_episode_loss(support, query, scatter_weight=scatter_weight).loss.item()
    shuffled = scatter_episode_loss(
        support[classes][:, images], query[classes][:, queries], scatter_weight=scatter_weight
    )
    assert shuffled.loss.item() == pytest.approx(plain, rel=1e-12)


def test_scatter_by_hand() -> None:
    # Means 1 and 5: inside 2 · (1 + 1), between 16.
    loss, is_clamped = scatter_loss(torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]]))
    assert (loss.item(), is_clamped.item()) == (0.25, 0)
    # A third class at 1, too: between 16 + 0 + 16.
    loss, _ = scatter_loss(torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]], [[0.0], [2.0]]]))
    assert loss.item() == pytest.approx(6 / 32)


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0, 1e3])
def test_equal_means_are_clamped_and_give_a_finite_gradient(spread: float) -> None:
    support = (spread * torch.tensor([[[-1.0], [1.0]], [[1.0], [-1.0]]])).requires_grad_()
    loss, is_clamped = scatter_loss(support)
    loss.backward()
    assert is_clamped.item() == 1
    assert loss.item() == pytest.approx(4 * spread**2 / (4e-6 * spread**2 + 1e-12), rel=1e-5)
    # The denominator passes no gradient: what is left pulls the images to their means, here 0.
    torch.testing.assert_close(support.grad, 2 * support.detach() / (4e-6 * spread**2 + 1e-12))


def test_one_image_a_class_has_no_scatter() -> None:
    support = random(3, 1, 4).requires_grad_()
    loss, _ = scatter_loss(support)
    loss.backward()
    assert loss.item() == 0
    assert (support.grad == 0).all()


def test_a_query_on_its_prototype_has_a_finite_gradient() -> None:
    """The root of a distance of 0 has an infinite slope; a norm's gradient there is 0."""
    support = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]], requires_grad=True)
    query = support.detach().clone().requires_grad_()
    loss, accuracy = prototype_cross_entropy(support, query)
    loss.backward()
    assert accuracy.item() == 1
    assert support.grad.isfinite().all()
    assert query.grad.isfinite().all()
    assert query.grad.abs().max() > 0


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_offset_embeddings_lose_no_accuracy(distance: Distance) -> None:
    """Norm 16, spread 0.01: what trained embeddings look like."""
    direction = torch.nn.functional.normalize(random(1, 64, seed=9), dim=-1)
    centers = 16 * direction + 0.01 * random(5, 1, 64, seed=3)
    support, query = ((centers + 0.005 * random(5, n, 64, seed=n)).float() for n in (6, 4))
    for scatter_weight in (0.0, 1.0):
        found = scatter_episode_loss(support, query, scatter_weight=scatter_weight, distance=distance)
        exact = (
            reference_scatter(support.double())
            if scatter_weight
            else reference_cross_entropy(support.double(), query.double(), distance)[0]
        )
        assert found.loss.item() == pytest.approx(exact.item(), rel=1e-4)


@pytest.mark.parametrize("distance", ["euclidean", "squared"])
def test_autocast_changes_nothing(distance: Distance) -> None:
    support, query = random(3, 4, 8).bfloat16(), random(3, 2, 8, seed=1).bfloat16()
    plain = scatter_episode_loss(support, query, scatter_weight=0.5, distance=distance)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = scatter_episode_loss(support, query, scatter_weight=0.5, distance=distance)
    assert mixed.loss.dtype == torch.float32
    assert torch.equal(mixed.loss, plain.loss)
