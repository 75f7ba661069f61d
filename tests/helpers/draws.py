"""Numbers drawn by a seed of their own."""

import torch
from torch import Tensor


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
