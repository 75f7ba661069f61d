"""Encoded images → normalised tensors: what both decoders share, and the choice between them.

Both take the same parameters (`AugmentParameters`) and do the same steps on bytes per pixel: decode upright,
resize with antialiasing, crop, mirror, colours, the pixel stage (`fsl_dist.data.augmentation.pixel_stage`, one code for both), then
normalise. Neither holds a random number.
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
    """Decodes batches of encoded images. Not to be entered by two threads at once."""

    name: str

    def decode(self, encoded: Sequence[Encoded], augment: AugmentParameters | None) -> torch.Tensor:
        """float32 [n, C, S, S] in channels_last memory, normalised, the caller's to keep; `augment` None: test transform.

        UndecodableError names an image that cannot be decoded.
        """

    def close(self) -> None:
        """Let go of threads and device memory."""


def make_decoder(config: DataConfig, *, device: str = "cpu", max_batch: int = 256) -> Decoder:
    """The decoder that `config.decoder` asks for, with tensors on `device` ("cpu", "cuda:0").

    `max_batch` is the most images decoded in one go; larger batches are cut. The log says which one runs.
    ConfigError where DALI is asked for and cannot be imported.
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
    """Log `line` once a process, however many decoders are made."""
    logger.info(line)
