"""Decoding by NVIDIA DALI: one pipeline, on the GPU where there is one, else on the CPU."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import Pipeline, pipeline_def, types

from fsl_dist.data.augment import AugmentParameters, plain_augment
from fsl_dist.data.config import DataConfig
from fsl_dist.data.images import Encoded, explain, open_upright
from fsl_dist.data.normalise import Normaliser
from fsl_dist.errors import UndecodableError

_PLACES = ("crop_y", "crop_x", "flip")

# What DALI takes as it is; everything else (GIF, animated WebP, …) goes through PIL to PPM first.
_DALI_MAGICS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def _parameters_in_use(config: DataConfig) -> tuple[str, ...]:
    """Fields of `AugmentParameters` that the pipeline takes."""
    if not config.has_jitter:
        return _PLACES
    return (*_PLACES, "brightness", "contrast") + (("saturation",) if config.channels == 3 else ())


@pipeline_def
def _image_pipeline(config: DataConfig, device: str) -> Any:
    """Encoded bytes → uint8 [S, S, C] an image. `device` ("cpu", "gpu") is all that differs between machines."""
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
    images = fn.decoders.image(
        encoded,
        device="mixed" if device == "gpu" else "cpu",
        output_type=types.RGB if config.channels == 3 else types.GRAY,
        jpeg_fancy_upsampling=True,
    )

    def parameter(name: str, dtype: Any) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=0)

    shorter = config.resize == "shorter"
    images = fn.resize_crop_mirror(
        images,
        size=[config.resize_size, config.resize_size],
        mode="not_smaller" if shorter else "stretch",
        # The whole image maps to the rounded size, as PIL and torchvision resize.
        subpixel_scale=False,
        crop=[config.image_size, config.image_size],
        crop_pos_y=parameter("crop_y", types.FLOAT),
        crop_pos_x=parameter("crop_x", types.FLOAT),
        rounding="round",
        mirror=parameter("flip", types.INT32),
        interp_type=types.INTERP_LINEAR,
        antialias=True,
    )
    if config.has_jitter:
        colours = {name: parameter(name, types.FLOAT) for name in _parameters_in_use(config)[3:]}
        change = fn.color_twist if config.channels == 3 else fn.brightness_contrast
        images = change(images, **colours)
    return images


class DaliDecoder:
    """Decodes through one DALI pipeline."""

    name = "dali"

    def __init__(self, config: DataConfig, *, device: str, max_batch: int) -> None:
        self._config = config
        self._device = torch.device(device)
        self._max_batch = max_batch
        self._normalise = Normaliser(config, device)
        self._pipeline: Pipeline | None = None
        # A stream of its own: waiting for DALI's memory to be copied out must not wait for the training step.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def _build(self) -> Pipeline:
        is_gpu = self._device.type == "cuda"
        pipeline = _image_pipeline(
            self._config,
            "gpu" if is_gpu else "cpu",
            batch_size=self._max_batch,
            num_threads=self._config.threads,
            device_id=(self._device.index or 0) if is_gpu else None,
            # Run on demand: prefetching would ask for inputs nobody has fed yet.
            prefetch_queue_depth=1,
            exec_async=False,
            exec_pipelined=False,
        )
        pipeline.build()
        return pipeline

    def decode(self, encoded: Sequence[Encoded], augment: AugmentParameters | None) -> torch.Tensor:
        """See `Decoder.decode`."""
        augment = plain_augment(len(encoded)) if augment is None else augment
        if self._stream is None:
            return self._decode(encoded, augment)
        with torch.cuda.stream(self._stream):
            images = self._decode(encoded, augment)
        # The caller's stream uses them: their memory must not be given out again before it is done.
        images.record_stream(torch.cuda.default_stream(self._device))
        return images

    def _decode(self, encoded: Sequence[Encoded], augment: AugmentParameters) -> torch.Tensor:
        size = self._config.image_size
        images = torch.empty((len(encoded), self._config.channels, size, size), device=self._device)
        for start in range(0, len(encoded), self._max_batch):
            stop = min(start + self._max_batch, len(encoded))
            some, parameters = encoded[start:stop], augment.slice(start, stop)
            try:
                pixels = self._run(
                    [_as_input(image, start + i, self._config.channels) for i, image in enumerate(some)],
                    parameters,
                )
            except RuntimeError:
                # DALI cannot be used again after an error. PIL decodes what DALI refuses, or says which is bad.
                self.close()
                pixels = self._run(
                    [_decode_by_pil(image, start + i, self._config.channels) for i, image in enumerate(some)],
                    parameters,
                )
            self._normalise(pixels, images[start:stop])
            if self._stream is not None:
                self._stream.synchronize()  # the next run writes where `pixels` lies
        return images

    def _run(self, inputs: list[NDArray[np.uint8]], augment: AugmentParameters) -> torch.Tensor:
        if self._pipeline is None:
            self._pipeline = self._build()
        self._pipeline.feed_input("encoded", inputs)
        for name in _parameters_in_use(self._config):
            values = getattr(augment, name)
            values = values.astype(np.int32 if name == "flip" else np.float32)
            self._pipeline.feed_input(name, values)
        (outputs,) = self._pipeline.run()
        # A view of DALI's memory, good until the next run; normalising copies out of it.
        return torch.utils.dlpack.from_dlpack(outputs.as_tensor())

    def close(self) -> None:
        self._pipeline = None


def _as_input(encoded: Encoded, position: int, channels: int) -> NDArray[np.uint8]:
    if bytes(encoded[:8]).startswith(_DALI_MAGICS):
        return np.frombuffer(encoded, dtype=np.uint8)
    return _decode_by_pil(encoded, position, channels)


def _decode_by_pil(encoded: Encoded, position: int, channels: int) -> NDArray[np.uint8]:
    """The image as uncompressed PPM, which DALI reads."""
    try:
        image = open_upright(encoded, channels)
    except Exception as error:  # PIL raises a dozen types for damaged images
        raise UndecodableError(position, explain(error)) from error
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    return np.frombuffer(buffer.getbuffer(), dtype=np.uint8)
