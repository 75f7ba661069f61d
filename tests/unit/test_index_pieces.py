"""Work in pieces: who does it, what is known of finished pieces, and what a try that was stopped is worth."""

import logging
import math
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from index.base.errors import FslDistError, RequestError, StaleOwnerError
from index.base.files import Owner
from index.base.object_cache import working_folder
from index.base.pieces import WorkFolder, do_here, fingerprint_of
from index.base.processes import on_processes

# Work must be importable where it is done, hence functions of the standard library and of the package.


@pytest.mark.parametrize("processes", [0, 1, 2, 5])
def test_every_piece_is_done_once(processes):
    found = dict(on_processes(processes)(math.factorial, list(range(30))))
    assert found == {n: math.factorial(n) for n in range(30)} == dict(do_here(math.factorial, range(30)))
    assert dict(on_processes(processes)(math.factorial, [])) == {}


def test_what_work_raises_is_raised_here(tmp_path):
    with pytest.raises(RequestError, match="must name a bucket and a folder in it") as raised:
        list(on_processes(2)(working_folder, ["s3://bucket"] * 4))
    assert "\n" not in str(raised.value)
    with pytest.raises(OSError, match="No such file"):
        list(on_processes(2)(os.listdir, [str(tmp_path / "no")] * 4))
    with pytest.raises(ZeroDivisionError) as raised:
        list(on_processes(2)(operator.methodcaller("__mod__", 0), [1, 2]))
    assert "in serve" in raised.value.__notes__[0]  # where it happened


@pytest.mark.parametrize(
    ("work", "piece", "text"),
    [
        (os._exit, 3, "a worker process ended with exit code 3; run the same again to resume"),
        (signal.raise_signal, signal.SIGKILL, "a worker process was killed, perhaps for lack of memory"),
        (signal.raise_signal, signal.SIGTERM, "a worker process ended by signal 15; run the same again"),
    ],
)
def test_a_worker_that_ends_by_itself_is_one_line(work, piece, text):
    with pytest.raises(FslDistError, match=text) as raised:
        list(on_processes(2)(work, [piece] * 3))
    assert "\n" not in str(raised.value)


def children(pid):
    """Process ids whose parent is `pid`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.integration
def test_workers_die_with_their_parent(how):
    # A script without a guard: workers do not run it again.
    program = (
        "import time\nfrom index.base.processes import on_processes\nprint('started', flush=True)\n"
        "list(on_processes(2)(time.sleep, [60] * 2))"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline() == "started\n"
    deadline = time.monotonic() + 200
    while len(workers := children(parent.pid)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    parent.send_signal(how)
    out, _ = parent.communicate(timeout=200)
    assert out == ""
    while any(map(is_alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Write:
    """Writes a piece: its number, as often as it says."""

    def __init__(self, work, *, until=100):
        self.work, self.until, self.done = work, until, []

    def __call__(self, number):
        if len(self.done) == self.until:
            raise KeyboardInterrupt
        self.work.path_of(f"{number}.txt").write_text(str(number) * number)
        self.work.finish(f"{number}.txt", {"length": number})
        self.done.append(number)


PIECES = {f"{number}.txt": number for number in (1, 2, 3, 4)}


@pytest.fixture
def stopped(tmp_path):
    """A folder in which a try was stopped after three of four pieces."""
    work = WorkFolder(tmp_path / "work")
    work.folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        work.do_missing("writing", Write(work, until=3), PIECES)
    return work


def test_only_missing_pieces_are_done(stopped, caplog):
    caplog.set_level(logging.INFO)
    stopped.recover()
    write, seen = Write(stopped), []
    num_there = stopped.do_missing(
        "writing",
        write,
        PIECES,
        progress=lambda *now: seen.append(now),
        size_of=lambda number: 10 * number,
    )
    assert (num_there, write.done, seen) == (3, [4], [("writing", 100, 100)])
    assert "resumed: 3 of 4 pieces of stage 'writing' were there" in caplog.text
    assert stopped.facts_of("4.txt")["length"] == 4
    assert stopped.facts_of("5.txt") is None


def cut_file(work):
    work.path_of("2.txt").write_text("2")


def remove_file(work):
    work.path_of("2.txt").unlink()


def cut_note(work):
    note = work.folder / "finished/2.txt.json"
    note.write_bytes(note.read_bytes()[:-3])


def change_note(work):
    note = work.folder / "finished/2.txt.json"
    changed = note.read_text().replace(": 2}", ": 7}")
    assert changed != note.read_text()
    note.write_text(changed)


@pytest.mark.parametrize("damage", [cut_file, remove_file, cut_note, change_note])
def test_what_was_damaged_meanwhile_is_rebuilt(stopped, damage, caplog):
    damage(stopped)
    (stopped.folder / ".4.txt.abc.tmp").write_text("half")
    stopped.recover()
    assert "2.txt of an earlier try is damaged and will be rebuilt" in caplog.text
    assert not stopped.has("2.txt")
    write = Write(stopped)
    assert stopped.do_missing("writing", write, PIECES) == 2
    assert write.done == [2, 4]
    assert all(map(stopped.is_sound, PIECES))
    assert sorted(os.listdir(stopped.folder)) == ["1.txt", "2.txt", "3.txt", "4.txt", "finished"]


def test_a_folder_that_another_process_took_over_gets_no_note(tmp_path):
    work = WorkFolder(tmp_path, Owner.claim(tmp_path))
    Write(work)(1)
    Owner.claim(tmp_path)
    with pytest.raises(StaleOwnerError, match="holds claim 1 and stops writing"):
        Write(work)(2)
    assert work.list_finished() == ["1.txt"]


def test_the_order_of_a_plan_does_not_matter():
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})
