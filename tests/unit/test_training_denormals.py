"""Training takes what is too small for full precision for 0."""

import torch

from fsl_dist.training.denormals import flushing_denormals


def product_of_small_numbers() -> float:
    return float((torch.tensor([1e-30]) * torch.tensor([1e-10])).item())


def test_denormals_are_zero_inside_and_numbers_again_after_it():
    assert product_of_small_numbers() > 0
    with flushing_denormals():
        assert product_of_small_numbers() == 0
        assert float((torch.tensor([1e-30]) * 10).item()) > 0
    assert product_of_small_numbers() > 0
