"""Few-shot NCA: neighbourhood components analysis on a batch, without episodes (Laenen & Bertinetto 2021)."""

import torch
from torch import Tensor

from fsl_dist.losses.distances import squared_distances


def few_shot_nca_loss(embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Few-shot NCA loss: mean over anchors i of −log( Σ_{j≠i, y_j=y_i} e^{−‖f_i−f_j‖²} / Σ_{j≠i} e^{−‖f_i−f_j‖²} ).

    Anchors without another image of their class in the batch are excluded from the mean. Sums of exponentials are
    computed in log space.

    Args:
        embeddings: float [n, D], converted to float32 at least.
        labels: int64 [n].

    Returns:
        The loss [], 0 with zero gradient if there is no anchor; and, without gradient, the mean probability of
        drawing an image of the anchor's class [], 0 … 1.
    """
    is_itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    is_positive = (labels[:, None] == labels[None, :]) & ~is_itself
    # Chosen before the exponentials: an empty sum's logarithm is −inf, and its gradient NaN.
    anchors = is_positive.any(-1)
    logits = -squared_distances(embeddings, embeddings)[anchors]
    to_all = logits.masked_fill(is_itself[anchors], float("-inf")).logsumexp(-1)
    to_positives = logits.masked_fill(~is_positive[anchors], float("-inf")).logsumexp(-1)
    terms = to_all - to_positives
    num = anchors.sum().clamp_min(1)
    return terms.sum() / num, (-terms.detach()).exp().sum() / num
