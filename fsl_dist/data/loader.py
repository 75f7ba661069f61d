"""From sample ids to tensors: sources that fetch a batch, and a loader that prepares batches in advance."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.data.augmentation.parameters import draw_augment
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.damage import EncodedBatch, SoundReader
from fsl_dist.data.decode import Decoder, make_decoder
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import ConfigError, RequestError, UndecodableError
from index.base.files import map_array
from index.base.object_cache import bring, working_folder
from index.vectors import find_bad_row

_NUMBERS_AT_A_TIME = 1 << 22
"""of a file of features, while it is checked: 16 MiB"""


class Source(Protocol):
    """Turns sample ids into one tensor; `read` and `prepare` are its two halves, run by different threads."""

    catalogue: Catalogue
    sample_shape: tuple[int, ...]
    reads_at_once: int
    """number of batches that are worth reading concurrently"""

    @property
    def bad_samples(self) -> Mapping[int, str]:
        """Sample id → reason, for the damaged samples found so far that are replaced by others."""

    def read(self, ids: NDArray[np.int64]) -> Any:
        """What `prepare` needs, off the disk."""

    def prepare(self, raw: Any, ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        """Tensor float32 [n, *sample_shape] of what `read` gave."""

    def fetch(self, ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        """Tensor float32 [n, *sample_shape]; `epoch` draws the augmentation, None is the test transform."""

    def close(self) -> None:
        """Release files and threads."""


class ImageSource:
    """Images of a data set, decoded, augmented and normalised: float32 [n, C, S, S] on the decoder's device.

    A bad sample's place is taken by another of its class (`fsl_dist.data.damage`), augmented as the bad one.
    """

    def __init__(
        self, catalogue: Catalogue, store: ShardStore, decoder: Decoder, config: DataConfig, seed: int
    ) -> None:
        self.catalogue = catalogue
        self.sample_shape: tuple[int, ...] = (config.channels, config.image_size, config.image_size)
        self.reads_at_once = store.reads_at_once
        self._store = store
        self._reader = SoundReader(
            catalogue, store, max_pixels=config.max_pixels, max_bad_fraction=config.max_bad_fraction
        )
        self._decoder = decoder
        self._config = config
        self._seed = seed

    @property
    def bad_samples(self) -> Mapping[int, str]:
        return self._reader.bad_samples

    def read(self, ids: NDArray[np.int64]) -> EncodedBatch:
        return self._reader.read(ids)

    def prepare(self, raw: EncodedBatch, ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        augment = None if epoch is None else draw_augment(self._config, self._seed, epoch, ids)
        while True:
            try:
                return self._decoder.decode(raw.samples, augment)
            except UndecodableError as error:
                raw = self._reader.replace(raw, error.position, f"cannot be decoded: {error.reason}")

    def fetch(self, ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        return self.prepare(self.read(ids), ids, epoch)

    def close(self) -> None:
        self._store.close()
        self._decoder.close()


class FeatureSource:
    """Frozen features from a .npy file, row = sample id: float32 [n, D] on the CPU, the same in every epoch."""

    def __init__(self, catalogue: Catalogue, path: str | Path) -> None:
        path = working_folder(path)
        bring(path.parent, wanted=lambda name: name == path.name)
        try:
            self._features = map_array(path)
        except (OSError, ValueError) as error:
            raise RequestError(f"data.features='{path}' cannot be read as a .npy array: {error}") from error
        shape, dtype = self._features.shape, self._features.dtype
        if dtype != np.float32 or len(shape) != 2:
            raise RequestError(
                f"data.features='{path}' must be float32 [num_samples, dim]; it is {dtype} {list(shape)}"
            )
        if shape[0] != catalogue.num_samples:
            raise RequestError(
                f"data.features='{path}' has {shape[0]} rows; data set '{catalogue.folder}' has "
                f"{catalogue.num_samples} samples, one row each (`embed` writes such a file)"
            )
        self.catalogue = catalogue
        self.path = path
        self.sample_shape: tuple[int, ...] = (shape[1],)
        self.reads_at_once = 1

    @property
    def bad_samples(self) -> Mapping[int, str]:
        """None: a bad row ends the run."""
        return {}

    def check(self) -> None:
        """Read all rows; raise RequestError for the first that is not finite.
        `prepare` does so for the rows it is given."""
        at_once = max(1, _NUMBERS_AT_A_TIME // self.sample_shape[0])
        for start in range(0, len(self._features), at_once):
            ids = np.arange(start, min(start + at_once, len(self._features)))
            self.prepare(self.read(ids), ids, None)

    def read(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._features[ids]

    def prepare(self, raw: NDArray[np.float32], ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        bad = find_bad_row(raw)
        if bad is not None:
            raise RequestError(
                f"data.features='{self.path}' row {ids[bad[0]]} contains {bad[1]}; it belongs to "
                f"{self.catalogue.describe_sample(int(ids[bad[0]]))}, and every feature must be finite (write the "
                "file again)"
            )
        return torch.from_numpy(np.ascontiguousarray(raw))

    def fetch(self, ids: NDArray[np.int64], epoch: int | None) -> torch.Tensor:
        return self.prepare(self.read(ids), ids, epoch)

    def close(self) -> None:
        """Nothing to close: the memory map is released with the array."""


def describe_samples(config: DataConfig) -> tuple[Catalogue, tuple[int, ...]]:
    """The catalogue that `config` names and the shape of its samples, without a decoder. Errors as `open_source`."""
    if not config.dataset:
        raise ConfigError("data.dataset is empty; name the folder of a data set made by `pack`")
    catalogue = Catalogue.open(config.dataset, config.version or None)
    if config.features:
        return catalogue, FeatureSource(catalogue, config.features).sample_shape
    return catalogue, (config.channels, config.image_size, config.image_size)


def open_source(
    config: DataConfig, seed: int, device: str = "cpu", max_batch: int = 256
) -> ImageSource | FeatureSource:
    """Open the images that `config` selects, or the features if `config.features` is set.

    Args:
        config: the `data.*` settings.
        seed: of the augmentation.
        device: where images are decoded to ("cpu", "cuda:0").
        max_batch: largest batch per call of the decoder; larger ones are split.

    Returns:
        A source whose `fetch(ids, epoch)` returns float32 tensors [n, *sample_shape].

    Raises:
        ConfigError: a setting has an unusable value.
        RequestError: the data set or the features do not exist or are invalid.
        DataError: a shard is missing or has another size than in the catalogue.
    """
    catalogue, _ = describe_samples(config)
    if config.features:
        return FeatureSource(catalogue, config.features)
    store = ShardStore(
        catalogue, max_gap=config.max_read_gap_bytes, threads=config.threads, check_reads=config.check_reads
    )
    store.check_files()
    return ImageSource(
        catalogue, store, make_decoder(config, device=device, max_batch=max_batch), config, seed
    )


@dataclass(frozen=True, slots=True)
class Request:
    """One batch to load."""

    ids: NDArray[np.int64]
    """int64 [n]: sample ids, any order, repeats allowed"""
    epoch: int | None = None
    """draws the augmentation; None: the test transform"""
    tag: object = None
    """returned unchanged with the batch"""
    mix: Callable[[torch.Tensor], torch.Tensor] | None = None
    """function applied to the tensor in the loader's thread; None: none"""


