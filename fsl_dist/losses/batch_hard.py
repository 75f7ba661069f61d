"""The batch-hard triplet loss (Hermans, Beyer & Leibe 2017), the triplet loss that deep kNN is compared with."""

import torch
from torch import Tensor

from fsl_dist.losses.deep_knn import deep_knn_loss
from fsl_dist.losses.ranking import rank_pairs


def batch_hard_loss(embeddings: Tensor, labels: Tensor, ids: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Batch-hard triplet loss: for each image, the farthest of its class and the nearest of the other classes.

    Mean over anchors x of [‖f(x) − f(farthest positive)‖ − ‖f(x) − f(nearest negative)‖ + margin]₊. Every image is an
    anchor; anchors without a positive or a negative in the batch are excluded from the mean. The gradient flows
    through all three images, but not through their selection; equal distances are ordered by id.

    Args:
        embeddings: float [n, D].
        labels: int64 [n].
        ids: int64 [n], unique sample ids.
        margin: of the hinge, 0 or more.

    Returns:
        The loss [], 0 with zero gradient if no anchor has both; and, without gradient, the share of triplets above
        zero [], 0 … 1.
    """
    is_same_class = labels[:, None] == labels[None, :]
    is_itself = ids[:, None] == ids[None, :]
    positive = rank_pairs(embeddings, is_same_class & ~is_itself, ids, 1, furthest=True)
    other = rank_pairs(embeddings, ~is_same_class, ids, 1)
    # One triplet an anchor: the mean over the triplets that exist is the mean over anchors that have both.
    anchor = torch.arange(len(ids), device=ids.device)
    return deep_knn_loss(embeddings, anchor, positive, other, margin)
