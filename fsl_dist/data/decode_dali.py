"""Decoding with NVIDIA DALI: one pipeline, on the GPU if there is one, otherwise on the CPU."""

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import nvidia.dali.fn as fn
import torch
import torch.utils.dlpack
from numpy.typing import NDArray
from nvidia.dali import Pipeline, pipeline_def, types

from fsl_dist.data.augmentation.parameters import AugmentParameters, plain_augment
from fsl_dist.data.augmentation.pixel_stage import transform_pixels
from fsl_dist.data.config import DataConfig
from fsl_dist.data.crops import crop_regions
from fsl_dist.data.images import explain
from fsl_dist.data.normalise import Normaliser
from fsl_dist.data.pixels import Encoded, open_upright, read_plain
from fsl_dist.errors import DataError, UndecodableError

_Input = tuple[NDArray[np.uint8], tuple[int, int]]
"""What DALI decodes, and the (height, width) it will have."""


# An image that already has the right size is copied, which takes a tenth of the time.
_COPY = np.int32(types.INTERP_NN)
_FILTERS = {"bilinear": np.int32(types.INTERP_LINEAR), "bicubic": np.int32(types.INTERP_CUBIC)}


def _colours_in_use(config: DataConfig) -> tuple[str, ...]:
    """The fields of `AugmentParameters` that the pipeline uses."""
    if not config.has_jitter:
        return ()
    return ("brightness", "contrast") + (("saturation",) if config.channels == 3 else ())


@pipeline_def
def _image_pipeline(config: DataConfig, device: str) -> Any:
    """Encoded bytes and `CropRegions` → normalised float32 [S, S, C] per image, or uint8 before the pixel stage.

    On the CPU only a crop's region is decoded; the GPU's decoders ("gpu") decode whole images.
    """

    def parameter(name: str, dtype: Any, ndim: int) -> Any:
        # The inputs stay alive until the run has ended, so they are not copied.
        return fn.external_source(name=name, dtype=dtype, ndim=ndim, no_copy=True)

    encoded = parameter("encoded", types.UINT8, 1)
    colours = types.RGB if config.channels == 3 else types.GRAY
    if device == "cpu":
        images = fn.decoders.image_slice(
            encoded,
            start=parameter("start", types.INT32, 1),
            shape=parameter("shape", types.INT32, 1),
            axes=[0, 1],
            output_type=colours,
        )
    else:
        images = fn.decoders.image(encoded, device="mixed", output_type=colours, jpeg_fancy_upsampling=True)
    images = fn.resize(
        images,
        size=[config.image_size, config.image_size],
        roi_start=parameter("near", types.FLOAT, 1),
        roi_end=parameter("far", types.FLOAT, 1),
        interp_type=fn.reinterpret(parameter("filter", types.INT32, 0), dtype=types.INTERP_TYPE),
        antialias=True,
    )
    if config.has_jitter:
        factors = {name: parameter(name, types.FLOAT, 0) for name in _colours_in_use(config)}
        images = (fn.color_twist if config.channels == 3 else fn.brightness_contrast)(images, **factors)
    if config.has_pixel_stage:
        return images
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="HWC",
        mean=[255 * mean for mean in config.mean[: config.channels]],
        std=[255 * std for std in config.std[: config.channels]],
    )


class DaliDecoder:
    """Decodes through one DALI pipeline."""

    name = "dali"

    def __init__(self, config: DataConfig, *, device: str, max_batch: int) -> None:
        self._config = config
        self._device = torch.device(device)
        self._max_batch = max_batch
        self._pipeline: Pipeline | None = None
        self._normalise = Normaliser(config, device)
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="fsl-dist-image")
        # A separate stream: copying DALI's output must not wait for the training step.
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def _build(self) -> Pipeline:
        is_gpu = self._device.type == "cuda"
        pipeline = _image_pipeline(
            self._config,
            "gpu" if is_gpu else "cpu",
            batch_size=self._max_batch,
            num_threads=self._config.threads,
            device_id=(self._device.index or 0) if is_gpu else None,
            prefetch_queue_depth=1,  # on demand: deeper queues would request inputs before they are fed
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
        parts = []
        for start in range(0, len(encoded), self._max_batch):
            stop = min(start + self._max_batch, len(encoded))
            some, parameters = encoded[start:stop], augment.slice(start, stop)
            try:
                inputs = [_as_input(image, start + i, self._config.channels) for i, image in enumerate(some)]
                parts.append(self._run(inputs, parameters))
            except UndecodableError:
                raise
            except Exception:
                # DALI cannot be used after an error, which may be of any type (the codec's, or out of memory).
                # PIL decodes the images that DALI refuses, or finds the damaged one.
                self._pipeline = None
                inputs = [
                    _decode_by_pil(image, start + i, self._config.channels) for i, image in enumerate(some)
                ]
                try:
                    parts.append(self._run(inputs, parameters))
                except Exception as error:
                    self._pipeline = None
                    reason = " ".join(str(error).split())
                    raise DataError(
                        f"DALI cannot prepare a batch of {len(inputs)} images that PIL decodes: {reason}"
                        " (data.decoder=torchvision needs no DALI)"
                    ) from error
        if self._stream is None and len(parts) == 1:
            return parts[0]
        # Of the GPU's memory only torch knows who still computes with it.
        size = self._config.image_size
        images = torch.cat(parts) if parts else torch.empty((0, self._config.channels, size, size))
        if self._stream is not None:
            self._stream.synchronize()
        return images

    def _run(self, inputs: list[_Input], augment: AugmentParameters) -> torch.Tensor:
        """float32 [n, C, S, S] in channels_last memory; DALI's, which is not written again while the tensor lives."""
        if self._pipeline is None:
            self._pipeline = self._build()
        sizes = np.array([size for _, size in inputs], dtype=np.int64)
        is_cut = self._device.type == "cpu"
        regions = crop_regions(sizes, augment, self._config, is_cut=is_cut)
        fed: dict[str, NDArray[Any]] = {
            "near": regions.near,
            "far": regions.far,
            "filter": np.where(regions.is_copy, _COPY, _FILTERS[self._config.interpolation]),
        }
        if is_cut:
            fed |= {"start": regions.start, "shape": regions.shape}
        fed |= {name: getattr(augment, name) for name in _colours_in_use(self._config)}
        self._pipeline.feed_input("encoded", [data for data, _ in inputs])
        for name, values in fed.items():
            self._pipeline.feed_input(name, values)
        (outputs,) = self._pipeline.run()
        images: torch.Tensor = torch.utils.dlpack.from_dlpack(outputs.as_tensor())
        if not self._config.has_pixel_stage:
            return images.permute(0, 3, 1, 2)
        return self._normalise(transform_pixels(images, augment, self._config, self._pool))

    def close(self) -> None:
        self._pipeline = None
        self._pool.shutdown(wait=True, cancel_futures=True)


def _as_input(encoded: Encoded, position: int, channels: int) -> _Input:
    plain = read_plain(encoded)
    if plain is None:
        return _decode_by_pil(encoded, position, channels)
    return np.frombuffer(plain.content, dtype=np.uint8), plain.size


def _decode_by_pil(encoded: Encoded, position: int, channels: int) -> _Input:
    """The image as uncompressed PPM, which DALI reads."""
    try:
        image = open_upright(encoded, channels)
    except Exception as error:  # PIL raises a dozen types for damaged images
        raise UndecodableError(position, explain(error)) from error
    buffer = io.BytesIO()
    image.save(buffer, "PPM")
    return np.frombuffer(buffer.getbuffer(), dtype=np.uint8), (image.height, image.width)
