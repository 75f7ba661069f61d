"""PCN and PN against the paper's equations as plain float64 loops."""

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from draws import random
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.pcn import (
    class_scores,
    pcn_episode_loss,
    responsibilities,
    support_responsibilities,
    update_prototypes,
    weigh_support,
)


def padding(clusters: list[int]) -> Tensor:
    """bool [C, max(clusters)]: which slots of each class are real."""
    return torch.arange(max(clusters)) < torch.tensor(clusters)[:, None]


def q_of(x: Tensor, prototypes: list[Tensor], temperature: float) -> list[Tensor]:
    """Eq. 3 for one image: its responsibilities over the real prototypes of one class."""
    powers = [torch.exp(-((x - mu) ** 2).sum() / temperature) for mu in prototypes]
    return [power / sum(powers) for power in powers]


def reference_loss(
    support: Tensor,
    query: Tensor,
    prototypes: Tensor,
    clusters: list[int],
    temperature: float,
    memory: float,
    detach: bool = False,
) -> tuple[Tensor, list[list[Tensor]]]:
    """Algorithm 1 for one episode, one image and one cluster at a time: loss and μ_new[class][cluster]."""
    moved: list[list[Tensor]] = []
    for k, num in enumerate(clusters):
        old = [prototypes[k, z].detach() for z in range(num)]
        shares = [q_of(x, old, temperature) for x in support[k]]
        if detach:
            shares = [[q.detach() for q in row] for row in shares]
        new = []
        for z in range(num):
            total = sum(row[z] for row in shares)
            if total < 1e-6:
                new.append(old[z])
            else:
                mean = sum(row[z] * x for row, x in zip(shares, support[k], strict=True)) / total
                new.append(memory * old[z] + (1 - memory) * mean)
        moved.append(new)
    losses = []
    for own, images in enumerate(query):
        for x in images:
            scores = []
            for centers in moved:
                q = q_of(x, centers, temperature)
                scores.append(
                    -sum(share * ((x - mu) ** 2).sum() for share, mu in zip(q, centers, strict=True))
                )
            losses.append(torch.logsumexp(torch.stack(scores), 0) - scores[own])
    return torch.stack(losses).mean(), moved


def reference_pn(support: Tensor, query: Tensor) -> Tensor:
    """Prototypical networks: cross entropy over minus squared distances to the support's class means."""
    means = support.mean(1)
    losses = []
    for own, images in enumerate(query):
        for x in images:
            scores = -((x - means) ** 2).sum(-1)
            losses.append(torch.logsumexp(scores, 0) - scores[own])
    return torch.stack(losses).mean()


CASES = [([3, 3, 3, 3], 0.5, False), ([1, 3, 2, 4], 0.5, False), ([2, 4, 1, 3], 0.0, True)]


@pytest.mark.parametrize(("clusters", "memory", "detach"), CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float64, 1e-11)])
def test_episode_and_gradient_are_the_loops(
    clusters: list[int], memory: float, detach: bool, dtype: torch.dtype, tolerance: float
) -> None:
    inputs = [random(4, 5, 6).to(dtype), random(4, 3, 6, seed=1).to(dtype)]
    prototypes = random(4, max(clusters), 6, seed=2).to(dtype)
    support, query = (x.clone().requires_grad_() for x in inputs)
    episode = pcn_episode_loss(
        support,
        query,
        prototypes,
        padding(clusters),
        temperature=3.0,
        memory=memory,
        detach_responsibilities=detach,
    )
    episode.loss.backward()
    exact_support, exact_query = (x.double().requires_grad_() for x in inputs)
    exact, moved = reference_loss(
        exact_support, exact_query, prototypes.double(), clusters, 3.0, memory, detach
    )
    exact.backward()

    assert episode.loss.dtype == dtype
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(episode.loss.detach().double(), exact.detach(), **close)
    torch.testing.assert_close(support.grad.double(), exact_support.grad, **close)
    torch.testing.assert_close(query.grad.double(), exact_query.grad, **close)
    new = update_prototypes(prototypes, episode.numerators, episode.denominators, memory)
    assert not new.requires_grad
    for k, num in enumerate(clusters):
        for z in range(num):
            torch.testing.assert_close(new[k, z].double(), moved[k][z].detach(), **close)


