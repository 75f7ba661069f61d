"""Cross entropy, plain and weighted, against its definition."""

from pathlib import Path

import pytest
import torch
from draws import random
from torch import Tensor

from fsl_dist.config import load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.errors import ConfigError
from fsl_dist.losses.cross_entropy import class_weights, cross_entropy_loss


def reference(logits: Tensor, targets: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Σ w·(log Σ exp − logit) / Σ w, one image at a time; of smoothed targets Σ q_c·w_c·(log Σ exp − logit_c)."""
    total, weight = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits, targets, strict=True):
        for number in range(len(row)):
            share = smoothing / len(row) + (1 - smoothing) * (number == int(target))
            total = total - share * weights[number] * torch.log(row.exp()[number] / row.exp().sum())
        weight = weight + weights[target]
    return total / weight


def test_class_weights_are_inverse_frequencies() -> None:
    counts = torch.tensor([10, 30, 0, 40])
    weights = class_weights(counts)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([80 / 40, 80 / 120, 0.0, 80 / 160]))
    assert (class_weights(torch.zeros(3, dtype=torch.int64)) == 0).all()


def test_class_weights_average_to_one_over_the_images() -> None:
    counts = torch.tensor([1, 10, 1000])
    torch.testing.assert_close((class_weights(counts) * counts).sum() / counts.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.75])
@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_loss_and_gradient_are_the_loops(
    smoothing: float, is_weighted: bool, dtype: torch.dtype, tolerance: float
) -> None:
    points, targets = 3 * random(9, 4).to(dtype), torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 0])
    weights = class_weights(targets.bincount()) if is_weighted else None
    logits, exact_logits = points.clone().requires_grad_(), points.double().requires_grad_()
    loss, accuracy = cross_entropy_loss(logits, targets, weights, label_smoothing=smoothing)
    exact_weights = torch.ones(4).double() if weights is None else weights.double()
    exact = reference(exact_logits, targets, exact_weights, smoothing)
    loss.backward()
    exact.backward()
    close = {"rtol": tolerance, "atol": tolerance}
    assert loss.dtype == dtype
    torch.testing.assert_close(loss.detach().double(), exact.detach(), **close)
    torch.testing.assert_close(logits.grad.double(), exact_logits.grad, **close)
    right = sum(row.tolist().index(max(row.tolist())) == t for row, t in zip(points, targets, strict=True))
    assert accuracy.item() == pytest.approx(right / 9)


def test_gradcheck() -> None:
    weights, targets = torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0, 2, 1, 1])
    logits = random(4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cross_entropy_loss(x, targets, weights)[0], (logits,))


def test_half_precision_logits_are_widened() -> None:
    logits, targets = random(5, 3).bfloat16(), torch.tensor([0, 1, 2, 0, 1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = cross_entropy_loss(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(
        reference(logits.double(), targets, torch.ones(3).double()).item(), rel=1e-6
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_a_run_smooths_by_its_setting(digits: Path, smoothing: float) -> None:
    config = load_config(
        None,
        ["method.kind=cross_entropy", "training.batch_size=12", f"method.label_smoothing={smoothing}"],
    )
    catalogue = Catalogue.open(digits)
    method = config.build_method(catalogue, catalogue.select("train"), torch.device("cpu"))
    (batch,) = method.batches(0, 0)
    logits = random(12, method.num_outputs)
    targets = torch.from_numpy(batch.payload)
    expected = reference(logits, targets, torch.ones(method.num_outputs).double(), smoothing)
    torch.testing.assert_close(method.loss(logits, batch).loss, expected)


def test_targets_cannot_be_smoothed_away() -> None:
    assert load_config(None, ["method.kind=cross_entropy"]).method.label_smoothing == 0.1
    with pytest.raises(ConfigError, match=r"method\.label_smoothing=1 must be at least 0 and below 1"):
        load_config(None, ["method.kind=cross_entropy", "method.label_smoothing=1"])
