"""What runs inside an actor, without Ray: joined requests, versions opened when asked for and closed when idle."""

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

import index.actors.shard_server
from index import versions
from index.actors.shard_server import ServedVersion, ShardServer, deal_shards, what_is_alike
from index.base.errors import VersionError
from index.config import IndexConfig
from index.shard import Request, Shard, Task
from index.writing.build import build

NUM, DIM = 300, 8


def publish(out: Path, seed: int, metric: str = "l2", shards: int = 3) -> ServedVersion:
    rng = np.random.default_rng(seed)
    # Whole numbers: many ties.
    vectors = rng.integers(-2, 3, (NUM, DIM)).astype(np.float32)
    labels = rng.integers(0, 5, NUM)
    folder = build(out, vectors, labels, config=IndexConfig(metric=metric, shards=shards))
    return ServedVersion.of(folder, versions.read_manifest(folder))


def plain(queries: np.ndarray, k: int = 5, start: int = 0, stop: int = NUM) -> Request:
    nothing = np.full(len(queries), -1)
    return Request(queries, nothing, nothing, k, (Task(0, len(queries), start, stop),))


def alone(version: ServedVersion, shards: range, request: Request) -> list[tuple[np.ndarray, np.ndarray]]:
    manifest = versions.read_manifest(version.folder)
    return [Shard.open(version.folder, manifest, shard).answer(request) for shard in shards]


def assert_same(found, expected) -> None:
    assert len(found) == len(expected)
    for (ids, costs), (expected_ids, expected_costs) in zip(found, expected, strict=True):
        assert np.array_equal(ids, expected_ids)
        assert np.array_equal(costs, expected_costs)


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_joined_requests_are_answered_as_alone(tmp_path: Path, metric: str) -> None:
    version = publish(tmp_path, 0, metric)
    rng = np.random.default_rng(1)
    sizes = [1, 1, 3, 1, 6, 1, 2, 1, 1]
    requests = [plain(rng.integers(-2, 3, (n, DIM)).astype(np.float32)) for n in sizes]
    requests[2] = dataclasses.replace(requests[2], skip=None)
    requests[4] = dataclasses.replace(requests[4], skip=np.arange(40, 46))
    requests[3] = plain(requests[3].queries, k=2)  # another k is searched on its own
    masked = Task(0, 1, 0, 60, is_masked=True)
    requests[5] = Request(requests[5].queries, np.array([3]), np.array([4]), 5, (masked,))
    server = ShardServer(1, 2, num_threads=1, max_batch=8)

    async def ask_all():
        await server.answer(version, requests[0])
        return await asyncio.gather(*(server.answer(version, request) for request in requests))

    found = asyncio.run(ask_all())
    for request, answers in zip(requests, found, strict=True):
        assert_same(answers, alone(version, deal_shards(3, 1, 2), request))
    # 1 + (1, 1, 3, 1, 2) at most 8 together, (1, 6), and the two on their own; one was asked before.
    assert (server.num_requests, server.num_searches) == (10, 5)


def test_what_is_searched_as_one_is_one_rectangle_and_one_k() -> None:
    query = np.zeros((1, DIM), np.float32)
    assert what_is_alike(plain(query)) == what_is_alike(plain(np.ones((4, DIM), np.float32)))
    assert what_is_alike(plain(query)) != what_is_alike(plain(query, k=6))
    assert what_is_alike(plain(query)) != what_is_alike(plain(query, stop=NUM - 1))
    two = (Task(0, 1, 0, 10), Task(0, 1, 20, NUM))
    nothing = np.full(1, -1)
    assert what_is_alike(Request(query, nothing, nothing, 5, two)) is None
    assert what_is_alike(Request(query, nothing, nothing, 5, (Task(0, 1, 0, 9, is_masked=True),))) is None


def test_two_versions_are_answered_for_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = publish(tmp_path, 0), publish(tmp_path, 1, shards=1)
    query = plain(np.ones((2, DIM), np.float32))
    server = ShardServer(0, 1, num_threads=1, max_batch=8)

    async def ask(*asked: ServedVersion):
        return await asyncio.gather(*(server.answer(version, query) for version in asked))

    for found, version in zip(asyncio.run(ask(first, second, first)), (first, second, first), strict=True):
        assert_same(found, alone(version, range(version.num_shards), query))
    assert set(server._opened) == {first, second}
    monkeypatch.setattr(index.actors.shard_server, "IDLE_S", 0.0)
    asyncio.run(ask(second))
    assert set(server._opened) == {second}


def test_a_version_that_cannot_be_opened_is_said_and_the_next_request_is_answered(tmp_path: Path) -> None:
    version = publish(tmp_path / "index", 0)
    missing = ServedVersion(tmp_path / "none", 0, 3)
    rebuilt = ServedVersion(version.folder, version.fingerprint + 1, version.num_shards)
    query = plain(np.ones((1, DIM), np.float32))
    server = ShardServer(0, 1, num_threads=1, max_batch=8)

    async def ask_all():
        asked = [server.answer(v, query) for v in (missing, rebuilt, version)]
        return await asyncio.gather(*asked, return_exceptions=True)

    gone, other, found = asyncio.run(ask_all())
    assert isinstance(gone, VersionError)
    assert isinstance(other, VersionError)
    assert "was built again since the index was opened" in str(other)
    assert_same(found, alone(version, range(3), query))


def test_every_shard_is_dealt_once_and_evenly() -> None:
    for num_shards in range(8):
        for parts in range(1, 6):
            dealt = [deal_shards(num_shards, part, parts) for part in range(parts)]
            assert [shard for part in dealt for shard in part] == list(range(num_shards))
            assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