def test_gradcheck_with_unequal_clusters() -> None:
    prototypes, mask = random(3, 3, 2, seed=2), padding([1, 3, 2])

    def loss(support: Tensor, query: Tensor) -> Tensor:
        return pcn_episode_loss(support, query, prototypes, mask, temperature=2.0, memory=0.5).loss

    inputs = (random(3, 3, 2).requires_grad_(), random(3, 2, 2, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(loss, inputs)


def sums_of(support: Tensor, old: Tensor, mask: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    return weigh_support(support, support_responsibilities(support, old, mask, temperature))


def test_gradient_reaches_the_support_and_not_the_memory() -> None:
    support, prototypes = random(2, 4, 3).requires_grad_(), random(2, 3, 3, seed=1).requires_grad_()
    mask = padding([3, 3])
    _, sums = sums_of(support, prototypes, mask, 3.0)
    (gradient,) = torch.autograd.grad(sums[:, 0].sum(), support)
    assert gradient.abs().max() > 0
    episode = pcn_episode_loss(support, support, prototypes, mask, temperature=3.0, memory=0.5)
    episode.loss.backward()
    assert prototypes.grad is None


@settings(max_examples=25)
@given(
    num_classes=st.integers(2, 5), shots=st.integers(1, 6), dim=st.integers(1, 8), seed=st.integers(0, 10**6)
)
def test_one_cluster_without_memory_is_pn(num_classes: int, shots: int, dim: int, seed: int) -> None:
    support, query = random(num_classes, shots, dim, seed=seed), random(num_classes, 3, dim, seed=seed + 1)
    old, mask = random(num_classes, 1, dim, seed=seed + 2), torch.ones(num_classes, 1, dtype=torch.bool)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        a, b = support.to(dtype), query.to(dtype)
        loss = pcn_episode_loss(a, b, old.to(dtype), mask, temperature=3.0, memory=0.0).loss
        exact = reference_pn(a.double(), b.double())
        # Relative, but a loss near 0 is a difference of logits of this size.
        size = max(1.0, (b.flatten(0, 1)[:, None] - a.mean(1)).square().sum(-1).max().item())
        assert abs(loss.item() - exact.item()) <= tolerance * max(exact.item(), size)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), clusters=st.lists(st.integers(1, 4), min_size=2, max_size=5))
def test_order_of_classes_images_and_clusters_does_not_matter(seed: int, clusters: list[int]) -> None:
    num = len(clusters)
    support, query = random(num, 4, 3, seed=seed), random(num, 3, 3, seed=seed + 1)
    prototypes, mask = random(num, max(clusters), 3, seed=seed + 2), padding(clusters)
    shuffle = torch.Generator().manual_seed(seed)

    def order(size: int) -> Tensor:
        return torch.randperm(size, generator=shuffle)

    def loss(*tensors: Tensor) -> float:
        return pcn_episode_loss(*tensors, temperature=3.0, memory=0.5).loss.item()

    expected = pytest.approx(loss(support, query, prototypes, mask), rel=1e-10, abs=1e-12)
    classes = order(num)
    assert loss(support[classes], query[classes], prototypes[classes], mask[classes]) == expected
    assert loss(support[:, order(4)], query[:, order(3)], prototypes, mask) == expected
    slots = order(max(clusters))
    assert loss(support, query, prototypes[:, slots], mask[:, slots]) == expected


@pytest.mark.parametrize("filling", [0.0, 1e30, -7.0, math.nan])
def test_what_lies_in_padded_slots_does_not_matter(filling: float) -> None:
    clusters = [1, 3, 2]
    mask, query = padding(clusters), random(3, 2, 4, seed=1)
    prototypes = random(3, 3, 4, seed=2).masked_fill(~mask[..., None], filling)
    support = random(3, 3, 4).requires_grad_()
    episode = pcn_episode_loss(support, query, prototypes, mask, temperature=3.0, memory=0.5)
    episode.loss.backward()
    exact, _ = reference_loss(support.detach(), query, prototypes, clusters, 3.0, 0.5)
    torch.testing.assert_close(episode.loss.detach(), exact, rtol=1e-11, atol=0)
    assert support.grad.isfinite().all()
    assert (episode.denominators[~mask] == 0).all()
    assert (episode.numerators[~mask] == 0).all()


def test_supports_of_several_episodes_merge_by_their_sums() -> None:
    old, mask = random(3, 2, 4, seed=2), padding([2, 1, 2])
    first, second = random(3, 5, 4), random(3, 3, 4, seed=1)
    parts = [sums_of(part, old, mask, 3.0) for part in (first, second)]
    together = sums_of(torch.cat([first, second], dim=1), old, mask, 3.0)
    merged = update_prototypes(old, parts[0][0] + parts[1][0], parts[0][1] + parts[1][1], 0.5)
    torch.testing.assert_close(merged, update_prototypes(old, *together, 0.5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("far", [30.0, 1e6])
def test_a_cluster_without_responsibility_keeps_its_prototype_and_gives_no_nan(far: float) -> None:
    old = random(2, 2, 3, seed=2).float()
    old[:, 1] += far
    support, query = random(2, 4, 3).float().requires_grad_(), random(2, 3, 3, seed=1).float()
    mask = padding([2, 2])
    episode = pcn_episode_loss(support, query, old, mask, temperature=1.0, memory=0.5)
    episode.loss.backward()
    assert (episode.denominators[:, 1] < 1e-6).all()
    assert support.grad.isfinite().all()
    assert support.grad.abs().max() > 0
    new = update_prototypes(old, episode.numerators, episode.denominators, 0.5)
    assert torch.equal(new[:, 1], old[:, 1])
    assert not torch.equal(new[:, 0], old[:, 0])


def test_a_tiny_responsibility_above_the_minimum_moves_the_prototype_half_way() -> None:
    old = torch.tensor([[[0.0], [4.0]]], dtype=torch.float64)
    support = torch.zeros(1, 3, 1, dtype=torch.float64)
    numerators, denominators = sums_of(support, old, padding([2]), 2.0)
    assert 1e-6 < denominators[0, 1] < 1e-2
    new = update_prototypes(old, numerators, denominators, 0.5)
    torch.testing.assert_close(new[0, 1, 0].item(), 2.0, rtol=1e-12, atol=1e-12)


def test_offset_embeddings_lose_no_accuracy() -> None:
    """Norm 16, spread 0.01: the plain product in float32 changes this loss by about 1e-2."""
    direction = functional.normalize(random(1, 64, seed=9), dim=-1)
    centers = 16 * direction + 0.01 * random(5, 1, 64, seed=3)
    inputs = [centers + 0.005 * random(5, n, 64, seed=n) for n in (6, 4, 3)]
    support, query, prototypes = (x.float() for x in inputs)
    clusters, temperature = [3, 3, 1, 2, 3], 1e-3
    episode = pcn_episode_loss(
        support, query, prototypes, padding(clusters), temperature=temperature, memory=0.5
    )
    doubles = (x.double() for x in (support, query, prototypes))
    exact, _ = reference_loss(*doubles, clusters, temperature, 0.5)
    assert episode.loss.item() == pytest.approx(exact.item(), rel=1e-4)


def test_responsibilities_sum_to_one_and_survive_huge_distances() -> None:
    mask = torch.tensor([True, True, False])
    q = responsibilities(torch.tensor([[1e30, 1e30, 0.0], [0.0, 1e30, 0.0], [1.0, 3.0, 0.0]]), mask, 2.0)
    exact = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0]])
    torch.testing.assert_close(q, exact)
    ones = torch.ones(2, 3, requires_grad=True)
    nothing = responsibilities(ones, torch.zeros(3, dtype=torch.bool), 1.0)
    nothing.sum().backward()
    assert (nothing == 0).all()
    assert (ones.grad == 0).all()


