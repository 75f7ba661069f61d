"""Deep kNN loss: pull an anchor's nearest images of its class closer than its nearest images of other classes.

Equation numbers are those of Zhuang et al., "Deep kNN for Medical Image Classification". The softmax over neighbours
is that of Wu, Efros & Yu 2018, "Improving Generalization via Scalable Neighborhood Component Analysis", limited to K
and M neighbours.
"""

import torch
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import at_least_float32, euclidean_rows, squared_distances
from fsl_dist.losses.ranking import rank_pairs

NO_TERMS = -1e9
"""logarithm of a sum without terms: finite, so that its gradient is 0 and not NaN"""


@torch.no_grad()
def batch_neighbours(
    embeddings: Tensor, labels: Tensor, ids: Tensor, num_same: int, num_other: int
) -> tuple[Tensor, Tensor]:
    """Find each image's nearest images of its class and of all other classes, within the batch.

    Exact by distances in float64; equal distances are ordered by id. No gradient. Costs n² distances by matrix
    product, and n·(K + M) direct ones.

    Args:
        embeddings: float [n, D].
        labels: int64 [n].
        ids: int64 [n], sample ids; an image is excluded from its own neighbours by its id.
        num_same: K, neighbours of the same class.
        num_other: M, neighbours of other classes.

    Returns:
        Positions in the batch, nearest first: int64 [n, K] and int64 [n, M], −1 if there are fewer.
    """
    is_same_class = labels[:, None] == labels[None, :]
    is_itself = ids[:, None] == ids[None, :]
    allowed = torch.stack([is_same_class & ~is_itself, ~is_same_class])
    same, other = rank_pairs(embeddings, allowed, ids, max(num_same, num_other))
    return same[:, :num_same], other[:, :num_other]


def deep_knn_loss(
    embeddings: Tensor, anchor: Tensor, same: Tensor, other: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Compute the triplet loss of anchors and their neighbours (deep kNN Eq. 2, 3).

    Mean over the existing triplets of [‖f(x) − f(y)‖ − ‖f(x) − f(z)‖ + margin]₊, y a neighbour of the same class, z
    of another. The gradient flows through all three images. Satisfied triplets count as zeros.

    Args:
        embeddings: float [B, D].
        anchor: int64 [A], positions in `embeddings`.
        same: int64 [A, K], positions of neighbours of the anchor's class, −1 if there are fewer.
        other: int64 [A, M], positions of neighbours of other classes, −1 if there are fewer.
        margin: of the hinge, 0 or more.

    Returns:
        The loss [], 0 with zero gradient if there is no triplet; and, without gradient, the share of triplets above
        zero [], 0 … 1.
    """
    # Rows by `embedding`: its gradient adds them up in half the time of an index's. Position −1 reads the first image,
    # whose triplets are masked in the hinge.
    places = torch.cat([same, other], dim=-1).clamp_min(0)
    anchors = functional.embedding(anchor, embeddings).unsqueeze(1)
    distances = euclidean_rows(anchors, functional.embedding(places, embeddings))  # [A, K + M]
    to_same, to_other = distances.split([same.shape[-1], other.shape[-1]], dim=-1)
    return triplet_hinge(to_same, to_other, same >= 0, other >= 0, margin)


def triplet_hinge(
    to_same: Tensor, to_other: Tensor, is_same: Tensor, is_other: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Compute the deep kNN loss (Eq. 2, 3) from distances.

    Args:
        to_same: float [A, K], Euclidean distances of anchors to neighbours of their class.
        to_other: float [A, M], to neighbours of other classes.
        is_same: bool [A, K], which of `to_same` exist.
        is_other: bool [A, M], which of `to_other` exist.
        margin: of the hinge, 0 or more.

    Returns:
        As `deep_knn_loss`.
    """
    # [A, K, M]
    hinge = (to_same.unsqueeze(-1) - to_other.unsqueeze(-2) + margin).relu()
    exists = is_same.unsqueeze(-1) & is_other.unsqueeze(-2)
    num = exists.sum().clamp_min(1)
    loss = hinge.masked_fill(~exists, 0.0).sum() / num
    active = ((hinge.detach() > 0) & exists).sum() / num
    return loss, active


def neighbour_softmax(log_same: Tensor, log_other: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of −log S / (S + O) over the anchors that have neighbours of both kinds (Wu, Efros & Yu 2018, Eq. 5).

    It is the negative log-probability that an anchor's neighbour, drawn by exp(−‖·‖² / τ), has the anchor's class.

    Args:
        log_same: float [A], log S, S the sum of exp(−‖f(x) − f(y)‖² / τ) over neighbours y of the anchor's class;
            `NO_TERMS` or less if there are none.
        log_other: float [A], log O, the same over neighbours of other classes.

    Returns:
        The loss [], 0 with zero gradient if no anchor has both; and, without gradient, the mean of that probability [].
    """
    has_both = (log_same > NO_TERMS / 2) & (log_other > NO_TERMS / 2)
    num = has_both.sum().clamp_min(1)
    terms = functional.softplus(log_other - log_same).masked_fill(~has_both, 0.0)
    share = (-terms.detach()).exp().masked_fill(~has_both, 0.0).sum() / num
    return terms.sum() / num, share


def batch_log_sums(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor,
    temperature: float,
    num_same: int | None,
    num_other: int | None,
) -> tuple[Tensor, Tensor]:
    """Compute the arguments of `neighbour_softmax` with each image's neighbours in the batch.

    An image that occurs twice in the batch is a neighbour only once.

    Args:
        embeddings: float [n, D].
        labels: int64 [n].
        ids: int64 [n], sample ids; an image is excluded from its own neighbours by its id.
        temperature: τ, above 0, in units of squared distance.
        num_same: K nearest of the same class; None: all.
        num_other: M nearest of other classes; None: all.

    Returns:
        log S and log O, float32 or wider [n] each.
    """
    scores = squared_distances(embeddings, embeddings) / -temperature
    is_same_class = labels[:, None] == labels[None, :]
    same = is_same_class & (ids[:, None] != ids[None, :]) & is_first(ids)
    other = ~is_same_class & is_first(ids)
    if num_same is not None or num_other is not None:
        allowed = torch.stack([same, other])
        width = max(num_same or 0, num_other or 0)
        nearest = rank_pairs(embeddings, allowed, ids, min(width, len(ids)))
        same = same if num_same is None else _among(nearest[0, :, :num_same], same)
        other = other if num_other is None else _among(nearest[1, :, :num_other], other)
    return log_sum(scores, same), log_sum(scores, other)


def log_sum(scores: Tensor, counts: Tensor) -> Tensor:
    """log Σ exp(scores) along the last axis over the entries where `counts` is true;
    about `NO_TERMS` if there are none."""
    (scores,) = at_least_float32(scores)
    return scores.masked_fill(~counts, NO_TERMS).logsumexp(-1)


def is_first(ids: Tensor) -> Tensor:
    """bool [n]: which of `ids` (int64 [n]) have not come before."""
    is_earlier = torch.ones(len(ids), len(ids), dtype=torch.bool, device=ids.device).tril(-1)
    return ~((ids[:, None] == ids[None, :]) & is_earlier).any(1)


def _among(positions: Tensor, like: Tensor) -> Tensor:
    """bool mask as `like` [n, n] of the `positions` (int64 [n, k], −1 for none) of each row."""
    mask = torch.zeros(like.shape[0], like.shape[1] + 1, dtype=torch.bool, device=like.device)
    return mask.scatter_(1, positions.remainder(like.shape[1] + 1), True)[:, :-1]
