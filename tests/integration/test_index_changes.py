"""Changes of an index by processes that are killed: what was acknowledged is there; the commands from end to end."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()"]

WRITER = """
import sys
from pathlib import Path
import numpy as np
from index.writing.writer import IndexWriter

writer = IndexWriter(Path(sys.argv[1]))
rng = np.random.default_rng(int(sys.argv[2]))
print("ready", flush=True)
while True:
    change = writer.add(rng.standard_normal((3, 8), dtype=np.float32), np.array([1, 2, 3]))
    print("added", *change.ids, flush=True)
    if rng.integers(2):
        print("removing", change.ids[1], flush=True)
        writer.remove(change.ids[1:2])
        print("removed", change.ids[1], flush=True)
"""


def run(*arguments: object) -> dict[str, object]:
    """What a command prints with --json."""
    command = [*COMMAND, *map(str, arguments), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def write_until_killed(out: Path, seed: int, seconds: float) -> tuple[set[int], set[int], set[int]]:
    """Ids that a writer acknowledged as added, as removed, and those it was removing, before it was killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(out), str(seed)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    process.kill()
    lines = process.stdout.read().splitlines()
    process.stdout.close()
    process.wait()
    told: dict[str, set[int]] = {"added": set(), "removing": set(), "removed": set()}
    for what, *ids in map(str.split, lines):
        told[what].update(map(int, ids))
    return told["added"], told["removed"], told["removing"]


def test_what_was_acknowledged_before_a_kill_is_there_and_merges_killed_at_random_lose_nothing(
    tmp_path,
) -> None:
    rng, draw = np.random.default_rng(0), random.Random(0)
    vectors = rng.standard_normal((20_000, 8), dtype=np.float32)
    build(tmp_path / "index", vectors, rng.integers(0, 5, 20_000), config=IndexConfig(shards=30))
    out = tmp_path / "index"
    added: set[int] = set()
    removed: set[int] = set()
    removing: set[int] = set()
    num_killed = 0
    for attempt in range(6):
        more, fewer, begun = write_until_killed(out, attempt, draw.uniform(0.02, 0.3))
        assert not more & added  # no id is ever given twice
        added, removed, removing = added | more, removed | fewer, removing | begun
        merging = subprocess.Popen(
            [*COMMAND, "index", "merge", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wanted = draw.randint(1, 25)
        while attempt < 5 and merging.poll() is None:
            if len(list(out.glob("staging/*/finished/*.json"))) >= wanted:
                merging.kill()
            time.sleep(0.001)
        num_killed += merging.wait() == -9
        opened = open_index(out)
        there = np.array(sorted(added - removing))
        assert (opened.labels_of(there) > 0).all()
        gone = opened._contents.find(np.array(sorted(removed)))
        assert (gone[0] < 0).all()
        assert (gone[1] < 0).all()
    assert num_killed >= 2
    assert len(added) > 20
    opened = open_index(out)
    assert opened.changes.number == 0
    # A kill may come after a change was written and before it was said, so a few more may be there; fewer only if it was removing one.
    more_than_said = opened.num_vectors - (20_000 + len(added - removed))
    assert -len(removing - removed) <= more_than_said <= 3 * 6
    np.testing.assert_array_equal(opened.search(vectors[:50], 1).ids[:, 0], np.arange(50))


def test_the_verbs_change_an_index_and_merge_it(tmp_path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 4)).astype(np.float32)
    for name, array in {
        "X": vectors[:30],
        "Y": np.arange(30) % 3,
        "more": vectors[30:],
        "more-Y": np.full(10, 7),
        "I": np.array([0, 31]),
        "two": vectors[:2] + 5,
        "Q": vectors[:2] + 5,
    }.items():
        np.save(tmp_path / f"{name}.npy", array)
    out, file = tmp_path / "index", lambda name: tmp_path / f"{name}.npy"
    run("index", "build", "--vectors", file("X"), "--labels", file("Y"), out)
    said = run("index", "add", out, "--vectors", file("more"), "--labels", file("more-Y"))
    assert {k: said[k] for k in ("version", "change", "num_vectors", "first_id", "last_id")} == {
        "version": 1,
        "change": 1,
        "num_vectors": 10,
        "first_id": 30,
        "last_id": 39,
    }
    run("index", "update", out, "--ids", file("I"), "--vectors", file("two"))
    np.save(tmp_path / "R.npy", np.array([5, 39]))
    run("index", "remove", out, "--ids", file("R"))
    status = run("index", "status", out)
    assert status["changes"] == {"batches": 3, "added": 10, "removed": 2}
    assert (status["num_vectors"], status["num_classes"]) == (38, 4)

    def search() -> list[list[int]]:
        run("index", "search", out, "--queries", file("Q"), "--k", 1, "--out", tmp_path / "found.npz")
        with np.load(tmp_path / "found.npz") as found:
            return found["ids"].tolist()

    assert search() == [[0], [31]]
    assert run("index", "merge", out, "shards=2") == {
        "index": str(out),
        "version": 2,
        "num_vectors": 38,
        "merged": True,
    }
    assert search() == [[0], [31]]
    status = run("index", "status", out, "--verify")
    assert (status["num_vectors"], status["shards"], status["changes"]["batches"]) == (38, 2, 0)
    assert run("index", "merge", out)["merged"] is False
