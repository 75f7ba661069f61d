"""Decoding by PIL and torchvision: for machines without DALI, and what DALI is compared with."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional

from fsl_dist.data.augmentation.parameters import AugmentParameters, plain_augment
from fsl_dist.data.augmentation.pixel_stage import transform_pixels
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_offset, resized_crop_boxes, resized_extents
from fsl_dist.data.images import explain
from fsl_dist.data.normalise import Normaliser
from fsl_dist.data.pixels import MAX_PIXELS, Encoded, open_upright
from fsl_dist.errors import UndecodableError

# Luma of ITU-R BT.601, the weights of PIL's mode L and of DALI's colour operators.
_LUMA = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)


class TorchvisionDecoder:
    """Decodes image by image on a pool of `config.threads` threads."""

    name = "torchvision"

    def __init__(self, config: DataConfig, *, device: str) -> None:
        self._config = config
        self._device = device
        self._filter = functional.InterpolationMode(config.interpolation)
        self._normalise = Normaliser(config, device)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="fsl-dist-image")

    def decode(self, encoded: Sequence[Encoded], augment: AugmentParameters | None) -> torch.Tensor:
        """See `Decoder.decode`."""
        parameters = plain_augment(len(encoded)) if augment is None else augment
        size = self._config.image_size
        pixels = torch.empty((len(encoded), size, size, self._config.channels), dtype=torch.uint8)

        def transform(position: int) -> None:
            try:
                pixels[position] = self._transform(encoded[position], position, parameters)
            except Exception as error:  # PIL raises a dozen types for damaged images; memory may end
                raise UndecodableError(position, explain(error)) from error

        for _ in self._pool.map(transform, range(len(encoded))):
            pass
        pixels = pixels.to(self._device)  # bytes travel: a quarter of what floats weigh
        return self._normalise(
            pixels if augment is None else transform_pixels(pixels, augment, self._config, self._pool)
        )

    def _transform(self, encoded: Encoded, position: int, augment: AugmentParameters) -> torch.Tensor:
        """Transform one image to uint8 [S, S, C]."""
        config = self._config
        decoded = open_upright(encoded, config.channels)
        if augment.crop_share[position] > 0:
            image = _resized_crop(decoded, augment.slice(position, position + 1), config)
        else:
            extents = resized_extents(decoded.height, decoded.width, config)
            top = crop_offset(augment.crop_y[position], extents[0], config.image_size)
            left = crop_offset(augment.crop_x[position], extents[1], config.image_size)
            if extents[0] * extents[1] > MAX_PIXELS:  # 1 × 60,000 pixels, enlarged, would take 12 GB
                image = _crop_of_resized(decoded, extents, top, left, config)
            else:
                resized = functional.resize(decoded, list(extents), self._filter, antialias=True)
                image = functional.crop(
                    functional.pil_to_tensor(resized), top, left, config.image_size, config.image_size
                )
        if augment.flip[position]:
            image = functional.horizontal_flip(image)
        factors = (augment.brightness[position], augment.contrast[position], augment.saturation[position])
        if any(factor != 1 for factor in factors):
            image = _change_colours(image, *(float(factor) for factor in factors))
        return image.permute(1, 2, 0)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _crop_of_resized(
    decoded: Image.Image, extents: tuple[int, int], top: int, left: int, config: DataConfig
) -> torch.Tensor:
    """uint8 [C, S, S]: the crop at (`top`, `left`) of the image resized to `extents`, without the rest of it."""
    y, x = decoded.height / extents[0], decoded.width / extents[1]
    box = (left * x, top * y, (left + config.image_size) * x, (top + config.image_size) * y)
    size = (config.image_size, config.image_size)
    return functional.pil_to_tensor(
        decoded.resize(size, Image.Resampling[config.interpolation.upper()], box=box)
    )


def _resized_crop(decoded: Image.Image, augment: AugmentParameters, config: DataConfig) -> torch.Tensor:
    """uint8 [C, S, S]: the random resized crop of one image, by the parameters in `augment`."""
    near, far = resized_crop_boxes(np.array([decoded.size[::-1]]), augment, config)
    box = (near[0, 1], near[0, 0], far[0, 1], far[0, 0])
    size = (config.image_size, config.image_size)
    return functional.pil_to_tensor(
        decoded.resize(size, Image.Resampling[config.interpolation.upper()], box=box)
    )


def _change_colours(
    image: torch.Tensor, brightness: float, contrast: float, saturation: float
) -> torch.Tensor:
    """uint8 [C, S, S] → the same shape; saturation about luma, contrast about 128, then brightness, one rounding."""
    pixels = image.float()
    if len(pixels) == 3:
        luma = (pixels * _LUMA).sum(0, keepdim=True)
        pixels = luma + saturation * (pixels - luma)
    pixels = brightness * (128 + contrast * (pixels - 128))
    return pixels.round().clamp(0, 255).to(torch.uint8)