def test_class_scores_have_the_papers_linear_form() -> None:
    """Eq. 6 to 8: s_k(x) = w·f(x) − b − ‖f(x)‖², w = 2 Σ q μ and b = Σ q ‖μ‖², the last term the same for every class."""
    x, prototypes, mask = random(6, 5), random(4, 3, 5, seed=1), padding([3, 1, 2, 3])
    scores = class_scores(x, prototypes, mask, 0.7)
    for i, point in enumerate(x):
        for k in range(4):
            real = prototypes[k][mask[k]]
            q = torch.stack(q_of(point, list(real), 0.7))
            w, b = 2 * (q[:, None] * real).sum(0), (q * (real**2).sum(1)).sum()
            assert scores[i, k].item() == pytest.approx((w @ point - b - point @ point).item(), rel=1e-10)


def test_class_scores_in_pieces_and_without_prototypes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, prototypes, mask = random(11, 4), random(3, 2, 4, seed=1), padding([2, 1, 2])
    mask[2] = False
    whole = class_scores(x, prototypes, mask, 2.0)
    for i in range(len(x)):
        for k, num in enumerate((2, 1)):
            centers = list(prototypes[k, :num])
            shares = q_of(x[i], centers, 2.0)
            exact = -sum(q * ((x[i] - mu) ** 2).sum() for q, mu in zip(shares, centers, strict=True))
            torch.testing.assert_close(whole[i, k], exact, rtol=1e-12, atol=1e-12)
    assert (whole[:, 2] == -math.inf).all()
    monkeypatch.setattr("fsl_dist.losses.pcn._DISTANCES_PER_CHUNK", 12)
    torch.testing.assert_close(class_scores(x, prototypes, mask, 2.0), whole, rtol=1e-12, atol=1e-12)


