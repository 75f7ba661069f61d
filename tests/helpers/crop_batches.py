"""Decoded crops for tests of augmentation."""

import numpy as np
import torch


def make_crops(num, size=24, channels=3, seed=0):
    """Smooth random images: uint8 [num, size, size, channels]."""
    draw = np.random.default_rng(seed)
    coarse = torch.from_numpy(draw.integers(0, 256, (num, channels, 4, 4)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear")
    return smooth.to(torch.uint8).permute(0, 2, 3, 1).contiguous()
