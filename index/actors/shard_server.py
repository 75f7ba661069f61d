"""The server inside a Ray actor: some shards of each requested version, and one thread that searches them.

This module does not depend on Ray. An actor keeps no state that is not on disk: every request names the version's
folder, which is opened if necessary, so a restarted actor gives the same answers.
"""

import asyncio
import dataclasses
import os
import time
import zlib
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from index import versions
from index.base.errors import VersionError
from index.config import Device
from index.runtime import faiss
from index.shard import Request, Shard
from index.versions import Manifest

Answer = tuple[np.ndarray, np.ndarray]

# A version without requests for this many seconds is closed, unless it is the most recently requested one.
IDLE_S = 60.0


def deal_shards(num_shards: int, part: int, num_parts: int) -> range:
    """The shards of part `part` of `num_parts`, distributed evenly; empty if there are fewer shards than parts."""
    return range(num_shards * part // num_parts, num_shards * (part + 1) // num_parts)


@dataclasses.dataclass(frozen=True, slots=True)
class ServedVersion:
    """Identifies the version that a request is for."""

    folder: Path
    """Its folder."""

    fingerprint: int
    """Checksum of the files' checksums: an index that was rebuilt in the same location is another version."""

    num_shards: int
    """Total number of its shards."""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "ServedVersion":
        """The version in `folder` with this manifest."""
        files = sorted((name, record.crc32) for name, record in manifest.files.items())
        return cls(folder, zlib.crc32(repr(files).encode()), len(manifest.shard_starts))

    def names(self, part: int, num_parts: int) -> str:
        """The names of a part's shards, as text."""
        shards = deal_shards(self.num_shards, part, num_parts)
        return f"{', '.join(map(versions.shard_name, shards)) or 'no shard'} of {self.folder}"


class ShardServer:
    """Serves part `part` of `num_parts` of an index's shards, of any of its versions.

    Searches run sequentially in one thread, with `num_threads` OpenMP threads. Requests that arrive during a search
    wait. Compatible ones are then searched as one, up to `max_batch` queries together: a single query never waits to be
    batched, and many small ones share each pass over the vectors.
    """

    def __init__(
        self, part: int, num_parts: int, num_threads: int, max_batch: int, device: Device = "cpu"
    ) -> None:
        self._part, self._num_parts = part, num_parts
        self._device = device
        self._max_batch = max_batch
        # OpenMP counts threads per calling thread, so the number is set in both threads.
        self._searcher, self._opener = (
            ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(num_threads,))
            for _ in range(2)
        )
        self._opened: dict[ServedVersion, asyncio.Future[list[Shard]]] = {}
        self._used: dict[ServedVersion, float] = {}
        self._waiting: list[tuple[ServedVersion, Request, asyncio.Future[list[Answer]]]] = []
        self._at_work: asyncio.Task[None] | None = None
        # For reports: the ratio of these two is the average number of requests per search.
        self.num_requests = self.num_searches = 0

    async def ping(self) -> int:
        """The id of the process, answered even during a search: silence means trouble."""
        return os.getpid()

    async def open(self, version: ServedVersion) -> None:
        """Open a version's shards during other searches; return once they have answered a query."""
        await self._shards(version)

    async def answer(self, version: ServedVersion, request: Request) -> list[Answer]:
        """Each shard's answer from this version, as in `Shard.answer`."""
        await self._shards(version)
        done: asyncio.Future[list[Answer]] = asyncio.get_running_loop().create_future()
        self._waiting.append((version, request, done))
        if self._at_work is None:
            self._at_work = asyncio.create_task(self._work())
        return await done

    async def _shards(self, version: ServedVersion) -> list[Shard]:
        if version not in self._opened:
            opening = asyncio.get_running_loop().run_in_executor(self._opener, self._open, version)
            self._opened[version] = opening
        self._used[version] = time.monotonic()
        opening = self._opened[version]
        try:
            shards = await asyncio.shield(opening)
        except Exception:
            if self._opened.get(version) is opening:
                del self._opened[version], self._used[version]
            raise
        # It may have been closed since it was opened; this request needs it, so register it again.
        self._opened.setdefault(version, opening)
        self._used[version] = time.monotonic()
        return shards

    def _open(self, version: ServedVersion) -> list[Shard]:
        folder = version.folder
        manifest = versions.read_manifest(folder)
        if ServedVersion.of(folder, manifest) != version:
            raise VersionError(f"{folder} was built again since the index was opened; open the index again")
        numbers = deal_shards(len(manifest.shard_starts), self._part, self._num_parts)
        shards = [Shard.open(folder, manifest, number, self._device) for number in numbers]
        for shard in shards:
            shard.prepare()  # so that no client's query pays for it
        return shards

    async def _work(self) -> None:
        """Search until no request waits."""
        try:
            while self._waiting:
                version, requests, done = self._take()
                try:
                    found = await self._search(version, requests)
                except Exception as error:
                    found = [error] * len(done)
                for future, answers in zip(done, found, strict=True):
                    if future.done():  # the client no longer waits
                        continue
                    if isinstance(answers, Exception):
                        future.set_exception(answers)
                    else:
                        future.set_result(answers)
        finally:
            self._at_work = None

    async def _search(
        self, version: ServedVersion, requests: list[Request]
    ) -> Sequence[list[Answer] | Exception]:
        shards = await self._shards(version)
        self.num_requests += len(requests)
        self.num_searches += 1
        self._close_idle()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._searcher, answer_together, shards, requests)

    def _take(self) -> tuple[ServedVersion, list[Request], list[asyncio.Future[list[Answer]]]]:
        """Take the oldest waiting request and all others that can be searched with it."""
        version, first, done = self._waiting.pop(0)
        taken, futures, left = [first], [done], []
        alike = what_is_alike(first)
        num_queries = len(first.queries)
        for waiting in self._waiting:
            fits = num_queries + len(waiting[1].queries) <= self._max_batch
            if fits and alike is not None and waiting[0] == version and what_is_alike(waiting[1]) == alike:
                taken.append(waiting[1])
                futures.append(waiting[2])
                num_queries += len(waiting[1].queries)
            else:
                left.append(waiting)
        self._waiting = left
        return version, taken, futures

    def _close_idle(self) -> None:
        last = max(self._used.values())
        since = time.monotonic() - IDLE_S
        for version, used in list(self._used.items()):
            # A version that is still being opened is not idle; its time starts once it is open.
            if used < last and used < since and self._opened[version].done():
                del self._used[version], self._opened[version]


