"""The batch-hard triplet loss (Hermans, Beyer & Leibe 2017), the triplet loss that deep kNN is compared with."""

import torch
from torch import Tensor

from fsl_dist.losses.deep_knn import deep_knn_loss
from fsl_dist.losses.ranking import rank_pairs


def batch_hard_loss(embeddings: Tensor, labels: Tensor, ids: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Mean over anchors of [‖f(x) − f(furthest of its class)‖ − ‖f(x) − f(nearest of the others)‖ + margin]₊.

    embeddings: [n, D]; labels, ids: int64 [n], ids unique. Every image is an anchor; one that lacks a mate or an image of
    another class in the batch is left out of the mean. The gradient flows through all three images, not through
    who they are; equal distances go to the smaller id.

    Returns the loss [], 0 with zero gradient where no anchor has both, and the share of triplets above zero [],
    0 … 1, without gradient.
    """
    is_same_class = labels[:, None] == labels[None, :]
    is_itself = ids[:, None] == ids[None, :]
    mate = rank_pairs(embeddings, is_same_class & ~is_itself, ids, 1, furthest=True)
    other = rank_pairs(embeddings, ~is_same_class, ids, 1)
    # One triplet an anchor: the mean over the triplets that exist is the mean over anchors that have both.
    anchor = torch.arange(len(ids), device=ids.device)
    return deep_knn_loss(embeddings, anchor, mate, other, margin)
