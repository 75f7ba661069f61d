"""Cross entropy, plain or weighted against class imbalance."""

import torch
from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import at_least_float32


def class_weights(counts: Tensor) -> Tensor:
    """Weights against class imbalance: N / (C · n_c).

    Their mean over the images is 1 when every class has some.

    Args:
        counts: n_c, int64 [C], images of each class.

    Returns:
        float32 [C]; 0 for a class without images.
    """
    exact = counts.double()
    weights = exact.sum() / (len(counts) * exact.clamp_min(1.0))
    return weights.masked_fill(counts == 0, 0.0).float()


def cross_entropy_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted cross entropy: mean of −log softmax at the target, Σ w·l / Σ w over the images' class weights w.

    A mean over workers must therefore be weighted by Σ w, not by n. With smoothing s (Szegedy et al. 2016, section 7)
    an image's w·l becomes (1 − s)·w_y·l_y + s/C · Σ_c w_c·l_c, as in torch; Σ w does not change.

    Args:
        logits: float [n, C], converted to float32 at least.
        targets: int64 [n].
        weights: [C] of `class_weights`; None for equal weights.
        label_smoothing: s, at least 0 and below 1.

    Returns:
        The loss [], and, without gradient, the accuracy [], 0 … 1.
    """
    (logits,) = at_least_float32(logits)
    weights = None if weights is None else weights.to(logits.dtype)
    loss = functional.cross_entropy(logits, targets, weight=weights, label_smoothing=label_smoothing)
    accuracy = (logits.detach().argmax(-1) == targets).float().mean()
    return loss, accuracy


def mixed_cross_entropy_loss(
    logits: Tensor,
    targets: Tensor,
    partners: Tensor,
    shares: Tensor,
    weights: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Cross entropy of images that were mixed with others (Mixup, Zhang et al. 2018; CutMix, Yun et al. 2019).

    Σ (1 − s)·w_y·l_y + s·w_p·l_p over Σ (1 − s)·w_y + s·w_p, with the target y and the partner's target p; with s = 0
    it is `cross_entropy_loss`.

    Args:
        logits: float [n, C], converted to float32 at least.
        targets: int64 [n], of the images.
        partners: int64 [n], targets of the images that were mixed in.
        shares: s, float [n], share of the partner in each image, 0 … 1.
        weights: [C] of `class_weights`; None for equal weights.
        label_smoothing: of each of the two terms, as in torch.

    Returns:
        The loss [], and, without gradient, the accuracy against the target of the larger share [], 0 … 1.
    """
    (logits,) = at_least_float32(logits)
    weights = logits.new_ones(logits.shape[1]) if weights is None else weights.to(logits.dtype)
    shares = shares.to(logits.dtype)
    total, weight = logits.new_zeros(()), logits.new_zeros(())
    for some, share in ((targets, 1 - shares), (partners, shares)):
        losses = functional.cross_entropy(
            logits, some, weight=weights, reduction="none", label_smoothing=label_smoothing
        )
        total, weight = total + (share * losses).sum(), weight + (share * weights[some]).sum()
    larger = torch.where(shares > 0.5, partners, targets)
    accuracy = (logits.detach().argmax(-1) == larger).float().mean()
    return total / weight, accuracy
