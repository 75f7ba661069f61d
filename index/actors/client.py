"""Open an index whose shards are served by Ray actors."""

from pathlib import Path
from types import TracebackType
from typing import Literal

from index import versions
from index.actors.replicas import Replicas
from index.actors.shard_server import Answer, ServedVersion, deal_shards
from index.base.errors import PartialSearchError, RequestError
from index.base.extras import require
from index.search import LocalIndex, ShardedIndex, open_index
from index.shard import Request
from index.versions import Manifest

__all__ = ["LocalIndex", "RayIndex", "open_index", "open_ray_index"]

# Larger requests are stored once in Ray's object store, and every actor on a machine maps the same bytes. Smaller ones
# are sent with the call, which saves one step.
_PUT_BYTES = 1 << 16


class RayIndex(ShardedIndex):
    """One version of an index, served by Ray actors; it returns the same results as LocalIndex.

    The object is thread-safe. It stays at its version when others are published; `refresh` returns the newest one.
    Vectors that were added to the version after it was published are searched in this process.
    Close the index when done, or use it as a context manager.
    """

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        replicas: Replicas,
        partial: Literal["error", "allow"],
        verify: bool,
    ) -> None:
        super().__init__(path, manifest)
        self._verify = verify
        self._replicas = replicas
        self._partial: Literal["error", "allow"] = partial
        self._version = ServedVersion.of(path, manifest)
        shards = (
            deal_shards(self._version.num_shards, part, replicas.num_parts)
            for part in range(replicas.num_parts)
        )
        self._parts = [part for part in shards if part]

    def __enter__(self) -> "RayIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def refresh(self) -> "RayIndex":
        """Return the current version of the index on the same actors, with its changes; `self` if it is up to date.

        Usage: `index = index.refresh()`. After a rollback the result is an older version.

        Raises:
            VersionError: the version is missing or damaged.
            PartialSearchError: the actors do not respond.
        """
        folder = versions.find_version(self._replicas.root)
        if folder == self.path and versions.read_manifest(folder) == self.manifest:
            return self.caught_up()
        return self.open_version(folder)

    def open_version(self, folder: Path) -> "RayIndex":
        """Return another version of the index, on the same actors.

        The actors open it while they answer other queries, and keep each version open while it is in use, so the
        service is never interrupted. After an error the versions that were open remain usable.

        Raises:
            VersionError: the version is missing or damaged.
            PartialSearchError: the actors do not respond.
        """
        folder = Path(folder).absolute()
        manifest = versions.read_manifest(folder)
        versions.check_files(folder, manifest, verify=self._verify)
        self._replicas.open(ServedVersion.of(folder, manifest), everywhere=False)
        return RayIndex(folder, manifest, self._replicas, self._partial, self._verify)

    def close(self, *, end_detached: bool = False) -> None:
        """Close this object and all that `refresh` returned; end the actors that this client created.

        Detached actors keep serving other clients, unless `end_detached` is true.
        """
        self._replicas.close(end_detached=end_detached)

    def _answers(self, request: Request) -> list[Answer | None]:
        import ray

        shared = ray.put(request) if request.queries.nbytes >= _PUT_BYTES else request
        found = self._replicas.ask(self._version, shared, is_patient=self._partial == "error")
        lost = [part for part in found if isinstance(part, PartialSearchError)]
        if lost and (self._partial == "error" or len(lost) == len(found)):
            raise lost[0]
        answers: list[Answer | None] = []
        for part, shards in zip(found, self._parts, strict=True):
            answers += [None] * len(shards) if isinstance(part, PartialSearchError) else part
        return answers


def open_ray_index(
    path: Path,
    *,
    num_actors: int,
    replicas: int = 1,
    partial: Literal["error", "allow"] = "error",
    verify: bool = True,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    max_batch: int = 256,
    timeout_s: float = 120.0,
    silence_s: float = 10.0,
    detached: bool = False,
) -> RayIndex:
    """Open an index (its current version) or a version folder, its shards distributed over Ray actors.

    Ray must be connected, and every node must see `path`. Actors are identified by the path and `num_actors`: processes
    that open the same index share them, and the `num_cpus`, `num_gpus` and `max_batch` of the first process apply. The
    actors end with the client that created them. The other clients then create new ones and wait for them, so set
    `detached` if client processes are short-lived.

    Args:
        path: folder of the index or of a version.
        num_actors: number of parts into which the shards are divided, at most the number of shards.
        replicas: actors per part. With 2 or more, the loss of one actor causes no waiting.
        partial: behaviour when no replica of a part answers. `error`: wait up to `timeout_s` for a replica, then raise
            PartialSearchError. `allow`: continue at once without these shards and list them in
            `SearchResult.missing_shards`; PartialSearchError only if no part answers.
        verify: compare the checksums of the version's files first (this process reads all of them). Sizes are always
            checked.
        num_cpus: CPUs that each actor reserves in Ray; it searches with as many threads, at least one.
        num_gpus: GPUs, or the fraction of one, that each actor reserves in Ray; above 0 it searches on the GPU.
        max_batch: small requests that wait for an actor are searched together, up to this many queries; 1 disables it.
        timeout_s: seconds without any sign of life from a part's replicas before opening or searching fails.
        silence_s: seconds without a sign of life from a replica before another replica is asked.
        detached: the actors outlive this process, until `close(end_detached=True)`.

    Returns:
        The opened index.

    Raises:
        VersionError: something is missing or damaged.
        RequestError: a number is out of range.
        PartialSearchError: the actors do not start in time.
    """
    require("ray")
    root = Path(path).absolute()
    folder = versions.find_version(root)
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest, verify=verify)
    num_shards = len(manifest.shard_starts)
    if not 1 <= num_actors <= num_shards:
        raise RequestError(
            f"num_actors={num_actors} must be between 1 and the {num_shards} shards of {folder} "
            "(build it with more: index.shards)"
        )
    for name, value in (("replicas", replicas), ("max_batch", max_batch)):
        if value < 1:
            raise RequestError(f"{name}={value} must be at least 1")
    for name, number in (("num_cpus", num_cpus), ("num_gpus", num_gpus)):
        if not number >= 0:
            raise RequestError(f"{name}={number} must be at least 0")
    for name, seconds in (("timeout_s", timeout_s), ("silence_s", silence_s)):
        if not seconds > 0:
            raise RequestError(f"{name}={seconds} must be above 0")
    if partial not in ("error", "allow"):
        raise RequestError(f"partial={partial} must be error or allow")
    served = Replicas(
        root,
        num_actors,
        replicas,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        max_batch=max_batch,
        timeout_s=timeout_s,
        silence_s=silence_s,
        detached=detached,
    )
    try:
        served.open(ServedVersion.of(folder, manifest), everywhere=True)
        return RayIndex(folder, manifest, served, partial, verify)
    except BaseException:
        served.close()
        raise
