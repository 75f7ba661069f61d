"""Pieces of a build as Ray tasks: what passes between processes is numbers and files."""

from collections.abc import Iterator, Sequence

from index.base.errors import FslDistError
from index.base.extras import require
from index.writing.job import Spread, Work

# A worker that dies is started again, and does its piece again.
_RESTARTS = 3


class _Worker:
    """One process: it holds the work, so that a network is loaded once and not once a piece."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def do(self, number: int) -> int:
        """Do a piece."""
        self._work(number)
        return number


def on_ray(workers: int, *, gpus: float = 0.0) -> Spread:
    """Do pieces in `workers` Ray actors of one CPU and `gpus` GPUs each, which see the index's folder. Ray must be connected.

    A killed one is started again up to three times; FslDistError after that. What a piece itself raises is raised here.
    """

    require("ray")

    def spread(work: Work, numbers: Sequence[int]) -> Iterator[int]:
        if not numbers:
            return
        import ray

        remote = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=_RESTARTS, max_task_retries=_RESTARTS)(
            _Worker
        )
        shared = ray.put(work)
        actors = [remote.remote(shared) for _ in range(min(workers, len(numbers)))]
        waiting = iter(numbers)
        try:
            running = {actor.do.remote(number): actor for actor, number in zip(actors, waiting, strict=False)}
            while running:
                (done,), _ = ray.wait(list(running), num_returns=1)
                actor = running.pop(done)
                number = ray.get(done)
                following = next(waiting, None)
                if following is not None:
                    running[actor.do.remote(following)] = actor
                yield number
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FslDistError | OSError):
                raise error.cause from error
            raise
        except ray.exceptions.RayActorError as error:
            raise FslDistError(
                f"a worker of the build died {_RESTARTS + 1} times ({type(error).__name__}), perhaps for want of memory "
                "(index.memory_mb); the same command goes on with the pieces that are finished"
            ) from None
        finally:
            for actor in actors:
                ray.kill(actor)

    return spread