class Loader:
    """Prepares batches in advance: while batch i is used, batch i + 1 is decoded and batch i + 2 is read.

    Iterating yields (request, tensor) in the order of `requests`, which the consumer's thread draws `prefetch`
    batches in advance. An error while reading or decoding is raised at its batch. Iterate once; leave early by
    `break`, `close()` or the context manager.
    """

    def __init__(self, source: Source, requests: Iterable[Request], prefetch: int = 2) -> None:
        self.wait_s = 0.0
        """seconds that the consumer has waited for batches so far"""
        self._source = source
        self._requests = iter(requests)
        self._prefetch = prefetch
        self._ahead: deque[tuple[Request, Future[torch.Tensor]]] = deque()
        # One thread: batches stay in order, and the decoder is never used concurrently.
        self._preparer = ThreadPoolExecutor(1, thread_name_prefix="fsl-dist-decode")
        self._reader = ThreadPoolExecutor(
            min(source.reads_at_once, prefetch + 1), thread_name_prefix="fsl-dist-read"
        )

    def __iter__(self) -> Iterator[tuple[Request, torch.Tensor]]:
        try:
            while True:
                started = time.perf_counter()
                self._fill()
                if not self._ahead:
                    return
                request, batch = self._ahead.popleft()
                tensor = batch.result()
                if tensor.is_cuda:
                    # It was made on the decoder's stream: its memory is not to be given out before this one is done
                    # with it.
                    tensor.record_stream(torch.cuda.current_stream(tensor.device))
                self.wait_s += time.perf_counter() - started
                yield request, tensor
        finally:
            self.close()

    def _fill(self) -> None:
        while len(self._ahead) <= self._prefetch:
            request = next(self._requests, None)
            if request is None:
                return
            raw = self._reader.submit(self._source.read, request.ids)
            self._ahead.append((request, self._preparer.submit(self._prepare, request, raw)))

    def _prepare(self, request: Request, raw: "Future[Any]") -> torch.Tensor:
        tensor = self._source.prepare(raw.result(), request.ids, request.epoch)
        return tensor if request.mix is None else request.mix(tensor)

    def close(self) -> None:
        """Drop unused batches and wait for running work."""
        self._ahead.clear()
        self._preparer.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._preparer.shutdown(wait=True)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
