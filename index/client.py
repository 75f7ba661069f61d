"""Opening an index: in this process, or as Ray actors that each serve some of its shards."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from index import versions
from index.errors import FslDistError, PartialSearchError, RequestError
from index.search import LocalIndex, ShardedIndex, open_index
from index.shard import Request, Shard
from index.versions import Manifest

if TYPE_CHECKING:
    from ray.actor import ActorHandle

__all__ = ["LocalIndex", "RayIndex", "open_index", "open_ray_index"]


class _ShardServer:
    """What runs in an actor: opens its shards from disk once and answers for them."""

    def __init__(self, folder: Path, manifest: Manifest, shards: range) -> None:
        self._shards = [Shard.open(folder, manifest, r) for r in shards]

    def count_vectors(self) -> int:
        """Vectors served here; answering means that the actor is ready."""
        return sum(shard.stop - shard.start for shard in self._shards)

    def answer(self, request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each shard's answer, as `Shard.answer`."""
        return [shard.answer(request) for shard in self._shards]


class RayIndex(ShardedIndex):
    """An index whose shards are served by Ray actors; the same answers as LocalIndex. Close it when done."""

    def __init__(
        self, path: Path, manifest: Manifest, actors: "list[ActorHandle]", shards_of_actor: list[range]
    ) -> None:
        super().__init__(path, manifest)
        self._actors = actors
        self._shards_of_actor = shards_of_actor

    def __enter__(self) -> "RayIndex":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the actors; searching afterwards is an error."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _answers(self, request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
        import ray

        if not self._actors:
            raise RequestError(f"the index {self.path} is closed; open it again")
        # put() once: every actor on a machine maps the same bytes.
        shared = ray.put(request)
        waiting = [actor.answer.remote(shared) for actor in self._actors]
        answers: list[tuple[np.ndarray, np.ndarray]] = []
        for actor, reference in enumerate(waiting):
            answers += self._result_of(actor, reference)
        return answers

    def _result_of(self, actor: int, reference: Any) -> Any:
        return _wait_for(reference, self.path, self._shards_of_actor[actor], None)


def open_ray_index(
    path: Path, *, num_actors: int, num_cpus: float = 1.0, timeout_s: float = 120.0
) -> RayIndex:
    """Open an index (its current version) or a version folder with its shards dealt to `num_actors` Ray actors.

    Every node must see `path`. Each actor asks Ray for `num_cpus` CPUs; if they are not there within
    `timeout_s` seconds, that is a PartialSearchError. Ray must be connected. Raises VersionError for what is
    missing or damaged, RequestError for more actors than shards.
    """
    import ray

    folder = versions.find_version(Path(path)).absolute()
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest)
    num_shards = len(manifest.shard_starts)
    if not 1 <= num_actors <= num_shards:
        raise RequestError(
            f"num_actors={num_actors} must be between 1 and the {num_shards} shards of {folder} "
            "(build it with more: index.shards)"
        )
    deals = [
        range(num_shards * a // num_actors, num_shards * (a + 1) // num_actors) for a in range(num_actors)
    ]
    serve = ray.remote(num_cpus=num_cpus)(_ShardServer)
    actors = [serve.remote(folder, manifest, shards) for shards in deals]
    try:
        for actor, shards in zip(actors, deals, strict=True):
            _wait_for(actor.count_vectors.remote(), folder, shards, timeout_s)
    except BaseException:
        for actor in actors:
            ray.kill(actor)
        raise
    return RayIndex(folder, manifest, actors, deals)


def _wait_for(reference: Any, path: Path, shards: range, timeout_s: float | None) -> Any:
    """An actor's result; its death or silence is a PartialSearchError that names its shards."""
    import ray

    names = ", ".join(versions.shard_name(r) for r in shards)
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FslDistError):
            raise cause from None
        raise PartialSearchError(f"{names} of {path} failed: {type(cause).__name__}: {cause}") from error
    except ray.exceptions.GetTimeoutError:
        raise PartialSearchError(
            f"no actor for {names} of {path} was ready within {timeout_s:g} s; free some CPUs or ask for fewer actors"
        ) from None
    except ray.exceptions.RayActorError as error:
        raise PartialSearchError(
            f"the actor serving {names} of {path} did not answer ({type(error).__name__}); open the index again"
        ) from None
