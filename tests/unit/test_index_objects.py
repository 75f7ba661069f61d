"""Places at s3://, against a real server on loopback: reads, conditional writes, fencing, working folders, refusals."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.pack import PackOptions, append, pack
from fsl_dist.data.resplit import ResplitOptions, resplit
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError
from index import Staging, mirror, objects, open_index, storage
from index.build import build
from index.config import IndexConfig
from index.errors import RequestError, StaleOwnerError, StorageError, VersionError
from index.mirror import bring, place_of, told, working_folder
from index.objects import Bucket, ConflictError
from index.versions import find_version, list_versions
from index.writer import IndexWriter


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Go on as another machine does: with working folders of its own."""
    return lambda name: monkeypatch.setenv("FSL_DIST_CACHE", str(tmp_path / f"cache-{name}"))


def bucket_at(place: str) -> tuple[Bucket, str]:
    found = place_of(working_folder(place))
    assert found is not None
    return found.bucket, found.key


# --- names


def test_an_address_has_one_working_folder_and_is_told_by_its_address(s3: str) -> None:
    folder = working_folder(f"{s3}/runs/first/")
    assert folder == working_folder(Path(f"{s3}/runs/first"))  # a Path drops one slash
    place = place_of(folder / "config.yaml")
    assert place is not None
    assert place.url == f"{s3}/runs/first/config.yaml"
    assert place.endpoint == os.environ["AWS_ENDPOINT_URL"]
    assert (
        told(f"error: '{folder}' is here, and {folder}/x")
        == f"error: '{s3}/runs/first' is here, and {s3}/runs/first/x"
    )


def test_a_path_on_the_disk_is_left_alone(tmp_path: Path) -> None:
    assert working_folder(tmp_path / "runs") == tmp_path / "runs"
    assert place_of(tmp_path) is None
    assert told(f"{tmp_path}/a") == f"{tmp_path}/a"
    bring(tmp_path / "nothing")


@pytest.mark.parametrize("address", ["s3://", "s3://bucket", "s3:///folder", "s3://bucket/a/../b"])
def test_an_address_needs_a_bucket_and_a_folder(address: str) -> None:
    with pytest.raises(RequestError, match="must name a bucket and a folder in it: s3://BUCKET/FOLDER"):
        working_folder(address)


def test_an_address_of_another_kind_is_no_folder() -> None:
    with pytest.raises(RequestError, match="'https://x/y' is no place that this program knows"):
        working_folder("https://x/y")


# --- objects


def test_objects_are_written_read_listed_and_removed(s3: str, tmp_path: Path) -> None:
    bucket, key = bucket_at(s3)
    assert bucket.get(f"{key}/a") is None
    tag = bucket.put(f"{key}/a", b"0123456789")
    assert bucket.get(f"{key}/a") == (b"0123456789", tag)
    assert bucket.read_range(f"{key}/a", 2, 5) == b"234"
    assert bucket.size_of(f"{key}/a") == 10
    assert bucket.size_of(f"{key}/b") is None
    bucket.put(f"{key}/folder/c", b"")
    assert [(e.key, e.size_bytes) for e in bucket.entries(f"{key}/")] == [
        (f"{key}/a", 10),
        (f"{key}/folder/c", 0),
    ]
    assert bucket.names(f"{key}/") == ["a", "folder"]
    assert bucket.fetch(f"{key}/a", tmp_path / "a") == tag
    assert (tmp_path / "a").read_bytes() == b"0123456789"
    bucket.delete([f"{key}/a", f"{key}/folder/c", f"{key}/never"])
    assert bucket.names(f"{key}/") == []


def test_of_many_writers_one_makes_an_object_and_one_replaces_it(s3: str) -> None:
    bucket, key = bucket_at(s3)

    def race(over: Any) -> list[bytes]:
        def write(number: int) -> bytes | None:
            try:
                bucket.put(key, b"%d" % number, over=over)
            except ConflictError:
                return None
            return b"%d" % number

        with ThreadPoolExecutor(8) as pool:
            return [data for data in pool.map(write, range(8)) if data is not None]

    won = race("nothing")
    found = bucket.get(key)
    assert found is not None
    assert won == [found[0]]
    changed = bucket.put(key, b"another", over=found[1])
    with pytest.raises(ConflictError):
        bucket.put(key, b"too late", over=found[1])
    assert bucket.get(key) == (b"another", changed)


