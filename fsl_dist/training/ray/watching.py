"""The end of a process whose own Ray has broken: one line, and nothing of Ray is left."""

import os
import select
import shutil
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VITAL = ("raylet", "gcs_server")
"""Ray's processes that all others need."""


@contextmanager
def watching_ray(folder: Path) -> Iterator[None]:
    """End this process in one line if a vital process of its Ray ends within the block, killed or out of memory.

    Ray ends such a process too, 10 s to 20 s later, after pages of its own messages, without naming a way out. Work
    is saved as it is after a `kill -9`: in checkpoints and records that the next start reads.

    Args:
        folder: the temporary folder of the Ray that this process started; it is in the command line of all its
            processes. It is removed when the process ends here.
    """
    vital = {number: name for number, name in _processes_of(folder) if name in VITAL}
    if not vital or not hasattr(os, "pidfd_open"):
        yield
        return
    stop = os.eventfd(0)
    watcher = threading.Thread(target=_watch, args=(vital, stop, folder), daemon=True, name="watch-ray")
    watcher.start()
    try:
        yield
    finally:
        os.eventfd_write(stop, 1)
        watcher.join()
        os.close(stop)


def _watch(vital: dict[int, str], stop: int, folder: Path) -> None:
    """Wait until `stop` is written to or one of `vital` ends; in the second case end this process."""
    poll, names = select.poll(), {}
    poll.register(stop, select.POLLIN)
    for number, name in vital.items():
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(number)
            names[handle] = f"{name} (process {number})"
            poll.register(handle, select.POLLIN)
    ready = {handle for handle, _ in poll.poll()}
    ended = [names[handle] for handle in ready - {stop}]
    for handle in names:
        os.close(handle)
    if not ended or stop in ready:
        return
    print(
        f"error: Ray's {ended[0]} on this machine has ended: it was killed, perhaps for want of memory. What was saved is "
        "kept (resume the command)",
        file=sys.stderr,
        flush=True,
    )
    for number, _ in _processes_of(folder):
        with suppress(ProcessLookupError, PermissionError):
            os.kill(number, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def _processes_of(folder: Path) -> list[tuple[int, str]]:
    """(process, name of its program) of those with `folder` in their command line, this process excepted."""
    found, needle = [], str(folder).encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if needle in words and int(entry.name) != os.getpid():
            found.append((int(entry.name), Path(os.fsdecode(words.split(b"\0", 1)[0])).name))
    return found
