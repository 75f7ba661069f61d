"""Cross entropy, plain or weighted against class imbalance."""

from torch import Tensor
from torch.nn import functional

from fsl_dist.losses.distances import at_least_float32


def class_weights(counts: Tensor) -> Tensor:
    """N / (C · n_c) for the images n_c of each of C classes: float32 [C] from int64 [C].

    Their mean over the images is 1 when every class has some. A class without images weighs 0.
    """
    exact = counts.double()
    weights = exact.sum() / (len(counts) * exact.clamp_min(1.0))
    return weights.masked_fill(counts == 0, 0.0).float()


def cross_entropy_loss(
    logits: Tensor, targets: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean of −log softmax at the target, and accuracy: [] and [] (0 … 1, no gradient).

    logits: [n, C], taken to float32 at least; targets: int64 [n]; weights: [C] of `class_weights`, or None. The mean is
    Σ w·l / Σ w over the images' class weights w, so a mean over workers is weighed by Σ w, not by n.
    """
    (logits,) = at_least_float32(logits)
    weights = None if weights is None else weights.to(logits.dtype)
    loss = functional.cross_entropy(logits, targets, weight=weights)
    accuracy = (logits.detach().argmax(-1) == targets).float().mean()
    return loss, accuracy
