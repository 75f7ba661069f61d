"""Processes of a Ray that outlive a killed command: the next start ends them, and no one else's."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from fsl_dist.training.ray.orphans import end_orphans

pytestmark = [pytest.mark.integration, pytest.mark.slow]

PROGRAM = """
import sys
from fsl_dist.training.ray.session import ray_session
with ray_session(1):
    print("started", file=sys.__stdout__, flush=True)  # Ray's prints go to stderr
    sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


def agents(process: subprocess.Popen[str]) -> set[int]:
    """Processes of Ray below `process`."""
    found, before = {process.pid}, set[int]()
    while found != before:
        before = set(found)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) in found:
                    found.add(int(stat.parent.name))
    return found - {process.pid}


def is_alive(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


@pytest.mark.timeout(200)
def test_what_outlives_a_killed_command_is_ended_by_the_next_start(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(f"/tmp/fo{os.getpid()}")  # short, for Ray's sockets
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    killed, other = start(folder), start(folder)
    stopped = set[int]()
    try:
        left, kept = agents(killed), agents(other)
        assert len(left) >= 2
        # Stopped processes do not notice that the command has gone, as those that hang do not.
        for pid in left:
            os.kill(pid, signal.SIGSTOP)
        stopped = left
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        time.sleep(1)
        left = {pid for pid in left if is_alive(pid)}  # Linux ends some with their parent
        assert left
        ended = set(end_orphans())
        assert ended <= left
        until = time.monotonic() + 20
        while survivors := {pid for pid in left if is_alive(pid)}:
            assert time.monotonic() < until, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in survivors]
            time.sleep(0.1)
        assert all(is_alive(pid) for pid in kept)
        assert end_orphans() == []
        third = start(folder)
        third.communicate(timeout=60)
        assert other.poll() is None
    finally:
        for process in (killed, other):
            process.kill()
            process.communicate()
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
