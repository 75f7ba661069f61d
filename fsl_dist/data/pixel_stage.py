"""What training does to decoded crops after both decoders: one code, on whatever device the crops are.

Vertical flip and rotation. Everything is a function of `AugmentParameters`; no random number is drawn here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fsl_dist.data.augment import AugmentParameters
from fsl_dist.data.config import DataConfig


def transform_pixels(pixels: torch.Tensor, augment: AugmentParameters, config: DataConfig) -> torch.Tensor:
    """Crops after the stage: uint8 [n, S, S, C], contiguous.

    Args:
        pixels: uint8 [n, S, S, C], left as they are.
        augment: of the n images; that of the test transform changes nothing.
        config: says which parts of the stage are in use.
    """
    if not config.has_pixel_stage or not len(pixels):
        return pixels
    if augment.vertical_flip.any():
        mirrored = torch.from_numpy(augment.vertical_flip).to(pixels.device)[:, None, None, None]
        pixels = torch.where(mirrored, pixels.flip(1), pixels)
    if augment.angle.any():
        pixels = rotate(pixels, augment.angle)
    return pixels


def rotate(pixels: torch.Tensor, angle: NDArray[np.float32]) -> torch.Tensor:
    """Rotate each crop about its centre: bilinear, the nearest edge pixel where nothing is known, rounded once.

    Args:
        pixels: uint8 [n, S, S, C].
        angle: float32 [n], degrees, counter-clockwise as seen.

    Returns:
        uint8 [n, S, S, C], contiguous.
    """
    turn = np.deg2rad(angle.astype(np.float64))
    cosine, sine, zero = np.cos(turn), np.sin(turn), np.zeros_like(turn)
    # Where in the old crop a pixel of the new one lies: rotated the other way. y points down.
    rows = [np.stack([cosine, -sine, zero], axis=1), np.stack([sine, cosine, zero], axis=1)]
    matrices = torch.from_numpy(np.stack(rows, axis=1).astype(np.float32)).to(pixels.device)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(matrices, list(images.shape), align_corners=False)
    found = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return found.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
