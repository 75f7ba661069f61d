"""Shards as Ray actors: the answers of one process, whatever dies, hangs or is published meanwhile."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fsl_dist.training.ray.session import ray_session
from index import versions
from index.actors.client import RayIndex, open_ray_index
from index.actors.replicas import NAMESPACE
from index.base import files
from index.base.errors import PartialSearchError, RequestError, VersionError
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build
from index.writing.writer import IndexWriter

pytestmark = pytest.mark.integration

NUM, DIM, K = 600, 12, 8


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    # Slots, not cores: most actors here wait.
    with ray_session(8):
        yield


def draw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors, long-tailed labels and ids in no order."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(rng.geometric(0.15, NUM), 15)
    vectors = rng.standard_normal((NUM, DIM)).astype(np.float32)
    return vectors, labels, rng.permutation(2000)[:NUM]


def publish(out: Path, seed: int, metric: str = "l2") -> None:
    vectors, labels, ids = draw(seed)
    build(out, vectors, labels, ids, IndexConfig(metric=metric, shards=3))


@pytest.fixture(scope="module")
def served(_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, RayIndex]]:
    """An index of 3 shards, served by 2 actors and as many again."""
    out = tmp_path_factory.mktemp("index")
    publish(out, 3)
    with open_ray_index(out, num_actors=2, replicas=2, num_cpus=0.5) as remote:
        yield out, remote


@pytest.mark.usefixtures("_ray")
def test_changes_reach_the_actors(tmp_path: Path) -> None:
    publish(tmp_path, 5)
    vectors, labels, ids = draw(5)
    with open_ray_index(tmp_path, num_actors=2, num_cpus=0.5) as remote:
        writer = IndexWriter(tmp_path)
        writer.remove(np.sort(ids)[::3].copy())
        writer.update(np.sort(ids)[1::3].copy(), vectors[: len(ids[1::3])] * 2)
        added = writer.add(vectors[:9] + 1, labels[:9]).ids
        before, changed = remote.search(vectors, K).ids, remote.refresh()
        np.testing.assert_array_equal(before, open_index(tmp_path, changes=False).search(vectors, K).ids)
        local = open_index(tmp_path)
        for filter_name in (None, "same_class", "other_class"):
            kept = np.isin(labels, local._contents.classes)
            asked = {filter_name: labels[kept]} if filter_name else {}
            found, wanted = (opened.search(vectors[kept], K, **asked) for opened in (changed, local))
            np.testing.assert_array_equal(found.ids, wanted.ids)
            np.testing.assert_array_equal(found.distances, wanted.distances)
        assert np.isin(added, changed.search(vectors[:9] + 1, K).ids).all()


def names_of_actors(path: Path) -> list[str]:
    """Names of the actors that serve an index."""
    import ray

    named = ray.util.list_named_actors(all_namespaces=True)
    return sorted(
        a["name"] for a in named if a["namespace"] == NAMESPACE and a["name"].startswith(f"{path},")
    )


def process_of(path: Path, part: int, replica: int, num_parts: int) -> int:
    """Id of an actor's process."""
    import ray

    name = f"{path}, part {part} of {num_parts}, replica {replica}"
    return ray.get(ray.get_actor(name, NAMESPACE).ping.remote(), timeout=60)


def wait_for_return(path: Path, part: int, replica: int, num_parts: int, before: int) -> None:
    """Wait until an actor that was killed is there again, as another process."""
    import ray

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            assert process_of(path, part, replica, num_parts) != before
            return
        except (ray.exceptions.RayActorError, ValueError):
            time.sleep(0.1)
    raise AssertionError("the actor did not come back within 60 s")


