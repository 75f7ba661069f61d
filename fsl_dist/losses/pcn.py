"""Prototypical clustering networks: several prototypes per class, soft assignments, and the loss of an episode.

Equation numbers are those of Prabhu et al., "Few-Shot Learning for Dermatological Disease Diagnosis". Prototypical
networks (PN) are the case of one cluster and memory 0. Shapes: C classes, M prototype slots per class (classes with
fewer are padded, see `mask`), k support and q query images per class, D the size of the embedding. A mask of None
means that no slot is padding, which saves a dozen small operations.

All episodes and workers of a step start from the same μ_old. Their numerators and denominators are summed, and one
call of `update_prototypes` on the sums merges the supports exactly as if they were one episode's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import at_least_float32, squared_distances, without_autocast

MIN_RESPONSIBILITY = 1e-6
"""a cluster whose total responsibility is below this keeps its prototype"""
LOW_RESPONSIBILITY = 1e-2
"""a cluster that gets less than this, though more than the minimum, moves on little evidence"""
# 2^24 distances in float32 are 64 MiB; scoring all test images against all prototypes is done in such blocks.
_DISTANCES_PER_CHUNK = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class PCNEpisode:
    """Loss of one episode, its contribution to the memory, and its metrics. Only `loss` has a gradient."""

    loss: Tensor
    """[]: mean over the C·q query images of −log p(own class)"""
    numerators: Tensor
    """[C, M, D]: Σ q(z|k,x) f(x) over the support"""
    denominators: Tensor
    """[C, M]: Σ q(z|k,x) over the support"""
    accuracy: Tensor
    """[]: share of query images whose own class scores highest, 0 … 1"""
    responsibility_perplexity: Tensor
    """[]: number of prototypes a support image is shared among, exp(entropy of q) averaged, 1 … M"""
    low_share: Tensor
    """[]: share of the real clusters with min_responsibility ≤ Σq < LOW_RESPONSIBILITY, 0 … 1"""


def responsibilities(distances: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """q(z|k,x) = softmax over z of −d(f(x), μ_zk) / τ (PCN Eq. 3).

    distances: [..., M], finite; mask: bool, broadcast to them, False at padded slots, or None; temperature: τ > 0.
    Returns [..., M], 0 at padded slots; a class that is all padding gets zeros.
    """
    logits = _fill_padding(distances / -temperature, mask, float("-inf"))
    # A row of only padding is 0/0; the masks keep its NaN out of the result and the gradient.
    return _fill_padding(torch.softmax(logits, dim=-1), mask, 0.0)


def class_scores(x: Tensor, prototypes: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """Compute s_k(x) = −Σ_z q(z|k,x) d(f(x), μ_zk), the input of a softmax over classes (PCN Eq. 1).

    Memory: n·C·M distances, in blocks of 64 MiB without gradient.

    Args:
        x: float [n, D], embeddings.
        prototypes: float [C, M, D], any finite values at padded slots.
        mask: bool [C, M], which slots contain a prototype; None for all.
        temperature: τ > 0 of the responsibilities q.

    Returns:
        [n, C]; −inf for a class without a prototype.
    """
    x, prototypes = at_least_float32(x, prototypes)
    flat = _clear_padding(prototypes, mask).flatten(0, 1)
    rows = max(_DISTANCES_PER_CHUNK // max(len(flat), 1), 1)
    slots = prototypes.shape[:2]
    return torch.cat([_score_rows(part, flat, slots, mask, temperature) for part in x.split(rows)])


def _score_rows(
    x: Tensor, flat_prototypes: Tensor, slots: torch.Size, mask: Tensor | None, temperature: float
) -> Tensor:
    """Scores [n, C] of some rows against prototypes [C·M, D]; slots: C and M."""
    counts = None if mask is None else mask.flatten()
    distances = squared_distances(x, flat_prototypes, counts).unflatten(-1, slots)
    distances = _fill_padding(distances, mask, 0.0)
    scores = -(responsibilities(distances, mask, temperature) * distances).sum(-1)
    return scores if mask is None else scores.masked_fill(~mask.any(-1), float("-inf"))


def support_responsibilities(
    support: Tensor, prototypes: Tensor, mask: Tensor | None, temperature: float
) -> Tensor:
    """Compute q(z|k,x) of each support image over its own class's old prototypes (PCN Eq. 3): [C, k, M].

    support: [C, k, D]; prototypes: [C, M, D], a constant; mask: bool [C, M] or None.
    """
    distances = squared_distances(support, _clear_padding(prototypes.detach(), mask), mask)
    of_row = None if mask is None else mask.unsqueeze(-2)
    return responsibilities(_fill_padding(distances, of_row, 0.0), of_row, temperature)


def weigh_support(support: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Σ_x q f(x) [C, M, D] and Σ_x q [C, M] of PCN Eq. 4, for support [C, k, D] and its responsibilities q [C, k, M].

    Sums of several supports of a class merge them.
    """
    support, shares = at_least_float32(support, shares)
    with without_autocast(support):
        return shares.transpose(-1, -2) @ support, shares.sum(-2)


