"""Opening an index: in this process, or as Ray actors that each serve some of its shards."""

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

# Larger requests are put into Ray's object store once; every actor on a machine maps the same bytes. Smaller ones
# travel with the call, which takes a step less.
_PUT_BYTES = 1 << 16


class RayIndex(ShardedIndex):
    """One version of an index, its shards served by Ray actors; the same answers as LocalIndex.

    Threads may share it. It stays the version it is, whatever is published or changed; `refresh` gives the newest. Vectors
    that were added to a version since it was published are searched in this process.
    Close it, or use it as a context, when done.
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
        """The index's current version on the same actors, with its changes; this object itself where that is what it is.

        `index = index.refresh()`. After a rollback that is an older version. Raises as `open_version` does.
        """
        folder = versions.find_version(self._replicas.root)
        if folder == self.path and versions.read_manifest(folder) == self.manifest:
            return self.caught_up()
        return self.open_version(folder)

    def open_version(self, folder: Path) -> "RayIndex":
        """Another version of the index, on the same actors.

        They open it beside the queries they answer, and keep each version as long as it is asked for, so there is no
        moment without answers. Raises VersionError and PartialSearchError as `open_ray_index` does; then the versions
        that are open go on.
        """
        folder = Path(folder).absolute()
        manifest = versions.read_manifest(folder)
        versions.check_files(folder, manifest, verify=self._verify)
        self._replicas.open(ServedVersion.of(folder, manifest), everywhere=False)
        return RayIndex(folder, manifest, self._replicas, self._partial, self._verify)

    def close(self, *, end_detached: bool = False) -> None:
        """Search no more, here and in what `refresh` gave; the actors that this client made end.

        Detached actors go on for other clients, unless `end_detached`.
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
    """Open an index (its current version) or a version folder, its shards dealt to Ray actors.

    Ray must be connected, and every node must see `path`. Actors are found by the path and `num_actors`: processes that open the same
    index share them, and the first one's `num_cpus`, `num_gpus` and `max_batch` apply. They end with the client that made them; others
    make new ones in their place and wait meanwhile, so ask for `detached` where processes come and go.

    Args:
        path: folder of the index or of a version.
        num_actors: into how many parts the shards are dealt, at most as many as there are shards.
        replicas: actors that serve the same part. One more than one survives the loss of any actor without waiting.
        partial: what a search does when no replica of a part answers. `error`: it waits `timeout_s` for one to come back, then raises
            PartialSearchError. `allow`: it continues at once without these shards and names them in `SearchResult.missing_shards`;
            PartialSearchError only where nothing answered.
        verify: whether this process first compares the checksums of the version's files (reads all of them); sizes always.
        num_cpus: CPUs that each actor asks Ray for; it searches with as many threads, at least one.
        num_gpus: GPUs, or the fraction of one, that each actor asks Ray for; above 0 it searches there.
        max_batch: small requests that wait for an actor are searched together, up to this many queries; 1 joins none.
        timeout_s: how long no replica of a part may give a sign of life, when opening and when searching.
        silence_s: how long a replica may give no sign of life until another one is asked.
        detached: the actors outlive this process, until `close(end_detached=True)`.

    Returns:
        The index, to be searched.

    Raises:
        VersionError: something is missing or damaged.
        RequestError: numbers do not fit.
        PartialSearchError: the actors do not come up.
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
        raise RequestError(f"partial={partial} is none of error, allow")
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
