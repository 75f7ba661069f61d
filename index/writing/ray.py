"""Pieces of a build done by Ray actors: numbers pass between processes, vectors only as files."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from index.base.errors import FslDistError
from index.base.extras import require
from index.base.pieces import Spread

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")

# A worker that dies is started again and repeats its piece.
_RESTARTS = 3


class _Worker:
    """One process. It keeps the work object, so that a network is loaded once and not once per piece."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        self._work = work

    def do(self, position: int, piece: Any) -> tuple[int, Any]:
        """Do a piece."""
        return position, self._work(piece)


def on_ray(workers: int, *, gpus: float = 0.0) -> Spread:
    """Run pieces in `workers` Ray actors of one CPU and `gpus` GPUs each, which see the index's folder.
    Ray must be connected.

    A killed actor is restarted up to three times; then FslDistError is raised. An exception in a piece is raised here.
    """

    require("ray")

    def spread(work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]) -> Iterator[tuple[int, _Result]]:
        if not pieces:
            return
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(
            _Worker
        )
        shared = ray.put(work)
        actors = [remote.remote(shared) for _ in range(min(workers, len(pieces)))]
        waiting = iter(enumerate(pieces))
        try:
            running = {actor.do.remote(*piece): actor for actor, piece in zip(actors, waiting, strict=False)}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                actor = running.pop(done)
                finished = ray.get(done)
                following = next(waiting, None)
                if following is not None:
                    running[actor.do.remote(*following)] = actor
                yield finished
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FslDistError | OSError):
                raise error.cause from error
            raise
        except ray.exceptions.RayActorError as error:
            raise FslDistError(
                f"a worker of the build died {_RESTARTS + 1} times ({type(error).__name__}), perhaps for lack of "
                "memory (index.memory_mb); the same command resumes with the pieces that are finished"
            ) from None
        finally:
            for actor in actors:
                ray.kill(actor)

    return spread
