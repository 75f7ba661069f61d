"""A function in a process of its own: what it returns, raises and prints, and that it ends with whoever started it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index.base.errors import FslDistError, RequestError
from tune.tables.processes import run_alone
from tune.tables.tables import read_table

pytestmark = pytest.mark.integration  # each starts a process that imports torch


def test_a_result_comes_back_from_another_process(tmp_path: Path) -> None:
    assert run_alone(os.getpid, log=tmp_path / "log") != os.getpid()
    assert run_alone(sorted, [2, 1], log=tmp_path / "log") == [1, 2]


def test_it_has_one_thread_unless_the_environment_says_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert run_alone(os.getenv, "OMP_NUM_THREADS", log=tmp_path / "log") == "1"
    assert "OMP_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert run_alone(os.getenv, "OMP_NUM_THREADS", log=tmp_path / "log") == "3"


def test_what_it_prints_is_appended_to_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "runs" / "log"
    run_alone(print, "one", log=log)
    run_alone(os.write, 2, b"two\n", log=log)
    assert log.read_text() == "one\ntwo\n"
    assert capfd.readouterr().out == ""


def test_errors_are_those_of_the_function(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(RequestError, match="there is no table 'pcn-17'"):
        run_alone(read_table, "pcn-17", log=log)
    with pytest.raises(FslDistError, match=r"ValueError: invalid literal .*\(log: "):
        run_alone(int, "x", log=log)
    assert "Traceback" in log.read_text()
    with pytest.raises(FslDistError, match="ended with exit code -9"):
        run_alone(signal.raise_signal, signal.SIGKILL, log=log)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="children are found in /proc")
def test_it_ends_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tune.tables.processes import run_alone;"
        f"run_alone(time.sleep, 600, log=Path({str(tmp_path / 'log')!r}))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    children: list[str] = []
    while len(children) < 2:  # the process, and the one that multiprocessing cleans up with
        assert parent.poll() is None
        time.sleep(0.1)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while left := [child for child in children if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
