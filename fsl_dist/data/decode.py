"""Encoded images → normalised tensors: the part that both decoders share, and the choice between them.

Both decoders take the same parameters (`AugmentParameters`) and run the same steps on 8-bit pixels: decode upright,
resize with antialiasing, crop, mirror, adjust colours, apply the pixel stage
(`fsl_dist.data.augmentation.pixel_stage`, shared code), normalise. Neither draws random numbers.
"""

import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from fsl_dist.data.augmentation.parameters import AugmentParameters
from fsl_dist.data.config import DataConfig
from fsl_dist.data.pixels import Encoded
from fsl_dist.errors import ConfigError, RequestError
from index.base.extras import require

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Decodes batches of encoded images. Not thread-safe."""

    name: str

    def decode(self, encoded: Sequence[Encoded], augment: AugmentParameters | None) -> torch.Tensor:
        """Decode to a new tensor, float32 [n, C, S, S] in channels_last memory, normalised;
        `augment` None: test transform.

        Raises UndecodableError, which names an image that cannot be decoded.
        """

    def close(self) -> None:
        """Release threads and device memory."""


def make_decoder(config: DataConfig, *, device: str = "cpu", max_batch: int = 256) -> Decoder:
    """Create the decoder that `config.decoder` selects, with tensors on `device` ("cpu", "cuda:0").

    `max_batch` is the largest number of images per call of the decoder; larger batches are split. The choice is logged.
    Raises ConfigError if DALI is requested but cannot be imported.
    """
    note = ""
    if config.decoder != "torchvision":
        try:
            require("nvidia.dali")
        except RequestError as error:
            if config.decoder == "dali":
                raise ConfigError(
                    f"data.decoder=dali: {error} (data.decoder=torchvision needs no extra)"
                ) from error
            note = f" (DALI: {error})"
        else:
            from fsl_dist.data.decode_dali import DaliDecoder

            _tell(f"images are decoded by DALI on {device}")
            return DaliDecoder(config, device=device, max_batch=max_batch)
    from fsl_dist.data.decode_torchvision import TorchvisionDecoder

    _tell(f"images are decoded by torchvision on the CPU, tensors on {device}{note}")
    return TorchvisionDecoder(config, device=device)


@lru_cache
def _tell(line: str) -> None:
    """Log `line` once per process, for any number of decoders."""
    logger.info(line)