def update_prototypes(
    prototypes: Tensor,
    numerators: Tensor,
    denominators: Tensor,
    memory: float,
    min_responsibility: float = MIN_RESPONSIBILITY,
) -> Tensor:
    """Compute μ_new = memory·μ_old + (1 − memory)·Σ q f(x) / Σ q (PCN Eq. 4).

    A cluster with Σq < min_responsibility keeps μ_old and gets no gradient; so do padded slots, whose Σq is 0.

    Args:
        prototypes: μ_old [C, M, D], a constant.
        numerators: Σ q f(x), [C, M, D].
        denominators: Σ q, [C, M].
        memory: 0 … 1.
        min_responsibility: smallest Σq that moves a prototype.

    Returns:
        μ_new [C, M, D].
    """
    prototypes, numerators, denominators = at_least_float32(prototypes.detach(), numerators, denominators)
    keeps = (denominators < min_responsibility).unsqueeze(-1)
    # 1 before the division: a where() after 0/0 hides the NaN forwards and lets it out backwards.
    means = numerators / denominators.unsqueeze(-1).masked_fill(keeps, 1.0)
    return torch.where(keeps, prototypes, memory * prototypes + (1.0 - memory) * means)


def pcn_episode_loss(
    support: Tensor,
    query: Tensor,
    prototypes: Tensor,
    mask: Tensor | None,
    *,
    temperature: float,
    memory: float,
    detach_responsibilities: bool = False,
    min_responsibility: float = MIN_RESPONSIBILITY,
) -> PCNEpisode:
    """Compute one episode: update the prototypes by the support, score the query against them (PCN Algorithm 1).

    Distances, softmaxes and the loss are in float32 at least, for any dtype of the embeddings, with and without
    autocast.

    Args:
        support: float [C, k, D].
        query: float [C, q, D].
        prototypes: μ_old of the episode's classes, [C, M, D], a constant.
        mask: bool [C, M], which slots contain a prototype; None for all.
        temperature: τ > 0 (Eq. 3).
        memory: of the prototypes, 0 … 1 (Eq. 4).
        detach_responsibilities: block the gradient through q.
        min_responsibility: a cluster with a smaller Σq keeps its prototype.

    Returns:
        The loss, the accuracy, and the sums that update the prototype memory.
    """
    num_classes, num_queries = query.shape[:2]
    shares = support_responsibilities(support, prototypes, mask, temperature)
    numerators, denominators = weigh_support(support, shares.detach() if detach_responsibilities else shares)
    moved = update_prototypes(prototypes, numerators, denominators, memory, min_responsibility)

    scores = class_scores(query.flatten(0, 1), moved, mask, temperature)
    targets = torch.arange(num_classes, device=query.device).repeat_interleave(num_queries)
    sums = denominators.detach()
    low = (sums >= min_responsibility) & (sums < LOW_RESPONSIBILITY)
    return PCNEpisode(
        loss=functional.cross_entropy(scores, targets),
        numerators=numerators.detach(),
        denominators=sums,
        accuracy=(scores.detach().argmax(-1) == targets).float().mean(),
        responsibility_perplexity=torch.special.entr(shares.detach()).sum(-1).exp().mean(),
        low_share=low.float().mean() if mask is None else (low & mask).sum() / mask.sum().clamp_min(1),
    )


def _clear_padding(prototypes: Tensor, mask: Tensor | None) -> Tensor:
    """Prototypes [C, M, D] with zeros at padded slots, which may contain any value, even NaN."""
    return _fill_padding(prototypes, None if mask is None else mask.unsqueeze(-1), 0.0)


def _fill_padding(values: Tensor, mask: Tensor | None, by: float) -> Tensor:
    """`values` with `by` where `mask` is False."""
    return values if mask is None else values.masked_fill(~mask, by)
