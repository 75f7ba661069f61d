"""Cross entropy of mixed images, against its definition."""

import pytest
import torch
from draws import random

from fsl_dist.losses.cross_entropy import cross_entropy_loss, mixed_cross_entropy_loss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_the_loss_of_mixed_images_is_the_loops(is_weighted: bool, label_smoothing: float) -> None:
    """Each image is two, one per target, that count by their shares."""
    logits, targets = 3 * random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    partners, shares = targets[[1, 0, 3, 2, 5, 4]], torch.tensor([0.3, 0.3, 0.9, 0.9, 0.0, 0.5])
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]).double() if is_weighted else torch.ones(4).double()
    total = weight = 0.0
    for row, own, other, share in zip(logits.double(), targets, partners, shares, strict=True):
        losses = row.exp().sum().log() - row
        for target, part in ((own, 1 - share), (other, share)):
            spread = (weights * losses).mean()
            total += part * (
                (1 - label_smoothing) * weights[target] * losses[target] + label_smoothing * spread
            )
            weight += part * weights[target]
    found, accuracy = mixed_cross_entropy_loss(
        logits, targets, partners, shares, weights if is_weighted else None, label_smoothing=label_smoothing
    )
    assert found.item() == pytest.approx((total / weight).item(), rel=1e-6)
    larger = [0, 1, 3, 2, 0, 1]
    assert accuracy.item() == pytest.approx((logits.argmax(1) == torch.tensor(larger)).float().mean().item())


@pytest.mark.parametrize("is_weighted", [False, True])
def test_unmixed_images_have_the_plain_loss(is_weighted: bool) -> None:
    logits, targets = random(6, 4), torch.tensor([0, 1, 2, 3, 0, 1])
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0]) if is_weighted else None
    mixed = mixed_cross_entropy_loss(logits, targets, targets.flip(0), torch.zeros(6), weights)
    torch.testing.assert_close(mixed, cross_entropy_loss(logits, targets, weights))


def test_gradcheck() -> None:
    logits, targets, partners = (
        random(4, 3).requires_grad_(),
        torch.tensor([0, 2, 1, 1]),
        torch.tensor([2, 0, 1, 1]),
    )
    shares = torch.tensor([0.2, 0.2, 0.7, 0.7])
    assert torch.autograd.gradcheck(
        lambda x: mixed_cross_entropy_loss(x, targets, partners, shares)[0], (logits,)
    )
