"""Settings of the data path: which data set, how an image becomes a tensor, how far to read ahead."""

import math
from dataclasses import dataclass
from typing import Literal

from fsl_dist.data.images import MAX_PIXELS
from fsl_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """Data set, image transform and read-ahead of a run (the `data.*` keys)."""

    dataset: str = ""
    """folder of a packed or adopted data set (`fsl-dist pack`, `fsl-dist adopt`), or its place at s3:// or gs://"""
    version: int = 0
    """version of its catalogue; 0: the current one, which a run writes down when it starts and keeps"""
    features: str = ""
    """a .npy file, float32 [num_samples, dim], row = sample id: frozen features used instead of images; empty: images"""
    decoder: Literal["auto", "dali", "torchvision"] = "auto"
    """what decodes images; auto takes DALI where it can be imported, else torchvision"""
    image_size: int = 224
    """side of the square crop that the network sees, pixels, 1 … resize_size"""
    resize: Literal["shorter", "exact"] = "shorter"
    """shorter: the shorter side becomes resize_size; exact: both sides do, whatever the aspect"""
    resize_size: int = 256
    """size before the crop, pixels, ≥ image_size"""
    channels: Literal[1, 3] = 3
    """1 = grey (luma), 3 = RGB"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """subtracted from pixels scaled to 0…1, one number a channel; channels=1 uses the first"""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """divides afterwards, > 0, one number a channel; channels=1 uses the first"""
    random_crop: bool = True
    """crop anywhere while training; false: the centre. Evaluation always crops the centre"""
    flip: bool = True
    """mirror half of the training images left to right"""
    brightness: float = 0.0
    """half-width of the training brightness factor, drawn from 1 ± brightness, 0 … 1"""
    contrast: float = 0.0
    """half-width of the training contrast factor about mid-grey, 0 … 1"""
    saturation: float = 0.0
    """half-width of the training saturation factor about each pixel's luma, 0 … 1 (no effect on grey)"""
    holdout_fraction: float = 0.1
    """share of train held out for early stopping where no val split is free for it (val serves as queries, or is not
    there), by group, or by unit for chai; 0 … 1 exclusive"""
    threads: int = 2
    """threads a worker reads and decodes with, ≥ 1"""
    prefetch: int = 2
    """batches prepared ahead of the step, ≥ 1"""
    max_read_gap_bytes: int = 65536
    """byte ranges of one shard at most this far apart are read as one, ≥ 0"""
    check_reads: bool = True
    """compare every sample's checksum when it is read (tens of µs an image)"""
    max_bad_fraction: float = 0.01
    """share of the catalogue's samples that may turn out bad while a worker reads, each replaced by another of its class,
    before the run ends, 0 … 1"""
    max_pixels: int = MAX_PIXELS
    """an image that declares more pixels is not decoded and counts as bad, 1 … 178956970 (PIL's own limit)"""

    def __post_init__(self) -> None:
        for key in ("image_size", "threads", "prefetch"):
            if getattr(self, key) < 1:
                raise ConfigError(f"data.{key}={getattr(self, key)} must be at least 1")
        if self.version < 0:
            raise ConfigError(f"data.version={self.version} must be at least 0 (0: the current version)")
        if self.image_size > self.resize_size:
            raise ConfigError(
                f"data.image_size={self.image_size} is larger than data.resize_size={self.resize_size}; "
                "the crop is cut out of the resized image, so raise resize_size or lower image_size"
            )
        if self.channels not in (1, 3):
            raise ConfigError(f"data.channels={self.channels} must be 1 (grey) or 3 (RGB)")
        for key in ("mean", "std"):
            values = getattr(self, key)
            if len(values) < self.channels or len(values) not in (1, 3):
                wanted = "3 numbers" if self.channels == 3 else "1 number (or 3, of which the first is used)"
                raise ConfigError(
                    f"data.{key} has {len(values)} numbers; data.channels={self.channels} needs {wanted}"
                )
            if not all(math.isfinite(value) for value in values):
                raise ConfigError(f"data.{key}={values} must be finite numbers")
        if min(self.std) <= 0:
            raise ConfigError(f"data.std={self.std} must be above 0 in every channel")
        for key in ("brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(f"data.{key}={getattr(self, key)} must lie in 0 … 1")
        if not 0 <= self.holdout_fraction < 1:
            raise ConfigError(
                f"data.holdout_fraction={self.holdout_fraction} must be at least 0 and below 1 (a share of train)"
            )
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(
                f"data.max_bad_fraction={self.max_bad_fraction} must lie in 0 … 1 (a share of the samples)"
            )
        if not 1 <= self.max_pixels <= MAX_PIXELS:
            raise ConfigError(
                f"data.max_pixels={self.max_pixels} must lie in 1 … {MAX_PIXELS}, the most that PIL decodes"
            )
        if self.max_read_gap_bytes < 0:
            raise ConfigError(f"data.max_read_gap_bytes={self.max_read_gap_bytes} must be at least 0")

    @property
    def has_jitter(self) -> bool:
        """Whether training changes colours at all."""
        return max(self.brightness, self.contrast, self.saturation) > 0
