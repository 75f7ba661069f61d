"""Distances against direct differences in float64, also on offset data, duplicates and under autocast."""

import pytest
import torch
from draws import random
from torch import Tensor

from fsl_dist.losses.distances import euclidean_rows, squared_distances


def reference(a: Tensor, b: Tensor) -> Tensor:
    """‖aᵢ − bⱼ‖² by direct differences in float64: [n, m]."""
    return torch.stack([torch.stack([(x.double() - y.double()).square().sum() for y in b]) for x in a])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_squared_distances_are_the_direct_ones(dtype: torch.dtype, tolerance: float) -> None:
    a, b = random(7, 5).to(dtype), random(4, 5, seed=1).to(dtype)
    found = squared_distances(a, b)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), reference(a, b), rtol=tolerance, atol=tolerance)


def test_leading_axes_are_batches_and_broadcast() -> None:
    a, b = random(3, 2, 6, 5), random(2, 4, 5, seed=1)
    found = squared_distances(a, b)
    assert found.shape == (3, 2, 6, 4)
    for i in range(3):
        for j in range(2):
            torch.testing.assert_close(found[i, j], reference(a[i, j], b[j]), rtol=1e-12, atol=1e-12)


def test_offset_data_keeps_its_distances() -> None:
    direction = torch.nn.functional.normalize(random(1, 64, seed=9), dim=-1)
    a = (16 * direction + 0.01 * random(30, 64)).float()
    b = (16 * direction + 0.01 * random(20, 64, seed=1)).float()
    exact = reference(a, b)
    torch.testing.assert_close(squared_distances(a, b).double(), exact, rtol=1e-5, atol=0)
    plain = a.square().sum(-1)[:, None] + b.square().sum(-1) - 2 * a @ b.T
    assert ((plain - exact).abs() / exact).max() > 1e-3  # what centring saves us from


def test_duplicates_are_never_at_a_negative_distance() -> None:
    a = 100 * random(40, 33).float()
    assert squared_distances(a, a).min() >= 0


def test_gradients() -> None:
    a, b = random(4, 3).requires_grad_(), random(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (a, b))
    assert torch.autograd.gradcheck(lambda a, b: euclidean_rows(a[:, None], b), (a, b))


def test_gradient_of_a_zero_distance_is_zero() -> None:
    a = random(3, 4).float().requires_grad_()
    distances = euclidean_rows(a, a.detach())
    distances.sum().backward()
    assert (distances == 0).all()
    assert (a.grad == 0).all()


def test_euclidean_rows_keep_near_duplicates_apart() -> None:
    a = torch.full((1, 8), 16.0)
    b = a.clone()
    b[0, 0] += 2.0**-18  # one float32 step at 16 is 2^-19
    assert euclidean_rows(a, b).item() == 2.0**-18


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_and_autocast_kept_out(half: torch.dtype) -> None:
    a, b = random(6, 16).to(half), random(5, 16, seed=1).to(half)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        squared, rows = squared_distances(a, b), euclidean_rows(a[:5], b)
    assert squared.dtype == rows.dtype == torch.float32
    exact = reference(a, b)
    torch.testing.assert_close(squared.double(), exact, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows.double(), exact[:5].diagonal().sqrt(), rtol=1e-6, atol=1e-6)