def what_is_alike(request: Request) -> Hashable | None:
    """The key that requests share if they can be searched as one; None if a request must be searched alone.

    Requests for the same range of positions can be joined if they differ only in their queries.
    """
    if len(request.tasks) != 1 or request.tasks[0].is_masked:
        return None
    own = ("queries", "labels", "skip", "tasks", "hidden")  # hidden: determined by `change`
    others = [getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in own]
    others = [tuple(sorted(value.items())) if isinstance(value, Mapping) else value for value in others]
    alike = (dataclasses.replace(request.tasks[0], query_start=0, query_stop=0), *others)
    try:
        hash(alike)
    except TypeError:  # arrays differ from request to request
        return None
    return alike


def answer_together(shards: Sequence[Shard], requests: Sequence[Request]) -> list[list[Answer]]:
    """The shards' answers to each of several compatible requests, searched as one."""
    if len(requests) == 1:
        return [[shard.answer(requests[0]) for shard in shards]]
    ends = np.cumsum([len(request.queries) for request in requests]).tolist()
    task = dataclasses.replace(requests[0].tasks[0], query_start=0, query_stop=ends[-1])
    joined = dataclasses.replace(
        requests[0],
        queries=np.concatenate([request.queries for request in requests]),
        labels=np.concatenate([request.labels for request in requests]),
        skip=_joined_skip(requests),
        tasks=(task,),
    )
    answers = [shard.answer(joined) for shard in shards]
    return [
        [(ids[start:end], costs[start:end]) for ids, costs in answers]
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def _joined_skip(requests: Sequence[Request]) -> np.ndarray | None:
    if all(request.skip is None for request in requests):
        return None
    parts = [
        np.full(len(request.queries), -1) if request.skip is None else request.skip for request in requests
    ]
    return np.concatenate(parts)