def test_a_write_whose_answer_was_lost_is_no_conflict(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import obstore
    from obstore.exceptions import GenericError

    bucket, key = bucket_at(s3)
    put, lost = obstore.put, []

    def lose_first(*arguments: Any, **settings: Any) -> Any:
        answer = put(*arguments, **settings)
        if not lost:
            lost.append(True)
            raise GenericError("Generic S3 error: connection closed before message completed")
        return answer

    monkeypatch.setattr(obstore, "put", lose_first)
    bucket.put(key, b"claimed", over="nothing")
    lost.clear()
    bucket.put(key + "-taken", b"other")
    with pytest.raises(ConflictError):
        bucket.put(key + "-taken", b"mine", over="nothing")


# --- what goes wrong


def fresh_bucket(place: str) -> tuple[Bucket, str]:
    """A bucket as a process that starts has it."""
    found = place_of(working_folder(place))
    assert found is not None
    return Bucket(found.endpoint, found.scheme, found.bucket_name), found.key


def test_an_unreachable_store_is_one_line_after_a_few_seconds(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "_FIRST_S", 0.2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    bucket, key = fresh_bucket(s3)
    with pytest.raises(
        RequestError, match=r"does not answer \(.*\), asked for .* nothing was started"
    ) as error:
        bucket.get(key)
    assert "\n" not in str(error.value)


def test_a_bucket_that_is_not_there_is_refused_by_reads_and_writes(s3: str) -> None:
    for ask in (
        lambda bucket: bucket.get("a"),
        lambda bucket: bucket.names("a/"),
        lambda bucket: bucket.put("a", b"", over="nothing"),
    ):
        bucket, _ = fresh_bucket("s3://no-such-bucket/a")
        with pytest.raises(
            RequestError, match=r"s3://no-such-bucket at http.* does not exist; make the bucket first"
        ):
            ask(bucket)


def test_missing_rights_are_told_without_the_secret(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "denied")
    bucket, key = fresh_bucket(s3)
    with pytest.raises(RequestError, match=r"no rights at s3://.* \(status 403 Access Denied\)") as error:
        bucket.put(key, b"", over="nothing")
    assert "do-not-tell" not in str(error.value)
    assert "denied" not in str(error.value)


def test_a_store_without_conditional_writes_is_refused(
    tmp_path: Path, s3: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = type(s3_server)(tmp_path / "journal.plain")
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", plain.address)
        with pytest.raises(RequestError, match="has no conditional writes"):
            storage.Owner.claim(working_folder(s3))
    finally:
        plain.kill()


def test_a_store_that_goes_away_is_waited_for_and_said_once(
    tmp_path: Path, s3: str, s3_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = type(s3_server)(tmp_path / "journal")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.address)
    bucket, key = fresh_bucket(s3)
    bucket.put(key, b"kept")
    server.kill()
    starter = threading.Timer(1.0, server.start)
    starter.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: bucket.get(key), range(4)))
    finally:
        starter.join()
        server.kill()
    assert [data for data, _ in filter(None, found)] == [b"kept"] * 4
    told_lines = [record.getMessage() for record in caplog.records if record.name == "index.objects"]
    assert len(told_lines) == 2
    assert "does not answer" in told_lines[0]
    assert "answers again" in told_lines[1]
    monkeypatch.setattr(objects, "_PATIENCE_S", 0.2)
    with pytest.raises(StorageError, match="the same command goes on from it"):
        bucket.get(key)


# --- working folders


def test_what_is_published_is_found_from_elsewhere(s3: str, elsewhere: Callable[[str], None]) -> None:
    storage.write_atomic(working_folder(s3) / "a" / "b.txt", b"one")
    elsewhere("b")
    folder = working_folder(s3)
    bring(folder)
    assert (folder / "a" / "b.txt").read_bytes() == b"one"
    storage.write_atomic(folder / "a" / "b.txt", b"two")
    elsewhere("c")
    assert storage.read_text(working_folder(s3) / "a" / "b.txt") == "two"
    storage.remove_folder(working_folder(s3) / "a")
    elsewhere("b")
    bring(folder)
    assert not (folder / "a" / "b.txt").exists()


def test_only_what_was_last_seen_is_replaced(s3: str, elsewhere: Callable[[str], None]) -> None:
    here = working_folder(s3) / "current"
    storage.write_atomic(here, b"1")
    elsewhere("b")
    there = working_folder(s3) / "current"
    with pytest.raises(StaleOwnerError, match="was written by another process"):
        storage.write_atomic(there, b"2")
    assert storage.read_text(there) == "1"
    storage.write_atomic(there, b"2")
    with pytest.raises(StaleOwnerError):
        storage.write_atomic(here, b"3")
    assert here.read_bytes() == b"1"  # what could not be put is not here either
    with pytest.raises(FileExistsError):
        storage.write_new(working_folder(s3) / "current", b"4")


def test_bringing_again_asks_for_no_bytes(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = working_folder(s3)
    storage.write_atomic(folder / "a", b"one")
    (folder / "unfinished").write_bytes(b"")
    fetched: list[str] = []
    monkeypatch.setattr(Bucket, "fetch", lambda self, key, path: fetched.append(key))
    bring(folder)
    assert fetched == []
    assert (folder / "unfinished").exists()
    bring(folder, removes_others=True)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_a_half_published_folder_is_none_and_the_next_one_takes_its_place(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = working_folder(s3) / "versions" / "000001"
    put_file = mirror.put_file

    def die_before_the_manifest(source: Path, target: Path, **how: Any) -> None:
        if source.name == "manifest.json":
            raise KeyboardInterrupt
        put_file(source, target, **how)

    def stage(text: str) -> Path:
        staging = tmp_path / text
        staging.mkdir()
        (staging / "manifest.json").write_text("{}")
        (staging / f"data-{text}").write_text(text)
        return staging

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "put_file", die_before_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            storage.publish_folder(stage("first"), final)
    assert not final.exists()
    storage.publish_folder(stage("second"), final)
    bucket, key = bucket_at(s3)
    assert bucket.names(f"{key}/versions/000001/") == ["data-second", "manifest.json"]
    storage.remove_file(working_folder(s3) / "nothing")
    final.rename(tmp_path / "away")
    with pytest.raises(VersionError, match="exists already"):
        storage.publish_folder(stage("third"), final)


def test_a_later_claim_from_elsewhere_fences_the_earlier_one(
    s3: str, elsewhere: Callable[[str], None]
) -> None:
    first = storage.Owner.claim(working_folder(s3))
    first.check()
    elsewhere("b")
    second = storage.Owner.claim(working_folder(s3))
    assert (first.epoch, second.epoch) == (1, 2)
    second.check()
    with pytest.raises(StaleOwnerError, match="is owned by claim 2"):
        first.check()


# --- data sets


@pytest.fixture
def packed(s3: str, digits_source: Path) -> str:
    pack(digits_source, f"{s3}/digits", PackOptions(shard_size_mb=1, processes=1))
    return f"{s3}/digits"


@pytest.fixture(scope="module")
def digits_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    source, rng = tmp_path_factory.mktemp("source"), np.random.default_rng(0)
    for label in "ab":
        (source / label).mkdir()
        for number in range(12):
            Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(
                source / label / f"{number}.png"
            )
    return source


def test_a_data_set_reads_the_same_as_on_disk(
    packed: str, digits_source: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    pack(digits_source, tmp_path / "disk", PackOptions(shard_size_mb=1, processes=1))
    elsewhere("b")
    on_disk, remote = Catalogue.open(tmp_path / "disk"), Catalogue.open(packed)
    assert remote.fingerprint == on_disk.fingerprint
    ids = np.random.default_rng(1).permutation(24)
    store = ShardStore(remote)
    store.check_files()
    assert store.read(ids) == ShardStore(on_disk).read(ids)
    assert not list(working_folder(packed).rglob("*.tar"))  # shards are read where they are


def test_a_shard_that_is_gone_or_another_is_told(packed: str) -> None:
    bucket, key = bucket_at(packed)
    store = ShardStore(Catalogue.open(packed))
    bucket.put(f"{key}/shards/shard-000000.tar", b"short")
    with pytest.raises(DataError, match="has 5 bytes, the catalogue says"):
        store.check_files()
    bucket.delete([f"{key}/shards/shard-000000.tar"])
    for read in (store.check_files, lambda: store.read(np.arange(3))):
        with pytest.raises(DataError, match=r"shard-000000\.tar' is missing"):
            read()


def test_a_place_that_is_taken_is_refused_and_a_killed_packs_shards_are_taken_over(
    packed: str, s3: str, digits_source: Path, tmp_path: Path
) -> None:
    options = PackOptions(shard_size_mb=1, processes=1)
    with pytest.raises(RequestError, match="is not empty"):
        pack(digits_source, packed, options)
    bucket, key = bucket_at(packed)
    bucket.delete([f"{key}/catalogue/000001.arrow"])
    pack(digits_source, packed, options)
    bucket.delete([f"{key}/catalogue/000001.arrow"])
    with pytest.raises(RequestError, match="is there with other bytes"):
        pack(digits_source, packed, PackOptions(shard_size_mb=1, processes=1, seed=5))
    with pytest.raises(RequestError, match="pack reads images from a disk"):
        pack(f"{s3}/images", tmp_path / "out", options)


def test_versions_are_added_from_anywhere(
    packed: str, digits_source: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    import shutil

    elsewhere("b")
    more = tmp_path / "more"
    shutil.copytree(digits_source, more)
    for path in list(more.rglob("*.png")):
        path.rename(path.with_name(f"more-{path.name}"))
    append(more, packed, PackOptions(processes=1))
    elsewhere("c")
    resplit(packed, ResplitOptions(split="classes", fractions=(0.5, 0.0, 0.5)))
    catalogue = Catalogue.open(packed)
    assert (catalogue.version, catalogue.num_samples) == (3, 48)
    assert len(ShardStore(catalogue).read(np.arange(48))) == 48
    assert Catalogue.open(packed, 1).num_samples == 24


# --- indexes


def test_an_index_is_built_changed_and_searched_from_anywhere(
    s3: str, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(60, 4)).astype(np.float32), np.repeat(np.arange(6), 10)
    config = IndexConfig(shards=3)
    places = working_folder(s3), tmp_path / "disk"
    for place in places:
        build(place, vectors, labels, config=config)
    IndexWriter(places[1]).add(vectors[:2] + 1, labels[:2])
    elsewhere("b")
    IndexWriter(working_folder(s3)).add(vectors[:2] + 1, labels[:2])
    elsewhere("c")
    remote, on_disk = open_index(working_folder(s3), verify=True), open_index(places[1])
    found, expected = remote.search(vectors, 5), on_disk.search(vectors, 5)
    assert np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.distances, expected.distances)


def test_old_versions_are_removed_at_the_store_and_numbers_go_on(
    s3: str, elsewhere: Callable[[str], None]
) -> None:
    vectors, labels = np.eye(4, dtype=np.float32), np.arange(4)
    for number in range(4):
        elsewhere(str(number % 2))
        build(working_folder(s3), vectors + number, labels, config=IndexConfig(keep_versions=2))
    assert list_versions(working_folder(s3)) == [3, 4]
    assert find_version(working_folder(s3)).name == "000004"


def test_two_builders_of_one_version_do_not_mix(s3: str, elsewhere: Callable[[str], None]) -> None:
    vectors, labels = np.eye(4, dtype=np.float32), np.arange(4)
    build(working_folder(s3), vectors, labels)
    slow = Staging.create(working_folder(s3), "slow", storage.Owner.claim(working_folder(s3)))
    slow.write_shard(0, vectors)
    elsewhere("b")
    owner = storage.Owner.claim(working_folder(s3))
    fast = Staging.create(working_folder(s3), "fast", owner)
    fast.write_shard(0, vectors * 2)
    fast.publish(labels, labels, IndexConfig(), {})
    with pytest.raises(StaleOwnerError, match="is owned by claim"):
        slow.publish(labels, labels, IndexConfig(), {})
    assert open_index(working_folder(s3)).vectors(0, 1).tolist() == [[2, 0, 0, 0]]
