"""Pieces of work by several processes of this machine, which load no more than the work itself needs."""

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from index.base.errors import FslDistError
from index.base.pieces import Spread, do_here

_Piece = TypeVar("_Piece")
_Result = TypeVar("_Result")


def on_processes(processes: int) -> Spread:
    """Run pieces in `processes` processes (0: one per core), at most one per piece; 1 means this process itself.

    Work, pieces and results are pickled, so the work must be importable by name. An exception in a piece is raised here
    and stops the others. The processes end with this one in every case. Raises FslDistError if a process dies.
    """

    def spread(work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]) -> Iterator[tuple[int, _Result]]:
        num = min(processes or _count_cores(), len(pieces))
        return do_here(work, pieces) if num <= 1 else _spread_over(num, work, pieces)

    return spread


def _spread_over(
    processes: int, work: Callable[[_Piece], _Result], pieces: Sequence[_Piece]
) -> Iterator[tuple[int, _Result]]:
    workers: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for _ in range(processes):
            connection, process = _start_worker()
            workers[connection] = process
            _send(connection, work, process)
        waiting = iter(enumerate(pieces))
        running: dict[Connection, int] = {}
        for connection, (position, piece) in zip(workers, waiting, strict=False):
            _send(connection, piece, workers[connection])
            running[connection] = position
        while running:
            for ready in wait(list(running)):
                assert isinstance(ready, Connection)
                result = _receive(ready, workers[ready])
                position = running.pop(ready)
                following = next(waiting, None)
                if following is not None:
                    _send(ready, following[1], workers[ready])
                    running[ready] = following[0]
                yield position, result
    finally:
        for process in workers.values():
            process.kill()
        for connection, process in workers.items():
            process.communicate()
            connection.close()


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> tuple[Connection, subprocess.Popen[bytes]]:
    # Not multiprocessing's own processes: those import the user's script again, which then needs a guard against
    # packing once more; and they outlive a parent that is killed.
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", f"from index.base.processes import serve; serve({theirs.fileno()})"],
        stdin=subprocess.PIPE,  # its end: this process has ended
        pass_fds=[theirs.fileno()],
        process_group=0,  # Ctrl-C is for this process, which ends the workers
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    theirs.close()
    return ours, process


def _send(connection: Connection, value: object, process: subprocess.Popen[bytes]) -> None:
    try:
        connection.send(value)
    except OSError:
        raise _describe_end(process) from None


def _receive(connection: Connection, process: subprocess.Popen[bytes]) -> Any:
    try:
        is_done, value = connection.recv()
    except (EOFError, OSError):
        raise _describe_end(process) from None
    if not is_done:
        raise value
    return value


def _describe_end(process: subprocess.Popen[bytes]) -> FslDistError:
    try:
        code = process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code == -signal.SIGKILL:
        how = "was killed, perhaps for lack of memory (processes=1 needs the least)"
    else:
        how = f"ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return FslDistError(
        f"a worker process {how}; run the same again to resume with the pieces that are finished"
    )


def serve(descriptor: int) -> None:
    """Be a worker: receive work, then pieces, from the connection at `descriptor` until it closes."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    connection = Connection(descriptor)
    try:
        work = connection.recv()
        while True:
            piece = connection.recv()
            try:
                answer = (True, work(piece))
            except Exception as error:
                answer = (False, _make_sendable(error))
            connection.send(answer)
    except (EOFError, OSError):  # the parent has ended
        return


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing is ever written to it: the call returns when the other end is closed
    os._exit(1)


def _make_sendable(error: Exception) -> Exception:
    if not isinstance(error, FslDistError | OSError):
        error.add_note("".join(traceback.format_exception(error)))  # pickling drops the traceback
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301  (its own bytes)
    except Exception:
        return FslDistError(f"{type(error).__name__}: {error}")
    return error
