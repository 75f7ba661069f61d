"""Cross entropy, plain or weighted against class imbalance."""

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
    """Mean of −log softmax at the target, Σ w·l / Σ w over the images' class weights w.

    A mean over workers is therefore weighed by Σ w, not by n. With smoothing s (Szegedy et al. 2016, section 7) an image's
    w·l becomes (1 − s)·w_y·l_y + s/C · Σ_c w_c·l_c, as torch has it; Σ w stays.

    Args:
        logits: float [n, C], taken to float32 at least.
        targets: int64 [n].
        weights: [C] of `class_weights`; None for equal ones.

        label_smoothing: s, at least 0 and below 1.

    Returns:
        The loss [], and, without gradient, the accuracy [], 0 … 1.
    """
    (logits,) = at_least_float32(logits)
    weights = None if weights is None else weights.to(logits.dtype)
    loss = functional.cross_entropy(logits, targets, weight=weights, label_smoothing=label_smoothing)
    accuracy = (logits.detach().argmax(-1) == targets).float().mean()
    return loss, accuracy
