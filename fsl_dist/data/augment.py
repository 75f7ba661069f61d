"""What augmentation does to a sample: a pure function of (seed, epoch, sample id), drawn in NumPy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.config import DataConfig
from fsl_dist.seeding import uniforms


@dataclass(frozen=True, slots=True)
class AugmentParameters:
    """How each image of a batch is cropped, mirrored and coloured; every array has one entry an image."""

    crop_y: NDArray[np.float32]
    """float32 [n]: place of the crop between the topmost (0) and the lowest (1) that fits"""
    crop_x: NDArray[np.float32]
    """float32 [n]: the same from left to right"""
    flip: NDArray[np.bool_]
    """bool [n]: mirrored left to right"""
    brightness: NDArray[np.float32]
    """float32 [n]: factor on pixel values"""
    contrast: NDArray[np.float32]
    """float32 [n]: factor on the distance from mid-grey (128)"""
    saturation: NDArray[np.float32]
    """float32 [n]: factor on the distance from the pixel's luma"""

    def __len__(self) -> int:
        return len(self.crop_y)

    def slice(self, start: int, stop: int) -> "AugmentParameters":
        """The parameters of images start … stop − 1."""
        return AugmentParameters(
            self.crop_y[start:stop],
            self.crop_x[start:stop],
            self.flip[start:stop],
            self.brightness[start:stop],
            self.contrast[start:stop],
            self.saturation[start:stop],
        )


def plain_augment(num: int) -> AugmentParameters:
    """Parameters of the test transform for `num` images: centre crop, nothing else."""
    centre, unchanged = np.full(num, 0.5, np.float32), np.ones(num, np.float32)
    return AugmentParameters(centre, centre, np.zeros(num, np.bool_), unchanged, unchanged, unchanged)


def draw_augment(config: DataConfig, seed: int, epoch: int, ids: NDArray[np.int64]) -> AugmentParameters:
    """Parameters of the training transform for `ids` (int64 [n]) in `epoch`.

    A sample's draws depend on (seed, epoch, id) alone: the same for any batch, order, worker or decoder.
    Each parameter owns a column, so switching one off leaves the others' draws as they were. A sample that
    occurs twice in an epoch looks the same twice.
    """
    draws = uniforms(seed, "augment", epoch, ids, 6)
    plain = plain_augment(len(draws))

    def factor(half_width: float, column: int) -> NDArray[np.float32]:
        return (1 + half_width * (2 * draws[:, column] - 1)).astype(np.float32)

    return AugmentParameters(
        crop_y=draws[:, 0].astype(np.float32) if config.random_crop else plain.crop_y,
        crop_x=draws[:, 1].astype(np.float32) if config.random_crop else plain.crop_x,
        flip=draws[:, 2] < 0.5 if config.flip else plain.flip,
        brightness=factor(config.brightness, 3),
        contrast=factor(config.contrast, 4),
        saturation=factor(config.saturation, 5),
    )
