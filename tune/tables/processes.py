"""Run a function in a separate process: it shares no memory and no thread settings with others, and its output goes
to a log."""

import logging
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

from index.base.errors import FslDistError

_Result = TypeVar("_Result")

_SPAWN = multiprocessing.get_context("spawn")
_starting = threading.Lock()


def run_alone(work: Callable[..., _Result], *arguments: object, log: Path) -> _Result:
    """Return `work(*arguments)`, computed in a new process, with one thread unless OMP_NUM_THREADS sets another number.

    `work`, which must be importable by name, its arguments and its result are pickled. The output of the process is
    appended to the file `log`. An FslDistError is raised here unchanged. The process ends with this one in every case.

    Raises FslDistError if `work` fails in another way, or if its process is killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    ours, theirs = _SPAWN.Pipe(duplex=False)
    process = _SPAWN.Process(target=_answer, args=(theirs, str(log), work, arguments))
    with _starting:
        # NumPy, FAISS and torch read it when they are loaded, before any code of this project runs there.
        is_set = "OMP_NUM_THREADS" in os.environ
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        try:
            process.start()
        finally:
            if not is_set:
                del os.environ["OMP_NUM_THREADS"]
    theirs.close()
    try:
        error, result = ours.recv()
    except EOFError:
        error, result = None, None
    process.join()
    ours.close()
    if error is not None:
        raise error
    if process.exitcode != 0:
        raise FslDistError(f"its process ended with exit code {process.exitcode} (log: {log})")
    return result


def _answer(
    connection: Connection, log: str, work: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with open(log, "a", encoding="utf-8") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    logging.basicConfig(format="%(message)s")
    for package in ("cluster", "tune", "fsl_dist", "index"):
        logging.getLogger(package).setLevel(logging.INFO)
    answer: tuple[FslDistError | None, object]
    try:
        answer = (None, work(*arguments))
    except FslDistError as error:
        answer = (_make_sendable(error), None)
    except Exception as error:
        traceback.print_exc()
        answer = (FslDistError(f"{type(error).__name__}: {error} (log: {log})"), None)
    sys.stderr.flush()
    connection.send(answer)


def _make_sendable(error: FslDistError) -> FslDistError:
    """Convert to the nearest class whose only argument is the text: others cannot be pickled."""
    kind = next(kind for kind in type(error).__mro__ if "__init__" not in vars(kind))
    return kind(str(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
