"""A request to stop, passed on from a driver to processes of a Ray cluster."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from index.base.stopping import StopRequest

_LOOK_EVERY_S = 0.2


class _Bell:
    """An actor by which a driver requests workers to stop; each worker waits for it in a thread."""

    def __init__(self) -> None:
        import asyncio

        self._asked = asyncio.Event()
        self._has_stopped = False

    async def ask(self) -> None:
        """Request the workers to stop."""
        self._asked.set()

    async def wait(self) -> None:
        """Return after a stop request."""
        await self._asked.wait()

    async def note_stopped(self) -> None:
        """Note that they have stopped, with a checkpoint."""
        self._has_stopped = True

    async def has_stopped(self) -> bool:
        """Whether they have."""
        return self._has_stopped


@contextmanager
def passing_on(stop: StopRequest) -> Iterator[Any]:
    """Yield a bell that rings when `stop` is requested in the block: pass it to the workers, which `hear` it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # On this process's own node: a bell on another one would be lost with it, and the run outlives that.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    bell = ray.remote(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)(_Bell).remote()
    is_over = threading.Event()

    def ring() -> None:
        while not is_over.is_set():
            if stop.wait(_LOOK_EVERY_S):
                bell.ask.remote()
                return

    thread = threading.Thread(target=ring, name="bell", daemon=True)
    thread.start()
    try:
        yield bell
    finally:
        is_over.set()
        thread.join()
        ray.kill(bell)


def hear(bell: Any) -> StopRequest:
    """Return a stop request that is set when the bell rings."""
    stop = StopRequest()

    def wait() -> None:
        import ray

        with suppress(ray.exceptions.RayError):  # the work has ended without
            ray.get(bell.wait.remote())
            stop.ask()

    threading.Thread(target=wait, name="bell", daemon=True).start()
    return stop