class Load:
    """4 client threads that search without pause and compare every answer with one process's."""

    def __init__(self, remote: RayIndex) -> None:
        self.remote = remote
        self.queries = np.random.default_rng(9).standard_normal((64, DIM)).astype(np.float32)
        self.expected: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.failed: list[BaseException] = []
        self.num_wrong = 0
        self.asked_of: dict[int, int] = {}
        self._counting = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(4)]

    def know(self, path: Path) -> None:
        """Learn the right answers of the current version."""
        local = open_index(path)
        found = local.search(self.queries, K)
        self.expected[local.manifest.version] = (found.ids, found.distances)

    @property
    def num_asked(self) -> int:
        return sum(self.asked_of.values())

    def wait_for_queries(self, number: int, version: int | None = None) -> None:
        """Wait until so many more queries were answered, of a version or of any."""
        count = (lambda: self.num_asked) if version is None else (lambda: self.asked_of.get(version, 0))
        start, deadline = count(), time.monotonic() + 60
        while count() < start + number and not self.failed:
            assert time.monotonic() < deadline, "the clients are stuck"
            time.sleep(0.01)

    def _ask(self, client: int) -> None:
        rng = np.random.default_rng(client)
        while not self._stop.is_set():
            start = int(rng.integers(0, 60))
            rows = slice(start, start + int(rng.integers(1, 5)))
            remote = self.remote
            try:
                found = remote.search(self.queries[rows], K)
            except Exception as error:
                self.failed.append(error)
                return
            version = remote.manifest.version
            ids, distances = self.expected[version]
            same = np.array_equal(found.ids, ids[rows]) and np.array_equal(found.distances, distances[rows])
            with self._counting:
                self.num_wrong += not same or found.missing_shards != ()
                self.asked_of[version] = self.asked_of.get(version, 0) + 1

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            self.wait_for_queries(20)
            yield
            self.wait_for_queries(20)
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join()
        assert self.failed == []
        assert self.num_wrong == 0


def test_actors_answer_as_one_process_does(served: tuple[Path, RayIndex]) -> None:
    out, remote = served
    vectors, labels, ids = draw(3)
    local = open_index(out)
    for filter_name in (None, "same_class", "other_class"):
        options = {"query_ids": ids, **({filter_name: labels} if filter_name else {})}
        expected, found = local.search(vectors, 90, **options), remote.search(vectors, 90, **options)
        assert np.array_equal(found.ids, expected.ids)
        assert np.array_equal(found.distances, expected.distances)
        assert (found.num_missing, found.missing_shards) == (expected.num_missing, ())
    mined = remote.neighbours(vectors, labels, ids, 3, 2)
    assert np.array_equal(mined.other_ids, local.neighbours(vectors, labels, ids, 3, 2).other_ids)
    # Large enough to go by the object store, whose arrays cannot be written to.
    many = np.tile(vectors, (4, 1))
    assert np.array_equal(remote.search(many, 3).ids, local.search(many, 3).ids)


def test_a_killed_replica_is_not_noticed_and_comes_back(served: tuple[Path, RayIndex]) -> None:
    out, remote = served
    load = Load(remote)
    load.know(out)
    with load.running():
        for part in (1, 2):
            victim = process_of(out, part, 1, 2)
            os.kill(victim, signal.SIGKILL)
            load.wait_for_queries(50)
            wait_for_return(out, part, 1, 2, victim)
    # It has opened its shards again by itself: alone it answers rightly.
    for part in (1, 2):
        os.kill(process_of(out, part, 2, 2), signal.SIGKILL)
    assert np.array_equal(remote.search(load.queries, K).ids, load.expected[1][0])


def test_publishing_and_rolling_back_under_load_mixes_nothing(served: tuple[Path, RayIndex]) -> None:
    out, remote = served
    first = remote.manifest.version
    assert remote.refresh() is remote
    load = Load(remote)
    load.know(out)
    with load.running():
        publish(out, 4)
        load.know(out)
        load.wait_for_queries(20, first)  # nobody switches unasked
        load.remote = remote.refresh()
        assert load.remote.manifest.version == first + 1
        load.wait_for_queries(40, first + 1)
        # Rolled back: `current` names the older version again.
        files.write_atomic(out / versions.CURRENT, f"{versions.version_name(first)}\n".encode())
        load.remote = load.remote.refresh()
        load.wait_for_queries(40, first)
    assert load.asked_of[first + 1] >= 40
    assert not np.array_equal(load.expected[first][0], load.expected[first + 1][0])


def test_processes_share_the_actors(served: tuple[Path, RayIndex]) -> None:
    import ray

    out, remote = served
    queries = np.ones((2, DIM), np.float32)
    before = names_of_actors(out)
    assert len(before) == 4

    @ray.remote(num_cpus=0)
    def search_elsewhere() -> np.ndarray:
        with open_ray_index(out, num_actors=2, replicas=2, num_cpus=0.5) as other:
            return other.search(queries, K).ids

    found = ray.get(search_elsewhere.remote(), timeout=120)
    # The other one has closed; actors that it did not create keep running.
    assert np.array_equal(found, remote.search(queries, K).ids)
    assert names_of_actors(out) == before


