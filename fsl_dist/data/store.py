"""Bytes of samples: a batch of ids becomes few reads, byte ranges that touch (or nearly) read as one."""

import itertools
import os
import resource
import threading
import time
import zlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, Location
from fsl_dist.errors import DataError
from index.base import object_cache
from index.base.object_store import request_pool

# Below this many ranges, threads are not worth their overhead (a warm pread takes about 20 µs).
_MIN_RANGES_PER_THREAD = 8
_RANGES_A_CALL = 8
# Of bytes that changed on the way: with one read in four changed, one sample in 300,000 is still wrong after these.
_TRIES = 8
_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class ByteRanges:
    """Coalesced reads for a list of samples."""

    shard: NDArray[np.int64]
    """int64 [num_ranges]"""
    start: NDArray[np.int64]
    """int64 [num_ranges]: first byte"""
    stop: NDArray[np.int64]
    """int64 [num_ranges]: one past the last byte"""
    range_of_sample: NDArray[np.int64]
    """int64 [n]: the range that contains each sample, in the requested order"""


def coalesce(
    shard: NDArray[np.integer], offset: NDArray[np.int64], size: NDArray[np.int64], max_gap: int
) -> ByteRanges:
    """Merge samples of one shard whose bytes overlap, are adjacent, or are at most `max_gap` bytes apart.

    All arrays are [n], in any order; repeats are allowed. The ranges are sorted by (shard, start).
    """
    order = np.lexsort((offset, shard))
    shards, starts, sizes = shard[order].astype(np.int64), offset[order], size[order]
    # All shards on one axis, further apart than any gap that is merged.
    stride = int((starts + sizes).max(initial=0)) + max_gap + 1
    begins = shards * stride + starts
    # A long sample may extend beyond its successors, so a gap is measured from the furthest end so far.
    ends = np.maximum.accumulate(begins + sizes)
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = begins[1:] - ends[:-1] > max_gap
    first = np.flatnonzero(is_new)
    last = np.append(first, len(order))[1:] - 1
    range_of_sample = np.empty(len(order), dtype=np.int64)
    range_of_sample[order] = np.cumsum(is_new) - 1
    return ByteRanges(shards[first], starts[first], ends[last] - shards[last] * stride, range_of_sample)


def _unopened(path: Path, error: OSError) -> DataError:
    return DataError(
        f"shard '{path}' cannot be opened ({error.strerror}); the catalogue lists it, "
        "so restore it or pack again"
    )


def _missing(path: Path) -> DataError:
    return DataError(f"shard '{path}' is missing; the catalogue lists it, so restore it or pack again")


def _resized(path: Path, found: int, expected: int) -> DataError:
    return DataError(
        f"shard '{path}' has {found} bytes, the catalogue says {expected}; "
        "it was changed or cut after packing, or is another file, so restore it or pack again"
    )


