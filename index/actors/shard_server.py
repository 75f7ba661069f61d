"""What runs inside a Ray actor: some shards of each version it is asked for, and one thread that searches them.

Nothing here knows Ray. An actor keeps nothing that is not on disk: every question names the version's folder, which is
opened when it is not open, so an actor that was started again answers like the one before it.
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

# A version nobody asked for this long is closed, unless it is the last one that was asked for.
IDLE_S = 60.0


def deal_shards(num_shards: int, part: int, num_parts: int) -> range:
    """The shards of part `part` of `num_parts`, as evenly as it goes; none for some where there are fewer shards."""
    return range(num_shards * part // num_parts, num_shards * (part + 1) // num_parts)


@dataclasses.dataclass(frozen=True, slots=True)
class ServedVersion:
    """Which version a request is for."""

    folder: Path
    """Its folder."""

    fingerprint: int
    """Checksum of its files' checksums: another index that was built in the same place is another version."""

    num_shards: int
    """Its shards, in all parts together."""

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> "ServedVersion":
        """The version in `folder`, which has this manifest."""
        files = sorted((name, record.crc32) for name, record in manifest.files.items())
        return cls(folder, zlib.crc32(repr(files).encode()), len(manifest.shard_starts))

    def names(self, part: int, num_parts: int) -> str:
        """The shards of a part, in words."""
        shards = deal_shards(self.num_shards, part, num_parts)
        return f"{', '.join(map(versions.shard_name, shards)) or 'no shard'} of {self.folder}"


class ShardServer:
    """Serves part `part` of `num_parts` of an index's shards, of any of its versions.

    Searches run one after another in one thread, by `num_threads` OpenMP threads. What arrives while it works waits;
    then alike requests, up to `max_batch` queries together, are searched as one: a lone query waits for nothing,
    and many small ones share each pass over the vectors.
    """

    def __init__(
        self, part: int, num_parts: int, num_threads: int, max_batch: int, device: Device = "cpu"
    ) -> None:
        self._part, self._num_parts = part, num_parts
        self._device = device
        self._max_batch = max_batch
        # OpenMP counts threads by calling thread, so both of these are told.
        self._searcher, self._opener = (
            ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(num_threads,))
            for _ in range(2)
        )
        self._opened: dict[ServedVersion, asyncio.Future[list[Shard]]] = {}
        self._used: dict[ServedVersion, float] = {}
        self._waiting: list[tuple[ServedVersion, Request, asyncio.Future[list[Answer]]]] = []
        self._at_work: asyncio.Task[None] | None = None
        # For reports: their ratio says how many requests were joined.
        self.num_requests = self.num_searches = 0

    async def ping(self) -> int:
        """The process's id, answered beside a search that runs: silence means trouble."""
        return os.getpid()

    async def open(self, version: ServedVersion) -> None:
        """Open a version's shards beside the searches that go on; done when they have answered a query."""
        await self._shards(version)

    async def answer(self, version: ServedVersion, request: Request) -> list[Answer]:
        """Each shard's answer from this version, as `Shard.answer`."""
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
        # It may have been closed between its opening and this moment: somebody asks for it, so it stays.
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
            shard.prepare()  # no client's query is the first
        return shards

    async def _work(self) -> None:
        """Search until nothing waits."""
        try:
            while self._waiting:
                version, requests, done = self._take()
                try:
                    found = await self._search(version, requests)
                except Exception as error:
                    found = [error] * len(done)
                for future, answers in zip(done, found, strict=True):
                    if future.done():  # nobody waits any more
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
        """Take the request that waits longest, and all that can be searched with it."""
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
            # One that is being opened has waited for nobody; its time begins when it is open.
            if used < last and used < since and self._opened[version].done():
                del self._used[version], self._opened[version]


def what_is_alike(request: Request) -> Hashable | None:
    """What requests that are searched as one have in common; None where a request is searched alone.

    Those of one plain rectangle are joined: the same range of positions, k and everything else but the queries.
    """
    if len(request.tasks) != 1 or request.tasks[0].is_masked:
        return None
    own = ("queries", "labels", "skip", "tasks", "hidden")  # hidden: as `change` says
    others = [getattr(request, f.name) for f in dataclasses.fields(request) if f.name not in own]
    others = [tuple(sorted(value.items())) if isinstance(value, Mapping) else value for value in others]
    alike = (dataclasses.replace(request.tasks[0], query_start=0, query_stop=0), *others)
    try:
        hash(alike)
    except TypeError:  # arrays: what they say differs from request to request
        return None
    return alike


def answer_together(shards: Sequence[Shard], requests: Sequence[Request]) -> list[list[Answer]]:
    """The shards' answers to each of some requests that are alike, searched as one."""
    if len(requests) == 1:
        return [[shard.answer(requests[0]) for shard in shards]]
    ends = np.cumsum([len(request.queries) for request in requests]).tolist()
    task = dataclasses.replace(requests[0].tasks[0], query_start=0, query_stop=ends[-1])
    joined = dataclasses.replace(
        requests[0],
        queries=np.concatenate([request.queries for request in requests]),
        labels=np.concatenate([request.labels for request in requests]),
        skip=np.concatenate([request.skip for request in requests]),
        tasks=(task,),
    )
    answers = [shard.answer(joined) for shard in shards]
    return [
        [(ids[start:end], costs[start:end]) for ids, costs in answers]
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
