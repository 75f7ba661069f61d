"""Deep kNN: pull an anchor's nearest images of its class closer than its nearest images of other classes.

Equation numbers are those of Zhuang et al., "Deep kNN for Medical Image Classification".
"""

import torch
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import euclidean_rows
from fsl_dist.losses.ranking import rank_pairs


@torch.no_grad()
def batch_neighbours(
    embeddings: Tensor, labels: Tensor, ids: Tensor, num_same: int, num_other: int
) -> tuple[Tensor, Tensor]:
    """Each image's nearest images of its class and of all other classes, within the batch.

    Exact by distances in float64; equal distances go to the smaller id. No gradient. Costs n² product distances and n·(K + M) direct
    ones.

    Args:
        embeddings: float [n, D].
        labels: int64 [n].
        ids: int64 [n], sample ids; an image is left out of its own neighbours by its id.
        num_same: K, neighbours of the same class.
        num_other: M, neighbours of other classes.

    Returns:
        Positions in the batch, nearest first: int64 [n, K] and int64 [n, M], −1 where there are fewer.
    """
    is_same_class = labels[:, None] == labels[None, :]
    is_itself = ids[:, None] == ids[None, :]
    allowed = torch.stack([is_same_class & ~is_itself, ~is_same_class])
    same, other = rank_pairs(embeddings, allowed, ids, max(num_same, num_other))
    return same[:, :num_same], other[:, :num_other]


def deep_knn_loss(
    embeddings: Tensor, anchor: Tensor, same: Tensor, other: Tensor, margin: float
) -> tuple[Tensor, Tensor]:
    """Triplets of anchors and their neighbours (deep kNN Eq. 2, 3).

    Mean over the triplets that exist of [‖f(x) − f(y)‖ − ‖f(x) − f(z)‖ + margin]₊, y a neighbour of the same class, z of another. The
    gradient flows through all three images. Satisfied triplets count as zeros.

    Args:
        embeddings: float [B, D].
        anchor: int64 [A], positions in `embeddings`.
        same: int64 [A, K], positions of neighbours of the anchor's class, −1 where there is none.
        other: int64 [A, M], of other classes, alike.
        margin: of the hinge, 0 or more.

    Returns:
        The loss [], 0 with zero gradient where there is no triplet; and, without gradient, the share of triplets above zero [], 0 … 1.
    """
    # Rows by `embedding`: its gradient adds them up in half the time of an index's. Position −1 reads the first image,
    # whose triplets are masked below.
    places = torch.cat([same, other], dim=-1).clamp_min(0)
    anchors = functional.embedding(anchor, embeddings).unsqueeze(1)
    distances = euclidean_rows(anchors, functional.embedding(places, embeddings))  # [A, K + M]
    to_same, to_other = distances.split([same.shape[-1], other.shape[-1]], dim=-1)
    # [A, K, M]
    hinge = (to_same.unsqueeze(-1) - to_other.unsqueeze(-2) + margin).relu()
    exists = (same >= 0).unsqueeze(-1) & (other >= 0).unsqueeze(-2)
    num = exists.sum().clamp_min(1)
    loss = hinge.masked_fill(~exists, 0.0).sum() / num
    active = ((hinge.detach() > 0) & exists).sum() / num
    return loss, active
