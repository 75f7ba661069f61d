"""Builds of an index killed for real, taken over, run out of disk; readers while versions are published."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from commands import GREY_16_PX

from index import versions
from index.base import files
from index.base.errors import RequestError
from index.config import IndexConfig
from index.following import FollowingIndex
from index.search import open_index
from index.writing.build import build
from index.writing.writer import IndexWriter

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()"]
TRAINING = [
    *GREY_16_PX,
    "backbone.name=conv4",
    "backbone.width=8",
    "training.patience=0",
    "training.epochs=1",
    "method.kind=pcn",
    "method.clusters=2",
    "evaluation.delta_tau=[0]",
    # Pieces are 32 batches: two of them.
    "evaluation.batch_size=2",
    "episode.n_way=5",
    "episode.k_shot=3",
    "episode.n_query=2",
    "episode.per_step=1",
    "episode.per_epoch=4",
]


def run(*arguments: object, **options: object) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line."""
    command = [*COMMAND, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout, done.stderr


def contents(out: Path) -> dict[str, object]:
    """Every file of the current version by its bytes; the manifest but for its time."""
    version = versions.find_version(out)
    files: dict[str, object] = {path.name: path.read_bytes() for path in sorted(version.iterdir())}
    files["manifest.json"] = json.loads((version / "manifest.json").read_text())
    files["manifest.json"] |= {"created": "", "checksum": ""}
    return files


def write_files(folder: Path, num: int = 60_000, dim: int = 32) -> list[str]:
    """Arguments of a build of 30 shards, each forced to the disk."""
    rng = np.random.default_rng(4)
    np.save(folder / "X.npy", rng.standard_normal((num, dim)).astype(np.float32))
    np.save(folder / "Y.npy", rng.integers(0, 50, num))
    return ["--vectors", str(folder / "X.npy"), "--labels", str(folder / "Y.npy"), "shards=30"]


def kill_at_random(command: list[str], num_kills: int, seconds: float, look: Callable[[], None]) -> None:
    """Start `command` and kill it at a random moment until `num_kills` were hit before they ended; `look` after each.

    `seconds` is what an undisturbed run took; where the machine has become faster since, the window shrinks.
    """
    draw, killed = random.Random(0), 0
    for _ in range(4 * num_kills):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        process.kill()
        was_hit = process.wait() == -signal.SIGKILL
        killed += was_hit
        seconds *= 1.0 if was_hit else 0.9
        look()
        if killed == num_kills:
            return
    raise AssertionError(
        f"only {killed} of {4 * num_kills} builds were still at work when they were to be killed"
    )


def check_killed_builds(folder: Path, arguments: list[str], num_kills: int) -> None:
    """Builds killed at random moments end with the files of one that was not."""
    started = time.monotonic()
    assert run("index", "build", folder / "undisturbed", *arguments)[0] == 0
    seconds = time.monotonic() - started
    wanted, out = contents(folder / "undisturbed"), folder / "out"
    num_resumed = 0

    def look() -> None:
        nonlocal num_resumed
        num_resumed += bool(list(out.glob("staging/*/finished/*")))
        if (out / "current").exists():  # at every moment an index is whole or not there
            open_index(out)
            assert contents(out) == wanted
            out.rename(folder / f"finished-{time.monotonic_ns()}")

    kill_at_random([*COMMAND, "index", "build", str(out), *arguments], num_kills, seconds, look)
    code, _, errors = run("index", "build", out, *arguments)
    assert code == 0, errors
    assert contents(out) == wanted
    assert num_resumed, "no build was killed after it had finished a piece"
    assert files.list_folder(out / "staging") == []


def kill_once_finished(command: list[str], out: Path, num_shards: int) -> None:
    """Start a build and kill it as soon as it has finished so many shards."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(out.glob("staging/*/finished/shard-*.json"))) < num_shards:
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL


def test_a_build_killed_three_times_ends_with_the_same_files(tmp_path: Path) -> None:
    arguments, out = write_files(tmp_path), tmp_path / "out"
    assert run("index", "build", tmp_path / "undisturbed", *arguments)[0] == 0
    for num_shards in (1, 5, 10):
        kill_once_finished([*COMMAND, "index", "build", str(out), *arguments], out, num_shards)
        assert not (out / "current").exists()
    code, _, errors = run("index", "build", out, *arguments)
    assert code == 0, errors
    assert "resumed: " in errors
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert files.list_folder(out / "staging") == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_build_killed_at_20_moments_ends_with_the_same_files(tmp_path: Path) -> None:
    check_killed_builds(tmp_path, write_files(tmp_path), 20)


@pytest.fixture(scope="module")
def trained(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps on the digits."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert run("train", f"data.dataset={digits}", f"run.dir={folder}", *TRAINING)[0] == 0
    return folder


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_build_of_images_killed_at_20_moments_ends_with_the_same_files(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    started = time.monotonic()
    assert run("index", "build", trained, digits, tmp_path / "undisturbed", "shards=3")[0] == 0
    seconds, out = time.monotonic() - started, tmp_path / "out"
    wanted = contents(tmp_path / "undisturbed")

    def look() -> None:
        if (out / "current").exists():
            assert contents(out) == wanted
            out.rename(tmp_path / f"finished-{time.monotonic_ns()}")

    kill_at_random(
        [*COMMAND, "index", "build", str(trained), str(digits), str(out), "shards=3"], 20, seconds, look
    )
    assert run("index", "build", trained, digits, out, "shards=3")[0] == 0
    assert contents(out) == wanted


def test_images_are_embedded_where_a_killed_build_left_off(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    assert run("index", "build", trained, digits, tmp_path / "undisturbed")[0] == 0
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "index", "build", str(trained), str(digits), str(out)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(out.glob("staging/*/finished/piece-000000.npy.json")):
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.002)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (out / "current").exists()
    code, _, errors = run("index", "build", trained, digits, out)
    assert code == 0, errors
    assert "resumed: " in errors
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert versions.read_manifest(versions.find_version(out)).source.keys() == {"catalogue", "parameters"}


def test_a_run_is_evaluated_against_an_index_here_or_as_actors(
    trained: Path, digits: Path, tmp_path: Path
) -> None:
    from fsl_dist.evaluation.report import evaluate_run
    from fsl_dist.indexing import build_from_run

    out = tmp_path / "out"
    build_from_run(trained, digits, out, IndexConfig(shards=2))
    for protocol in ("knn", "prototypes"):
        wanted = evaluate_run(trained, protocol=protocol).metrics
        assert evaluate_run(trained, protocol=protocol, gallery=open_index(out)).metrics == wanted
    code, printed, errors = run(
        *("evaluate", trained, "--protocol", "prototypes", "--index", out, "--index-actors", 2, "--json")
    )
    assert code == 0, errors
    assert json.loads(printed)["metrics"] == wanted
    IndexWriter(out).remove(np.array([0]))
    with pytest.raises(RequestError, match=r"changed since it was built .build it again from the run"):
        evaluate_run(trained, gallery=open_index(out))
    build(tmp_path / "other", np.eye(8, dtype=np.float32), np.arange(8))
    with pytest.raises(RequestError, match="does not say which catalogue it was made from"):
        evaluate_run(trained, gallery=open_index(tmp_path / "other"))
    code, _, errors = run("evaluate", trained, "--index-actors", 2)
    assert code == 2
    assert "--index-actors needs --index" in errors


def test_workers_of_ray_write_the_same_files_and_may_die(tmp_path: Path) -> None:
    arguments = write_files(tmp_path, num=20_000)
    assert run("index", "build", tmp_path / "alone", *arguments)[0] == 0
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*COMMAND, "index", "build", str(out), *arguments, "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = False
    while process.poll() is None and not killed:
        if list(out.glob("staging/*/finished/shard-*.json")):
            for worker in descendants(process.pid, b"_Worker"):
                os.kill(worker, signal.SIGKILL)
                killed = True
                break
        time.sleep(0.001)
    _, errors = process.communicate(timeout=280)
    assert process.returncode == 0, errors
    assert contents(out) == contents(tmp_path / "alone")
    if not killed:
        pytest.skip("the workers were done before one could be killed; the files are the same")


def descendants(ancestor: int, name: bytes) -> list[int]:
    """Process ids below `ancestor` that have `name` in their command line."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found = []
    for start in parents:
        pid = start
        while pid in parents and pid != ancestor:
            pid = parents[pid]
        try:
            if pid == ancestor and name in (Path("/proc") / str(start) / "cmdline").read_bytes():
                found.append(start)
        except OSError:
            continue
    return found


def test_a_builder_that_was_overtaken_says_so_and_publishes_nothing(tmp_path: Path) -> None:
    arguments, out = write_files(tmp_path), tmp_path / "out"
    first = subprocess.Popen(
        [*COMMAND, "index", "build", str(out), *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not list(out.glob("staging/*/finished/shard-00002.npy.json")):
            assert first.poll() is None, "it ended before it was to be stopped"
            time.sleep(0.001)
        os.kill(first.pid, signal.SIGSTOP)
        assert run("index", "build", out, *arguments)[0] == 0
        before = contents(out)
    finally:
        os.kill(first.pid, signal.SIGCONT)
    _, errors = first.communicate(timeout=120)
    assert first.returncode == 1, errors
    assert errors.strip().startswith("error: ")
    assert "this process holds claim 1 and stops writing" in errors
    assert contents(out) == before
    assert versions.list_versions(out) == [1]


def limit_file_size() -> None:
    """What a full disk is to a process, without one: no file above 100 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_without_room_the_served_version_stays_and_the_build_goes_on_later(tmp_path: Path) -> None:
    arguments, out = write_files(tmp_path), tmp_path / "out"
    np.save(tmp_path / "few.npy", np.eye(3, dtype=np.float32))
    np.save(tmp_path / "labels.npy", np.arange(3))
    few = ["--vectors", tmp_path / "few.npy", "--labels", tmp_path / "labels.npy"]
    assert run("index", "build", out, *few)[0] == 0
    served = contents(out)
    code, _, errors = run("index", "build", out, *arguments, preexec_fn=limit_file_size)
    assert code == 1
    (line,) = errors.strip().splitlines()
    assert "stopped: File too large" in line
    assert line.endswith("the same command resumes with the pieces that are finished")
    assert contents(out) == served
    assert json.loads(run("index", "status", out, "--json")[1])["unfinished"][0]["shards"] == "0 of 30"
    assert run("index", "build", out, *arguments)[0] == 0
    assert versions.current_version(out) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB; skipped where none can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_served_version_as_it_is(tmp_path: Path, small_disk: Path) -> None:
    arguments, out = write_files(tmp_path, num=20_000), small_disk / "out"
    assert run("index", "build", out, *arguments, "keep_versions=1")[0] == 0
    served = contents(out)
    code, _, errors = run("index", "build", out, *arguments, "metric=inner_product", "keep_versions=1")
    assert code == 1
    assert "stopped: No space left on device" in errors.strip().splitlines()[-1]
    assert contents(out) == served
    assert open_index(out).search(np.zeros((1, 32), np.float32), 3).num_missing == 0


PUBLISHER = """
import sys, time
from pathlib import Path
import numpy as np
from index import versions
from index.writing.build import build
from index.changes import roll_back
from index.config import IndexConfig

out, until = Path(sys.argv[1]), time.monotonic() + float(sys.argv[2])
vectors, labels = np.arange(1, 41, dtype=np.float32).repeat(4).reshape(40, 4), np.arange(40) % 3
while time.monotonic() < until:
    for _ in range(2):
        number = max(versions.list_versions(out)) + 1
        build(out, vectors * np.float32(number), labels, config=IndexConfig(metric="inner_product", shards=3, keep_versions=2))
    roll_back(out)
print(number)
"""


@pytest.mark.parametrize("seconds", [4.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_readers_see_whole_versions_while_they_are_published_and_rolled_back(
    tmp_path: Path, seconds: float
) -> None:
    # Version v holds v·x for the same x, so that distances tell which version answered.
    vectors, labels = np.arange(1, 41, dtype=np.float32).repeat(4).reshape(40, 4), np.arange(40) % 3
    build(tmp_path, vectors, labels, config=IndexConfig(metric="inner_product", shards=3))
    following = FollowingIndex(tmp_path)
    query, expected = np.ones((1, 4), np.float32), 4.0 * np.arange(40, 0, -1)
    seen: set[int] = set()
    wrong: list[object] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            try:
                index = following.latest()
                answer = index.search(query, 40)
                number = index.manifest.version
                if not np.array_equal(answer.distances[0], expected * number):
                    wrong.append((number, answer.distances[0][:3]))
                seen.add(number)
            except Exception as error:  # whatever it is, it is a failed query
                wrong.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", PUBLISHER, str(tmp_path), str(seconds)],
            capture_output=True,
            text=True,
            check=False,
        )
        time.sleep(0.5)
    finally:
        is_over.set()
        for reader in readers:
            reader.join()
    assert done.returncode == 0, done.stderr
    assert wrong == []
    assert len(seen) >= 3
    assert following.latest().manifest.version == versions.current_version(tmp_path)