class _ShardHandle:
    """An open shard; its descriptor is closed when the last thread has finished with it."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise _unopened(path, error) from error
        found = os.fstat(self._descriptor).st_size
        if found != size_bytes:
            raise _resized(path, found, size_bytes)

    def read(self, start: int, stop: int) -> bytes:
        parts, position = [], start
        while (
            position < stop
        ):  # one pread returns at most 2 GiB, and fewer bytes than requested on some file systems
            part = os.pread(self._descriptor, stop - position, position)
            if not part:
                raise DataError(
                    f"shard '{self.path}' ends at byte {position}, before byte {stop} of a sample"
                )
            parts.append(part)
            position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_ranges(self, starts: list[int], stops: list[int]) -> list[bytes]:
        return [self.read(start, stop) for start, stop in zip(starts, stops, strict=True)]

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


class _ObjectHandle:
    """A shard in an object store, read by ranges; opening it sends no request."""

    def __init__(self, path: Path, place: object_cache.Place) -> None:
        self._path, self._key, self._bucket = path, place.key, place.bucket

    def read_ranges(self, starts: list[int], stops: list[int]) -> list[bytes]:
        try:
            parts = self._bucket.read_ranges(self._key, starts, stops)
        except FileNotFoundError:
            raise _missing(self._path) from None
        for part, start, stop in zip(parts, starts, stops, strict=True):
            if len(part) != stop - start:
                raise DataError(
                    f"shard '{self._path}' ends at byte {start + len(part)}, before byte {stop} of a sample"
                )
        return parts


def _most_open() -> int:
    # A batch reads its shards in order: with one shard too many, each is closed before it is needed again.
    # 200 images out of 100 shards took 7 ms with 64 open and 3 ms with all of them.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if limit == resource.RLIM_INFINITY else max(1, min(256, limit // 4))


class ShardStore:
    """Reads samples of one catalogue by id. Thread-safe.

    Keeps at most `max_open` shards open and closes the least recently used ones first (None: a quarter of the files
    that this process may open, at most 256). `threads` threads read concurrently if a batch needs many ranges.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        *,
        max_open: int | None = None,
        max_gap: int = 65536,
        threads: int = 1,
        check_reads: bool = True,
    ) -> None:
        self._catalogue = catalogue
        self._max_open = _most_open() if max_open is None else max_open
        self._max_gap = max_gap
        self._check_reads = check_reads
        self._open: OrderedDict[int, _ShardHandle | _ObjectHandle] = OrderedDict()
        self._lock = threading.Lock()
        self._threads = threads
        self._is_remote = object_cache.place_of(catalogue.folder) is not None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="fsl-dist-pread") if threads > 1 else None

    @property
    def reads_at_once(self) -> int:
        """Number of batches that are worth reading concurrently: reading from an object store is mostly waiting."""
        return 4 if self._is_remote else 1

    def read(self, ids: NDArray[np.int64]) -> list[memoryview]:
        """Read the encoded bytes of each of `ids` (int64 [n], any order, repeats allowed), in that order.

        The results are views into the buffers that were read: samples of one range share a buffer. Raises DataError
        if a shard is missing or truncated, or if a sample's checksum is wrong.
        """
        samples, mismatched = self.read_compared(ids)
        if mismatched:
            raise DataError(self._describe_damage(int(np.asarray(ids)[mismatched[0]])))
        return samples

    def read_compared(self, ids: NDArray[np.int64]) -> tuple[list[memoryview], list[int]]:
        """As `read`, but instead of an error (bytes, positions in `ids` whose checksum is wrong).

        No position is named where the store does not check its reads.
        """
        return self._read_located(self._catalogue.locate(ids))

    def read_masks(self, ids: NDArray[np.int64]) -> list[memoryview | None]:
        """Encoded masks (PNG) of each of `ids` (int64 [n], any order, repeats allowed); None for a sample without.

        DataError as `read` raises it.
        """
        ids = np.asarray(ids, dtype=np.int64)
        masked = np.flatnonzero(self._catalogue.locate_masks(ids).size)
        found, mismatched = self._read_located(self._catalogue.locate_masks(ids[masked]))
        if mismatched:
            raise DataError(self._describe_damage(int(ids[masked[mismatched[0]]]), "mask of sample"))
        masks: list[memoryview | None] = [None] * len(ids)
        for position, mask in zip(masked.tolist(), found, strict=True):
            masks[position] = mask
        return masks

    def _read_located(self, where: Location) -> tuple[list[memoryview], list[int]]:
        """(bytes, positions in `where` whose checksum is wrong)."""
        ranges = coalesce(where.shard, where.offset, where.size, self._max_gap)
        buffers = self._read_ranges(ranges)
        begins = where.offset - ranges.start[ranges.range_of_sample]
        samples = [
            buffers[index][begin : begin + size]
            for index, begin, size in zip(ranges.range_of_sample, begins, where.size, strict=True)
        ]
        if not self._check_reads:
            return samples, []
        expected = where.crc32.tolist()
        mismatched = [i for i, sample in enumerate(samples) if zlib.crc32(sample) != expected[i]]
        if self._is_remote:
            for i in mismatched:
                samples[i] = self._read_again(where, i, samples[i])
            mismatched = [i for i in mismatched if zlib.crc32(samples[i]) != expected[i]]
        return samples, mismatched

    def _read_again(self, where: Location, position: int, found: memoryview) -> memoryview:
        """A sample whose checksum is wrong, read until it is right, or the same twice: then it is so in the store.

        Bytes may change on the way. At most `_TRIES` times, with a pause that doubles between them.
        """
        one = slice(position, position + 1)
        starts, stops = where.offset[one].tolist(), (where.offset[one] + where.size[one]).tolist()
        pause_s = _PAUSE_S
        for _ in range(_TRIES):
            (again,) = self._handle(int(where.shard[position])).read_ranges(starts, stops)
            if zlib.crc32(again) == int(where.crc32[position]) or again == found:
                return memoryview(again)
            found = memoryview(again)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 1.0)
        return found

    def check_files(self) -> None:
        """Raise DataError if a shard is missing or has another size than in the catalogue; reads no shard."""
        sizes = object_cache.sizes_below(self._catalogue.folder)
        for shard in self._catalogue.shards:
            path = self._catalogue.folder / shard.name
            try:
                found = os.stat(path).st_size if object_cache.place_of(path) is None else sizes[shard.name]
            except KeyError:
                raise _missing(path) from None
            except OSError as error:
                raise _unopened(path, error) from error
            if found != shard.size_bytes:
                raise _resized(path, found, shard.size_bytes)

    def _describe_damage(self, sample_id: int, what: str = "sample") -> str:
        shard = self._catalogue.shards[int(self._catalogue.locate([sample_id]).shard[0])]
        return (
            f"shard '{self._catalogue.folder / shard.name}': {what} '{self._catalogue.keys([sample_id])[0]}' "
            f"(id {sample_id}) does not match its checksum; "
            "inspecting the data set with verify=True lists every damaged sample"
        )

    def _read_ranges(self, ranges: ByteRanges) -> list[memoryview]:
        def read_some(positions: NDArray[np.int64]) -> list[memoryview]:
            return [memoryview(part) for i in positions for part in self._read_group(ranges, slice(i, i + 1))]

        if self._is_remote:
            groups = self._group(ranges.shard)
            parts = request_pool(os.getpid()).map(lambda group: self._read_group(ranges, group), groups)
            return [memoryview(buffer) for part in parts for buffer in part]
        everything = np.arange(len(ranges.shard))
        shares = min(self._threads, len(everything) // _MIN_RANGES_PER_THREAD)
        if self._pool is None or shares < 2:
            return read_some(everything)
        return [
            buffer
            for part in self._pool.map(read_some, np.array_split(everything, shares))
            for buffer in part
        ]

    def _group(self, shard: NDArray[np.int64]) -> list[slice]:
        """Group ranges of one shard: a call costs more than a range (0.22 ms for one,
        0.14 ms per range in groups of eight)."""
        edges = np.append(np.flatnonzero(np.diff(shard, prepend=-1)), len(shard)).tolist()
        return [
            slice(start, min(start + _RANGES_A_CALL, last))
            for first, last in itertools.pairwise(edges)
            for start in range(first, last, _RANGES_A_CALL)
        ]

    def _read_group(self, ranges: ByteRanges, group: slice) -> list[bytes]:
        handle = self._handle(int(ranges.shard[group.start]))
        return handle.read_ranges(ranges.start[group].tolist(), ranges.stop[group].tolist())

    def _handle(self, shard: int) -> _ShardHandle | _ObjectHandle:
        with self._lock:
            handle = self._open.pop(shard, None)
            if handle is None:
                file = self._catalogue.shards[shard]
                path = self._catalogue.folder / file.name
                place = object_cache.place_of(path)
                handle = _ShardHandle(path, file.size_bytes) if place is None else _ObjectHandle(path, place)
            self._open[shard] = handle
            if len(self._open) > self._max_open:
                self._open.popitem(last=False)
            return handle

    def close(self) -> None:
        """Close every shard and end the threads; a later read opens shards again, without threads."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=True, cancel_futures=True)
        with self._lock:
            self._open.clear()
