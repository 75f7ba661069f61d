"""Settings of the data path: the data set, the image transform and the prefetching."""

from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.data.pixels import MAX_PIXELS
from fsl_dist.errors import ConfigError
from index.base.settings import settings


@settings("data")
class DataConfig:
    """Data set, image transform and prefetching of a run (the `data.*` keys)."""

    dataset: str = ""
    """folder of a packed or adopted data set, or its location at s3:// or gs://"""
    version: Annotated[int, Field(ge=0)] = 0
    """version of the catalogue; 0: the current one, which a run records when it starts and keeps using"""
    features: str = ""
    """a .npy file, float32 [num_samples, dim], row = sample id:
    frozen features used instead of images; empty: images"""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """decoder of images; auto uses DALI if it can be imported, otherwise torchvision"""
    image_size: Annotated[int, Field(ge=1)] = 224
    """side of the square crop that the network sees, pixels, at most resize_size"""
    resize: Literal["shorter", "exact"] = "shorter"
    """shorter: resize the shorter side to resize_size; exact: resize both sides, ignoring the aspect ratio"""
    resize_size: Annotated[int, Field(ge=0)] = 256
    """size before the crop, pixels, at least image_size; 0:
    image_size, so that the test transform crops nothing of a square"""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """filter that images are resized with, with antialiasing; most networks of timm were trained with bicubic"""
    channels: Literal[1, 3] = 3
    """1 = grey (luma), 3 = RGB"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """subtracted from pixels scaled to 0…1, one number per channel; channels=1 uses the first"""
    std: tuple[Annotated[float, Field(gt=0)], ...] = (0.229, 0.224, 0.225)
    """divisor after subtracting the mean, one number per channel; channels=1 uses the first"""
    random_crop: bool = True
    """crop anywhere while training; false: the centre. Evaluation always crops the centre"""
    crop_scale: tuple[Annotated[float, Field(gt=0, le=1)], ...] = ()
    """random resized crop: smallest and largest share of the image's area that a training crop is resized from, such as
    [0.5, 1.0]; empty: the image is resized, then cropped"""
    crop_ratio: tuple[Annotated[float, Field(gt=0)], ...] = (3 / 4, 4 / 3)
    """smallest and largest width / height of such a crop; a long image gets the largest crop of an allowed ratio"""
    flip: bool = True
    """mirror half of the training images left to right"""
    vertical_flip: bool = False
    """mirror half of the training images top to bottom"""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """largest angle in degrees that training images are rotated by, either way; edge pixels fill the corners"""
    erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """probability that 0.02 … 0.33 of a training crop is erased, filled with data.mean (Zhong et al. 2020)"""
    randaugment: Annotated[int, Field(ge=0, le=8)] = 0
    """operations that RandAugment applies to each training image; 0: none, 2: usual"""
    randaugment_magnitude: Annotated[float, Field(ge=0, le=10)] = 9.0
    """strength of its operations"""
    trivialaugment: bool = False
    """apply one operation of random strength to each training image (TrivialAugment); not with randaugment"""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    """half-width of the training brightness factor, drawn from 1 ± brightness"""
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """half-width of the training contrast factor about mid-grey"""
    saturation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """half-width of the training saturation factor about each pixel's luma (no effect on grey)"""
    holdout_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of train held out for early stopping if no val split is available for it (val is used for queries, or is
    missing), by group, or by unit for chai"""
    train_on_val: bool = False
    """also train on the val split, once all settings are chosen; requires a test split. Early stopping, if used, then
    holds out holdout_fraction of both"""
    threads: Annotated[int, Field(ge=1)] = 2
    """threads that a worker reads and decodes with"""
    prefetch: Annotated[int, Field(ge=1)] = 2
    """batches prepared in advance of the step"""
    max_read_gap_bytes: Annotated[int, Field(ge=0)] = 65536
    """largest gap between byte ranges of one shard that are read in one request, in bytes"""
    check_reads: bool = True
    """compare every sample's checksum when it is read (tens of µs per image)"""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """share of the catalogue's samples that may turn out bad while a worker reads, each replaced by another of its
    class, before the run ends"""
    max_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = MAX_PIXELS
    """an image that declares more pixels is not decoded and counts as bad; the largest value is PIL's own limit"""

    def __post_init__(self) -> None:
        if self.resize_size == 0:
            object.__setattr__(self, "resize_size", self.image_size)
        if self.image_size > self.resize_size:
            raise ConfigError(
                f"data.image_size={self.image_size} is larger than data.resize_size={self.resize_size}; "
                "the crop is cut out of the resized image, so raise resize_size or lower image_size"
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) < self.channels or len(values) not in (1, 3):
                wanted = "3 numbers" if self.channels == 3 else "1 number (or 3, of which the first is used)"
                raise ConfigError(
                    f"data.{key} has {len(values)} numbers; data.channels={self.channels} needs {wanted}"
                )

        for key, values in (("crop_scale", self.crop_scale), ("crop_ratio", self.crop_ratio)):
            is_absent = key == "crop_scale" and not values
            if not is_absent and (len(values) != 2 or values[0] > values[1]):
                raise ConfigError(
                    f"data.{key}={list(values)} must be two numbers, the smaller first, such as "
                    f"{'[0.5, 1.0] (or empty)' if key == 'crop_scale' else '[0.75, 1.33]'}"
                )

        if self.randaugment and self.trivialaugment:
            raise ConfigError(
                f"data.randaugment={self.randaugment} and data.trivialaugment=true exclude each other; leave one out"
            )
        if self.features and (self.crop_scale or self.has_pixel_stage):
            raise ConfigError(
                f"data.features='{self.features}' are not augmented; unset data.{self._first_augmentation}, "
                "or leave features empty to train on images"
            )

    @property
    def _first_augmentation(self) -> str:
        names = (
            "crop_scale", "vertical_flip", "rotation", "erasing", "randaugment", "trivialaugment"
        )  # fmt: skip
        return next(name for name in names if getattr(self, name))

    @property
    def has_pixel_stage(self) -> bool:
        """Whether training changes decoded crops beyond mirroring and colours
        (`fsl_dist.data.augmentation.pixel_stage`)."""
        return bool(
            self.vertical_flip or self.rotation or self.erasing or self.randaugment or self.trivialaugment
        )

    @property
    def has_jitter(self) -> bool:
        """Whether training changes colours at all."""
        return max(self.brightness, self.contrast, self.saturation) > 0
