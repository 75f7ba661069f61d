"""Working folders of addresses at s3://, against a real server on loopback: names, publishing, fencing, indexes."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index import Staging, open_index
from index.base import files, object_cache
from index.base.errors import RequestError, StaleOwnerError, VersionError
from index.base.object_cache import bring, place_of, with_addresses, working_folder
from index.base.object_store import Bucket
from index.config import IndexConfig
from index.versions import find_version, list_versions
from index.writing.build import build
from index.writing.writer import IndexWriter


def bucket_at(place: str) -> tuple[Bucket, str]:
    found = place_of(working_folder(place))
    assert found is not None
    return found.bucket, found.key


def test_an_address_has_one_working_folder_and_is_told_by_its_address(s3: str) -> None:
    folder = working_folder(f"{s3}/runs/first/")
    assert folder == working_folder(Path(f"{s3}/runs/first"))  # a Path drops one slash
    place = place_of(folder / "config.yaml")
    assert place is not None
    assert place.url == f"{s3}/runs/first/config.yaml"
    assert place.endpoint == os.environ["AWS_ENDPOINT_URL"]
    assert (
        with_addresses(f"error: '{folder}' is here, and {folder}/x")
        == f"error: '{s3}/runs/first' is here, and {s3}/runs/first/x"
    )


def test_a_path_on_the_disk_is_left_alone(tmp_path: Path) -> None:
    assert working_folder(tmp_path / "runs") == tmp_path / "runs"
    assert place_of(tmp_path) is None
    assert with_addresses(f"{tmp_path}/a") == f"{tmp_path}/a"
    bring(tmp_path / "nothing")


@pytest.mark.parametrize("address", ["s3://", "s3://bucket", "s3:///folder", "s3://bucket/a/../b"])
def test_an_address_needs_a_bucket_and_a_folder(address: str) -> None:
    with pytest.raises(RequestError, match="must name a bucket and a folder in it: s3://BUCKET/FOLDER"):
        working_folder(address)


def test_an_address_of_another_kind_is_no_folder() -> None:
    with pytest.raises(RequestError, match="'https://x/y' is not a supported location"):
        working_folder("https://x/y")


def test_what_is_published_is_found_from_elsewhere(s3: str, elsewhere: Callable[[str], None]) -> None:
    files.write_atomic(working_folder(s3) / "a" / "b.txt", b"one")
    elsewhere("b")
    folder = working_folder(s3)
    bring(folder)
    assert (folder / "a" / "b.txt").read_bytes() == b"one"
    files.write_atomic(folder / "a" / "b.txt", b"two")
    elsewhere("c")
    assert files.read_text(working_folder(s3) / "a" / "b.txt") == "two"
    files.remove_folder(working_folder(s3) / "a")
    elsewhere("b")
    bring(folder)
    assert not (folder / "a" / "b.txt").exists()


def test_only_what_was_last_seen_is_replaced(s3: str, elsewhere: Callable[[str], None]) -> None:
    here = working_folder(s3) / "current"
    files.write_atomic(here, b"1")
    elsewhere("b")
    there = working_folder(s3) / "current"
    with pytest.raises(StaleOwnerError, match="was written by another process"):
        files.write_atomic(there, b"2")
    assert files.read_text(there) == "1"
    files.write_atomic(there, b"2")
    with pytest.raises(StaleOwnerError):
        files.write_atomic(here, b"3")
    assert here.read_bytes() == b"1"  # what could not be put is not here either
    with pytest.raises(FileExistsError):
        files.write_new(working_folder(s3) / "current", b"4")


def test_bringing_again_asks_for_no_bytes(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = working_folder(s3)
    files.write_atomic(folder / "a", b"one")
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
    put_file = object_cache.put_file

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
        patch.setattr(object_cache, "put_file", die_before_the_manifest)
        with pytest.raises(KeyboardInterrupt):
            files.publish_folder(stage("first"), final)
    assert not final.exists()
    files.publish_folder(stage("second"), final)
    bucket, key = bucket_at(s3)
    assert bucket.names(f"{key}/versions/000001/") == ["data-second", "manifest.json"]
    files.remove_file(working_folder(s3) / "nothing")
    final.rename(tmp_path / "away")
    with pytest.raises(VersionError, match="already exists"):
        files.publish_folder(stage("third"), final)


def test_a_later_claim_from_elsewhere_fences_the_earlier_one(
    s3: str, elsewhere: Callable[[str], None]
) -> None:
    first = files.Owner.claim(working_folder(s3))
    first.check()
    elsewhere("b")
    second = files.Owner.claim(working_folder(s3))
    assert (first.epoch, second.epoch) == (1, 2)
    second.check()
    with pytest.raises(StaleOwnerError, match="is owned by claim 2"):
        first.check()


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


def test_python_takes_addresses_where_it_takes_paths(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = Path(f"{s3}/index")
    build(address, np.eye(4, dtype=np.float32), np.arange(4))
    IndexWriter(address).remove(np.array([0]))
    assert open_index(address).num_vectors == 3
    files.Owner.claim(Path(f"{s3}/run")).check()
    assert not (tmp_path / "s3:").exists()


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
    slow = Staging.create(working_folder(s3), "slow", files.Owner.claim(working_folder(s3)))
    slow.write_shard(0, vectors)
    elsewhere("b")
    owner = files.Owner.claim(working_folder(s3))
    fast = Staging.create(working_folder(s3), "fast", owner)
    fast.write_shard(0, vectors * 2)
    fast.publish(labels, labels, IndexConfig(), {})
    with pytest.raises(StaleOwnerError, match="is owned by claim"):
        slow.publish(labels, labels, IndexConfig(), {})
    assert open_index(working_folder(s3)).vectors(0, 1).tolist() == [[2, 0, 0, 0]]
