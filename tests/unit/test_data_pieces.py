"""Pieces of work by several processes, and the folder that a killed try leaves them in."""

import json
import logging
import math
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest import pack_pieces
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.pieces import run_pieces
from fsl_dist.errors import FslDistError, RequestError

# Work must be importable where it is done, hence functions of the standard library and of the package.


@pytest.mark.parametrize("processes", [0, 1, 2, 5])
def test_every_piece_is_done_once(processes):
    found = dict(run_pieces(math.factorial, list(range(30)), processes))
    assert found == {n: math.factorial(n) for n in range(30)}
    assert dict(run_pieces(math.factorial, [], processes)) == {}


def test_what_work_raises_is_raised_here(tmp_path):
    with pytest.raises(RequestError, match="no such folder; make one with") as raised:
        list(run_pieces(Catalogue.open, [str(tmp_path / "no")] * 4, 2))
    assert "\n" not in str(raised.value)
    with pytest.raises(OSError, match="No such file"):
        list(run_pieces(os.listdir, [str(tmp_path / "no")] * 4, 2))
    with pytest.raises(ZeroDivisionError) as raised:
        list(run_pieces(operator.methodcaller("__mod__", 0), [1, 2], 2))
    assert "in serve" in raised.value.__notes__[0]  # where it happened