@pytest.mark.usefixtures("_ray")
def test_the_only_replica_is_waited_for(tmp_path: Path) -> None:
    import ray

    publish(tmp_path, 5)
    local = open_index(tmp_path)
    queries = np.random.default_rng(2).standard_normal((4, DIM)).astype(np.float32)
    expected = local.search(queries, K)

    @ray.remote(num_cpus=0)
    class Opener:
        def open(self) -> int:
            self.remote = open_ray_index(tmp_path, num_actors=2, num_cpus=0.5)
            return os.getpid()

    opener = Opener.remote()
    opener_process = ray.get(opener.open.remote(), timeout=120)
    with (
        open_ray_index(tmp_path, num_actors=2, timeout_s=60) as patient,
        open_ray_index(tmp_path, num_actors=2, timeout_s=4) as brief,
        open_ray_index(tmp_path, num_actors=2, silence_s=2, partial="allow") as hasty,
    ):
        os.kill(process_of(tmp_path, 1, 1, 2), signal.SIGKILL)
        assert np.array_equal(patient.search(queries, K).ids, expected.ids)

        # A process that hangs keeps its connections: only silence tells.
        hanging = process_of(tmp_path, 1, 1, 2)
        os.kill(hanging, signal.SIGSTOP)
        try:
            found = hasty.search(queries, K)
            assert found.missing_shards == (0,)
            # All ids in order, without those of the first 200 positions, which the first shard holds.
            everything = local.search(queries, NUM).ids
            there = everything[~np.isin(everything, local.ids[:200])].reshape(len(queries), -1)
            assert np.array_equal(found.ids, there[:, :K])
            with pytest.raises(
                PartialSearchError, match=r"serving shard-00000\.npy of .* did not answer for 4 s"
            ):
                brief.search(queries, K)
        finally:
            os.kill(hanging, signal.SIGCONT)
        assert np.array_equal(patient.search(queries, K).ids, expected.ids)

        # The actors ended with their creator; the next user creates new ones.
        os.kill(opener_process, signal.SIGKILL)
        assert np.array_equal(patient.search(queries, K).ids, expected.ids)
    with pytest.raises(RequestError, match="is closed; open it again"):
        patient.search(queries, K)


@pytest.mark.usefixtures("_ray")
def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    publish(tmp_path, 3)
    with pytest.raises(RequestError, match="num_actors=4 must be between 1 and the 3 shards"):
        open_ray_index(tmp_path, num_actors=4)
    for settings, message in (
        ({"replicas": 0}, "replicas=0 must be at least 1"),
        ({"max_batch": 0}, "max_batch=0 must be at least 1"),
        ({"num_cpus": -1}, "num_cpus=-1 must be at least 0"),
        ({"timeout_s": 0}, "timeout_s=0 must be above 0"),
        ({"silence_s": float("nan")}, "silence_s=nan must be above 0"),
        ({"partial": "maybe"}, "partial=maybe must be error or allow"),
    ):
        with pytest.raises(RequestError, match=message):
            open_ray_index(tmp_path, num_actors=1, **settings)
    with pytest.raises(
        PartialSearchError, match=r"no actor for shard-0.* was ready within 2 s.* need 12, Ray has 8"
    ):
        open_ray_index(tmp_path, num_actors=3, num_cpus=4, timeout_s=2)
    deadline = time.monotonic() + 20
    while names_of_actors(tmp_path):
        assert time.monotonic() < deadline, "actors were left behind"
        time.sleep(0.1)
    with pytest.raises(VersionError, match="contains no published index"):
        open_ray_index(tmp_path / "none", num_actors=1)


@pytest.mark.slow
def test_a_steady_load_survives_kills_and_versions() -> None:
    program = Path(__file__).parents[2] / "benchmarks" / "bench_index_survival.py"
    command = [sys.executable, str(program), "--for-s", "8"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr[-3000:]
    for event in json.loads(ran.stdout.splitlines()[-1])["events"]:
        assert (event["failed"], event["wrong"]) == (0, 0), event
        assert event["queries"] > 0
        # The only replica's return is what is waited for; with two there is nothing to wait for.
        assert event["longest_s"] < (60 if event["replicas"] == 1 else 15), event
