"""Augmentations of decoded crops, shared by both decoders, on the device of the crops.

Order: vertical flip, rotation, RandAugment or TrivialAugment, random erasing. Everything is a function of
`AugmentParameters`; no random number is drawn here.
"""

from concurrent.futures import Executor

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.data.augmentation.operations import apply_operations, rotate
from fsl_dist.data.augmentation.parameters import AugmentParameters
from fsl_dist.data.config import DataConfig

_SLICE_PIXELS = 200_000
"""pixels per slice of a thread: 4 images of 224 pixels, whose float32 fit in the cache (3 times as fast)"""


def transform_pixels(
    pixels: torch.Tensor, augment: AugmentParameters, config: DataConfig, pool: Executor
) -> torch.Tensor:
    """Apply the stage: uint8 [n, S, S, C], contiguous. The result of an image does not depend on the others.

    Args:
        pixels: uint8 [n, S, S, C], not modified.
        augment: parameters of the n images; those of the test transform change nothing.
        config: the parts of the stage that are in use, and the mean that fills erased pixels.
        pool: threads for slices of a batch on the CPU.
    """
    if not config.has_pixel_stage:
        return pixels
    num, size = len(pixels), config.image_size
    at_once = max(1, num) if pixels.is_cuda else max(1, _SLICE_PIXELS // size**2)
    fill = torch.tensor([round(255 * mean) for mean in config.mean[: config.channels]], dtype=torch.uint8)
    changed = torch.empty_like(pixels)

    def transform(start: int) -> None:
        part = slice(start, min(num, start + at_once))
        changed[part] = _transform(pixels[part], augment.slice(part.start, part.stop), fill)

    if num <= at_once:
        transform(0)
    else:
        for _ in pool.map(transform, range(0, num, at_once)):
            pass
    return changed


def _transform(pixels: torch.Tensor, augment: AugmentParameters, fill: torch.Tensor) -> torch.Tensor:
    if augment.vertical_flip.any():
        mirrored = torch.from_numpy(augment.vertical_flip).to(pixels.device)[:, None, None, None]
        pixels = torch.where(mirrored, pixels.flip(1), pixels)
    if augment.angle.any():
        pixels = rotate(pixels, augment.angle)
    for which, amounts in zip(augment.operations.T, augment.amounts.T, strict=True):
        pixels = apply_operations(pixels, which, amounts)
    if augment.erased.any():
        pixels = erase(pixels, augment.erased, fill)
    return pixels


def erase(pixels: torch.Tensor, boxes: NDArray[np.int32], fill: torch.Tensor) -> torch.Tensor:
    """Fill a rectangle of each crop.

    Args:
        pixels: uint8 [n, S, S, C].
        boxes: int32 [n, 4], first row and column and those after the last, as in `AugmentParameters.erased`.
        fill: uint8 [C], colour of the rectangle.

    Returns:
        uint8 [n, S, S, C].
    """
    top, left, bottom, right = torch.from_numpy(boxes.T.copy()).to(pixels.device)[:, :, None]
    rows = torch.arange(pixels.shape[1], device=pixels.device)
    is_row, is_column = (rows >= top) & (rows < bottom), (rows >= left) & (rows < right)
    is_erased = is_row[:, :, None] & is_column[:, None, :]
    return torch.where(is_erased[..., None], fill.to(pixels.device), pixels)