def test_logged_figures() -> None:
    # Class 0's images are midway between two clusters; class 1 leaves its second nothing; class 2 a little.
    old = torch.tensor([[[-1.0], [1.0]], [[9.0], [29.0]], [[50.0], [53.0]]])
    support, mask = torch.tensor([[[0.0]] * 3, [[9.0]] * 3, [[50.0]] * 3]), padding([2, 2, 2])
    episode = pcn_episode_loss(support, support, old, mask, temperature=1.0, memory=0.5)
    assert episode.accuracy.item() == 1.0
    far = math.exp(-9) / (1 + math.exp(-9))
    perplexity = math.exp(-far * math.log(far) - (1 - far) * math.log(1 - far))
    assert episode.responsibility_perplexity.item() == pytest.approx((2 + 1 + perplexity) / 3, rel=1e-5)
    assert episode.low_share.item() == pytest.approx(1 / 6)  # 3 · far = 3.7e-4, one of six real clusters
    wrong = pcn_episode_loss(support, support.flip(0), old, mask, temperature=1.0, memory=0.5)
    assert wrong.accuracy.item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("forward", [lambda x: x.bfloat16(), lambda x: x.float()])
def test_autocast_changes_nothing(forward: Callable[[Tensor], Tensor]) -> None:
    support, query = forward(random(3, 4, 8)), forward(random(3, 2, 8, seed=1))
    prototypes, mask = random(3, 2, 8, seed=2).float(), padding([2, 1, 2])
    plain = pcn_episode_loss(support, query, prototypes, mask, temperature=3.0, memory=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pcn_episode_loss(support, query, prototypes, mask, temperature=3.0, memory=0.5)
    assert mixed.loss.dtype == mixed.numerators.dtype == torch.float32
    assert torch.equal(mixed.loss, plain.loss)
    assert torch.equal(mixed.numerators, plain.numerators)


def test_without_padding_no_mask_is_needed():
    old, support, query = (torch.randn(*shape, 6, dtype=torch.float64) for shape in ((4, 3), (4, 5), (4, 2)))
    everywhere = torch.ones(4, 3, dtype=torch.bool)
    found = []
    for mask in (everywhere, None):
        tensors = support.clone().requires_grad_(), query.clone().requires_grad_()
        episode = pcn_episode_loss(*tensors, old, mask, temperature=2.0, memory=0.5)
        gradients = torch.autograd.grad(episode.loss, tensors)
        scores = class_scores(query[0], old, mask, 2.0)
        parts = [getattr(episode, field.name) for field in dataclasses.fields(episode)]
        found.append((*parts, *gradients, scores))
    for masked, plain in zip(*found, strict=True):
        torch.testing.assert_close(masked, plain, rtol=1e-12, atol=1e-12, check_dtype=False)
