"""What augmentation does to a sample: a pure function of (seed, epoch, sample id), drawn in NumPy."""

from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.augmentation.boxes import boxes_in
from fsl_dist.data.augmentation.policies import randaugment, trivialaugment
from fsl_dist.data.config import DataConfig
from fsl_dist.seeding import uniforms

_ERASE = slice(10, 15)
"""columns of random erasing: whether, area, aspect, y, x"""
_STRENGTH = 15
"""column of TrivialAugment's strength"""
_FIRST_OPERATION = 16
"""two columns per operation: which, sign"""
ERASED_SHARE, ERASED_RATIO = (0.02, 0.33), (0.3, 1 / 0.3)
"""area and aspect of random erasing"""


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
    crop_share: NDArray[np.float32]
    """float32 [n]: share of the image's area that the crop is resized from; 0: the image is resized, then cropped"""
    crop_shape: NDArray[np.float32]
    """float32 [n]: aspect of that crop between the tallest (0) and the widest (1) that data.crop_ratio allows and
    fits"""
    vertical_flip: NDArray[np.bool_]
    """bool [n]: mirrored top to bottom"""
    angle: NDArray[np.float32]
    """float32 [n]: rotation about the centre in degrees, counter-clockwise"""
    erased: NDArray[np.int32]
    """int32 [n, 4]: first row and column of the erased rectangle, and those after its last; all 0: none"""
    operations: NDArray[np.int64]
    """int64 [n, k]: numbers in `OPERATIONS` (`fsl_dist.data.augmentation.policies`), applied in this order"""
    amounts: NDArray[np.float32]
    """float32 [n, k]: how strongly, in the operation's own unit"""

    def __len__(self) -> int:
        return len(self.crop_y)

    def slice(self, start: int, stop: int) -> "AugmentParameters":
        """The parameters of images start … stop − 1."""
        return AugmentParameters(
            **{field.name: getattr(self, field.name)[start:stop] for field in fields(self)}
        )


def plain_augment(num: int) -> AugmentParameters:
    """Parameters of the test transform for `num` images: centre crop, nothing else."""
    centre, one, zero = (np.full(num, value, np.float32) for value in (0.5, 1, 0))
    never = np.zeros(num, np.bool_)
    return AugmentParameters(
        crop_y=centre,
        crop_x=centre,
        flip=never,
        brightness=one,
        contrast=one,
        saturation=one,
        crop_share=zero,
        crop_shape=centre,
        vertical_flip=never,
        angle=zero,
        erased=np.zeros((num, 4), np.int32),
        operations=np.zeros((num, 0), np.int64),
        amounts=np.zeros((num, 0), np.float32),
    )


def draw_augment(config: DataConfig, seed: int, epoch: int, ids: NDArray[np.int64]) -> AugmentParameters:
    """Draw the parameters of the training transform for `ids` (int64 [n]) in `epoch`.

    The draws of a sample depend only on (seed, epoch, id): they are the same for any batch, order, worker or decoder.
    Each parameter has its own column, so switching one off does not change the others. A sample that occurs twice in an
    epoch gets the same parameters both times.
    """
    num_operations = 1 if config.trivialaugment else config.randaugment
    draws = uniforms(seed, "augment", epoch, ids, _FIRST_OPERATION + 2 * num_operations)
    parameters = plain_augment(len(draws))

    def column(number: int) -> NDArray[np.float32]:
        return draws[:, number].astype(np.float32)

    def around(centre: float, half_width: float, number: int) -> NDArray[np.float32]:
        return (centre + half_width * (2 * draws[:, number] - 1)).astype(np.float32)

    if config.random_crop:
        parameters = replace(parameters, crop_y=column(0), crop_x=column(1))
    if config.crop_scale:
        low, high = config.crop_scale
        share = around((low + high) / 2, (high - low) / 2, 6)
        parameters = replace(parameters, crop_share=share, crop_shape=column(7))
    if config.erasing:
        erased = _erased_boxes(draws[:, _ERASE], config.image_size, config.erasing)
        parameters = replace(parameters, erased=erased)
    if num_operations:
        which, sign = draws[:, _FIRST_OPERATION::2], draws[:, _FIRST_OPERATION + 1 :: 2]
        operations, amounts = (
            trivialaugment(which, sign, draws[:, [_STRENGTH]])
            if config.trivialaugment
            else randaugment(which, sign, config.randaugment_magnitude)
        )
        parameters = replace(parameters, operations=operations, amounts=amounts)
    return replace(
        parameters,
        flip=(draws[:, 2] < 0.5) & config.flip,
        brightness=around(1, config.brightness, 3),
        contrast=around(1, config.contrast, 4),
        saturation=around(1, config.saturation, 5),
        vertical_flip=(draws[:, 8] < 0.5) & config.vertical_flip,
        angle=around(0, config.rotation, 9),
    )


def _erased_boxes(draws: NDArray[np.float64], size: int, probability: float) -> NDArray[np.int32]:
    """The rectangles to erase from crops of `size`: int32 [n, 4], see `AugmentParameters.erased`."""
    low, high = ERASED_SHARE
    near, far = boxes_in(
        np.full((len(draws), 2), size),
        low + (high - low) * draws[:, 1],
        draws[:, 2],
        draws[:, 3:],
        ERASED_RATIO,
    )
    edges = np.rint(np.concatenate([near, far], axis=1)).astype(np.int32)
    return np.where(draws[:, :1] < probability, edges, np.int32(0))
