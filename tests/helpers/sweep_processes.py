"""The processes of a sweep that a test started, found below its driver, so that no other sweep's are touched."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path


def descendants(pid: int) -> list[tuple[int, str]]:
    """(process, its title) of everything that `pid` started, however deep."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, ahead = [], [pid]
    while ahead:
        for child in parents.get(ahead.pop(), ()):
            ahead.append(child)
            try:
                found.append((child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")))
            except OSError:
                continue
    return found


def trial_actors(pid: int = 0) -> list[int]:
    """The processes in which trials train of the sweep whose driver is `pid` (0: this process)."""
    return [
        child
        for child, title in descendants(pid or os.getpid())
        if title.startswith("ray::") and "RunTrial" in title
    ]


def signal_actor(signum: int, timeout_s: float = 60) -> int:
    """Send a signal to the process of a trial of this process's sweep, and return which it was."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        for actor in trial_actors():
            try:
                os.kill(actor, signum)
            except ProcessLookupError:
                continue  # it ended since
            return actor
        time.sleep(0.02)
    raise AssertionError(f"no trial has a process within {timeout_s:g} s")


def wait_until(is_so, timeout_s: float = 240, pause_s: float = 0.02) -> None:
    """Return once `is_so()`."""
    until = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < until, f"not so within {timeout_s:g} s"
        time.sleep(pause_s)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Return once `condition()`; the process must live until then."""
    for _ in range(12_000):
        if condition():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it did not come to that within two minutes")