@pytest.mark.parametrize(
    ("work", "piece", "text"),
    [
        (os._exit, 3, "a worker process ended with exit code 3; the same command goes on with"),
        (signal.raise_signal, signal.SIGKILL, "a worker process was killed, perhaps for want of memory"),
        (signal.raise_signal, signal.SIGTERM, "a worker process ended by signal 15; the same command"),
    ],
)
def test_a_worker_that_ends_by_itself_is_one_line(work, piece, text):
    with pytest.raises(FslDistError, match=text) as raised:
        list(run_pieces(work, [piece] * 3, 2))
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
def test_workers_die_with_their_parent(how):
    # A script without a guard: workers do not run it again.
    program = (
        "import time\nfrom fsl_dist.data.ingest.pieces import run_pieces\nprint('started', flush=True)\n"
        "list(run_pieces(time.sleep, [60] * 2, 2))"
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


def test_workers_load_no_heavy_library():
    program = (
        "import sys, fsl_dist.data.ingest.member_images, fsl_dist.data.ingest.shard_writer, fsl_dist.data.ingest.source_images\n"
        "print([m for m in ('torch', 'pyarrow', 'scipy', 'ray', 'faiss') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def write_images(root, count, size=(40, 30)):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        path = root / "ab"[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def all_bytes(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class Stopped(Exception):
    """Stands for whatever ends a pack from outside."""


def stop_after(stage, least):
    def progress(now, done, total):
        if now == stage and done >= least:
            raise Stopped

    return progress


@pytest.fixture
def source(tmp_path, monkeypatch):
    """21 images, one of them bad, in 6 chunks; noise of 1 MB and more makes 2 shards."""
    monkeypatch.setattr(pack_pieces, "CHUNK_SIZE", 4)
    root = write_images(tmp_path / "src", 20, (200, 180))
    (root / "a" / "bad.png").write_text("no image")
    return root


OPTIONS = {"shard_size_mb": 1, "processes": 1}


def test_a_stopped_pack_goes_on_with_the_pieces_it_finished(source, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    options = PackOptions(**OPTIONS, resize_shorter=150)
    pack(source, tmp_path / "expected", options)
    for stage, least in (("checking", 8), ("checking", 12), ("packing", 1)):
        with pytest.raises(Stopped):
            pack(source, tmp_path / "out", options, stop_after(stage, least))
        assert not (tmp_path / "out").exists()
    assert "going on: 2 of 6 chunks of images are checked" in caplog.text
    assert "going on: 3 of 6 chunks of images are checked" in caplog.text
    seen = []
    report = pack(source, tmp_path / "out", options, lambda *args: seen.append(args))
    assert "going on: 6 of 6 chunks of images are checked" in caplog.text
    assert "going on: 1 of 2 shards are written" in caplog.text
    assert report.num_reused == 7
    assert seen == [("packing", 20, 20)]
    assert [bad.path for bad in report.bad_samples] == ["a/bad.png"]
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["expected", "out", "src"]


def changed_file(source, options):
    path = source / "a/000.png"
    path.write_bytes(path.read_bytes())  # the same bytes, at another time
    return options


def changed_label(source, options):
    rows = [f"{p.relative_to(source)},{p.parent.name}" for p in sorted(source.rglob("*.png"))]
    (source / "t.csv").write_text("\n".join(["file,class", *rows, ""]).replace("bad.png,a", "bad.png,b"))
    return PackOptions(**OPTIONS, columns=TableColumns(table=str(source / "t.csv")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_file, "another list of source files, or change in one"),
        (changed_label, "another list of source files, or change in one"),
        (lambda source, options: PackOptions(**OPTIONS, seed=1), "another --seed"),
        (
            lambda source, options: PackOptions(**OPTIONS, order="class", resize_shorter=9),
            "another --order, another --resize-shorter",
        ),
        (lambda source, options: PackOptions(**OPTIONS, dedupe="phash"), "another --dedupe"),
    ],
)
def test_pieces_of_another_plan_are_thrown_away(source, tmp_path, caplog, change, reason):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    options = change(source, PackOptions(**OPTIONS))
    report = pack(source, tmp_path / "out", options)
    assert report.num_reused == 0
    assert f"an earlier try is thrown away: it had {reason}\n" in caplog.text
    pack(source, tmp_path / "expected", options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_another_split_or_number_of_processes_takes_the_pieces_over(source, tmp_path):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    options = PackOptions(shard_size_mb=1, processes=2, split="base-novel", num_base=1)
    assert pack(source, tmp_path / "out", options).num_reused == 7
    pack(source, tmp_path / "expected", options)
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_damaged_pieces_are_made_again(source, tmp_path):
    options = PackOptions(**OPTIONS, resize_shorter=150)
    pack(source, tmp_path / "expected", options)
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", options, stop_after("packing", 1))
    (work,) = (tmp_path / ".out.partial").iterdir()
    for damage in (b"", b"[]", b"{}\n[]", (work / "checked/000001.json").read_bytes()[:-9]):
        (work / "checked/000001.json").write_bytes(damage)
        with pytest.raises(Stopped):
            pack(source, tmp_path / "out", options, stop_after("checking", 1))
    kept = work / "checked/000002.kept"
    kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    (work / "checked/000003.kept").unlink()
    shard = work / "out/shards/shard-000000.tar"
    shard.write_bytes(shard.read_bytes()[:-1])
    (work / "unfinished/shard-000001.tar.x").write_text("half")
    assert pack(source, tmp_path / "out", options).num_reused == 4
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_an_append_goes_on_and_keeps_to_its_version(source, tmp_path, caplog):
    first = write_images(tmp_path / "first", 6)
    for path in first.rglob("*.png"):
        path.rename(path.with_name("old" + path.name))
    for name in ("out", "expected"):
        pack(first, tmp_path / name, PackOptions(resize_shorter=150))
    append(source, tmp_path / "expected", PackOptions(**OPTIONS))
    with pytest.raises(Stopped):
        append(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("packing", 1))
    with pytest.raises(RequestError, match="leave --split"):  # what is refused costs no pieces
        append(source, tmp_path / "out", PackOptions(seed=3))
    assert append(source, tmp_path / "out", PackOptions(**OPTIONS)).num_reused == 7
    assert all_bytes(tmp_path / "out") == all_bytes(tmp_path / "expected")


def test_an_old_kind_of_partial_folder_is_thrown_away(source, tmp_path, caplog):
    (tmp_path / ".out.partial/shards").mkdir(parents=True)
    (tmp_path / ".out.partial/x").write_text("x")
    pack(source, tmp_path / "out", PackOptions(**OPTIONS))
    assert "'" + str(tmp_path / ".out.partial/shards") + "' holds no plan" in caplog.text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "src"]


def test_a_plan_names_what_pieces_follow_from(source, tmp_path):
    with pytest.raises(Stopped):
        pack(source, tmp_path / "out", PackOptions(**OPTIONS), stop_after("checking", 1))
    (plan,) = (tmp_path / ".out.partial").glob("*/plan.json")
    assert json.loads(plan.read_bytes()).keys() == {
        "list of source files, or change in one",
        "--order",
        "--shard-size-mb",
        "--resize-shorter",
        "--resize",
        "--dedupe",
        "--num-classes",
        "--seed",
        "version of the data set",
        "version of Pillow",
        "format",
    }
