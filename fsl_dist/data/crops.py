"""Positions of crops in the resized image and in the original image. Pure arithmetic."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.augmentation.boxes import boxes_in
from fsl_dist.data.augmentation.parameters import AugmentParameters
from fsl_dist.data.config import DataConfig
from fsl_dist.data.resize import extents_of_shorter

# Number of source pixels on each side of a pixel that a filter uses at scale 1.
_RADIUS = {"bilinear": 1, "bicubic": 2}


def resized_extents(height: int, width: int, config: DataConfig) -> tuple[int, int]:
    """(height, width) after the resize; the longer side is rounded to the nearest pixel, halves up."""
    if config.resize == "exact":
        return config.resize_size, config.resize_size
    return extents_of_shorter(height, width, config.resize_size)


def crop_offset(position: np.float32, extent: int, crop: int) -> int:
    """First pixel of a crop at `position` in [0, 1]: rounded to the nearest in float32, halves up."""
    return int(np.floor(position * np.float32(extent - crop) + np.float32(0.5)))


def resized_crop_boxes(
    sizes: NDArray[np.int64], augment: AugmentParameters, config: DataConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Compute the edges of random resized crops (Szegedy et al. 2015, like torchvision's RandomResizedCrop).

    A long image in which no allowed aspect ratio fits at this share gets the largest crop of the nearest allowed ratio.

    Args:
        sizes: int64 [n, 2], heights and widths in pixels.
        augment: parameters of n images, with `crop_share` above 0.
        config: only `crop_ratio` is used.

    Returns:
        First and last edges, float64 [n, 2] (y, x) each, in pixels, inside the image.
    """
    places = np.stack([augment.crop_y, augment.crop_x], axis=1)
    return boxes_in(sizes, augment.crop_share, augment.crop_shape, places, config.crop_ratio)


@dataclass(frozen=True, slots=True)
class CropRegions:
    """The part of each image that its crop is resized from. Axes: y, x."""

    start: NDArray[np.int32]
    """int32 [n, 2]: first row and column to decode"""
    shape: NDArray[np.int32]
    """int32 [n, 2]: number of rows and columns to decode"""
    near: NDArray[np.float32]
    """float32 [n, 2]: position of the crop's first edges in the decoded region, in pixels"""
    far: NDArray[np.float32]
    """float32 [n, 2]: position of its last edges; for a mirrored image, `near` and `far` of x are swapped"""
    is_copy: NDArray[np.bool_]
    """bool [n]: the image already has the right size, so the crop's pixels are copied"""


def crop_regions(
    sizes: NDArray[np.int64], augment: AugmentParameters, config: DataConfig, *, is_cut: bool
) -> CropRegions:
    """Compute the regions of images of `sizes` (int64 [n, 2]: height, width).

    Resizing from `near` to `far` gives the same pixels as resizing the whole image and then cropping: the decoded
    region contains all pixels that antialiasing uses. With `crop_share` they are those of `resized_crop_boxes`. With
    `is_cut` False, the whole image is decoded.
    """
    crop = config.image_size
    extents = np.array([resized_extents(height, width, config) for height, width in sizes.tolist()])
    places = np.stack([augment.crop_y, augment.crop_x], axis=1)
    first = np.floor(places * (extents - crop).astype(np.float32) + np.float32(0.5))
    scale = sizes / extents
    near, far = first * scale, (first + crop) * scale
    is_resized = augment.crop_share > 0  # all of a training batch, or none
    if is_resized.any():
        near, far = resized_crop_boxes(sizes, augment, config)
        scale = (far - near) / crop
    start, stop = np.zeros_like(sizes), sizes
    if is_cut:
        # The support of the downscaling filter beyond the outermost pixels' centres, and one pixel for rounding.
        radius = _RADIUS[config.interpolation]
        reach = np.maximum(radius, (radius - 0.5) * scale) + 1
        start = np.maximum(0, np.floor(near - reach)).astype(np.int64)
        stop = np.minimum(sizes, np.ceil(far + reach).astype(np.int64))
    near, far = near - start, far - start
    flip = augment.flip
    near[flip, 1], far[flip, 1] = far[flip, 1], near[flip, 1]
    return CropRegions(
        start=start.astype(np.int32),
        shape=(stop - start).astype(np.int32),
        near=near.astype(np.float32),
        far=far.astype(np.float32),
        is_copy=(sizes == extents).all(axis=1) & ~is_resized,
    )
