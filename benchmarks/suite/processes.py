"""A process that works for a benchmark: what to do comes over a pipe, and so does its answer."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection


@contextmanager
def spawned(
    serve: Callable[..., None], *arguments: object, environment: Mapping[str, str] | None = None
) -> Iterator[Connection]:
    """A fresh process that runs `serve(*arguments, end)`; yields the other end, whose closing has `serve` return.

    environment: variables of that process in addition to this one's. It is killed 10 s after the block at the latest.
    """
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(*arguments, theirs))
    before = dict(os.environ)
    os.environ.update(environment or {})
    try:
        process.start()
    finally:
        for name in environment or {}:
            del os.environ[name]
        os.environ.update(before)
    theirs.close()  # so that a process that dies is the end of the pipe here
    try:
        yield ours
    finally:
        ours.close()
        process.join(10)
        if process.is_alive():
            process.kill()
            process.join()


def hear(end: Connection, timeout_s: float) -> object:
    """The process's next answer; EOFError where it died, TimeoutError where it hangs."""
    if not end.poll(timeout_s):
        raise TimeoutError(f"a benchmark's process said nothing for {timeout_s:g} s")
    return end.recv()
