"""Building and publishing: class-sorted rows, atomic versions, damage that is named, fencing."""

import json
from pathlib import Path

import numpy as np
import pytest

from index import versions
from index.base import checksums, files
from index.base.errors import ConfigError, RequestError, StaleOwnerError, VersionError
from index.base.files import Owner
from index.changes import roll_back
from index.config import IndexConfig
from index.following import FollowingIndex
from index.search import open_index
from index.writing.build import Staging, build


def example(num: int = 40, dim: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    ids = rng.permutation(num * 3)[:num].astype(np.int64)
    return rng.standard_normal((num, dim)).astype(np.float32), rng.integers(0, 5, num), ids


def test_rows_are_sorted_and_described(tmp_path: Path) -> None:
    vectors, labels, ids = example()
    path = build(tmp_path, vectors, labels, ids, IndexConfig(shards=3), {"checkpoint": "abc"})
    index = open_index(tmp_path, verify=True)
    assert path == index.path == tmp_path / "versions" / "000001"
    order = sorted(range(40), key=lambda row: (labels[row], ids[row]))
    assert index.ids.tolist() == ids[order].tolist()
    assert index.labels.tolist() == labels[order].tolist()
    shards = [versions.read_shard(path, index.manifest, r) for r in range(3)]
    assert np.array_equal(np.concatenate(shards), vectors[order])
    np.testing.assert_allclose(index.manifest.mean, vectors.astype(np.float64).mean(axis=0), rtol=1e-12)
    assert index.manifest.source == {"checkpoint": "abc"}
    assert index.manifest.shard_starts == (0, 13, 26)
    assert versions.read_manifest(path) == index.manifest
    assert files.list_folder(tmp_path / "staging") == []
    assert np.array_equal(index.labels_of(np.array([[ids[3], -1]])), [[labels[3], -1]])
    with pytest.raises(RequestError, match="id 999 is not in the index"):
        index.labels_of(np.array([999]))


def test_ids_that_are_a_range_take_no_file(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    build(tmp_path, vectors, np.sort(labels), np.arange(100, 140), IndexConfig(metric="inner_product"))
    index = open_index(tmp_path)
    assert index.manifest.ids_offset == 100
    assert index.manifest.mean is None
    assert not (index.path / "ids.npy").exists()
    assert index.labels_of(np.array([100, 139, -1])).tolist() == [labels.min(), labels.max(), -1]
    for unknown in (99, 140):
        with pytest.raises(RequestError, match="is not in the index"):
            index.labels_of(np.array([unknown]))


def test_new_versions_become_current_and_old_ones_are_pruned(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    config = IndexConfig(keep_versions=2)
    for factor in (1, 2, 3):
        build(tmp_path, vectors * np.float32(factor), labels, config=config)
    assert versions.list_versions(tmp_path) == [2, 3]
    assert open_index(tmp_path).manifest.version == 3
    assert open_index(tmp_path / "versions" / "000002").manifest.version == 2


@pytest.mark.parametrize("step", ["publish_folder", "write_current"])
def test_killed_while_publishing_the_old_version_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    vectors, labels, _ = example()
    build(tmp_path, vectors, labels)

    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    write = files.write_atomic
    with monkeypatch.context() as patch:
        if step == "publish_folder":
            patch.setattr(files, "publish_folder", kill)
        else:
            patch.setattr(files, "write_atomic", lambda p, b: kill() if p.name == "current" else write(p, b))
        with pytest.raises(Killed):
            build(tmp_path, vectors, labels)
    assert open_index(tmp_path, verify=True).manifest.version == 1
    build(tmp_path, vectors, labels)
    assert open_index(tmp_path).manifest.version == (2 if step == "publish_folder" else 3)


def test_workers_write_shards_side_by_side(tmp_path: Path) -> None:
    vectors, labels, ids = example()
    order = np.lexsort((ids, labels))
    vectors, labels, ids = vectors[order], labels[order], ids[order]
    Staging.create(tmp_path, "step-7")
    for shard, (start, stop) in reversed(list(enumerate([(0, 10), (10, 10), (10, 40)]))):
        Staging.open(tmp_path, "step-7").write_shard(shard, vectors[start:stop])
    Staging.open(tmp_path, "step-7").publish(labels, ids, IndexConfig(), {})
    index = open_index(tmp_path, verify=True)
    assert index.manifest.shard_starts == (0, 10, 10)
    assert index.search(vectors, 1).ids[:, 0].tolist() == ids.tolist()
    with pytest.raises(VersionError, match="was published, removed or never created"):
        Staging.open(tmp_path, "step-7")


def test_publishing_refuses_what_does_not_fit(tmp_path: Path) -> None:
    vectors, labels, ids = example()
    staging = Staging.create(tmp_path, "a")
    with pytest.raises(RequestError, match=r"no shard of .* contains a vector"):
        staging.publish(labels, ids, IndexConfig(), {})
    staging.write_shard(1, vectors)
    with pytest.raises(VersionError, match="shard 0 was not written"):
        staging.publish(labels, ids, IndexConfig(), {})
    staging.write_shard(0, vectors[:0, :2])
    with pytest.raises(RequestError, match=r"different dims: \[2, 3\]"):
        staging.publish(labels, ids, IndexConfig(), {})
    staging.write_shard(0, vectors[:0])
    with pytest.raises(RequestError, match=r"labels has shape \[39\]; it must be \[40\]"):
        staging.publish(labels[1:], ids, IndexConfig(), {})
    with pytest.raises(RequestError, match="rows must be sorted by label, then by id"):
        staging.publish(labels, ids, IndexConfig(), {})
    with pytest.raises(RequestError, match=r"staging token '\.\./x'"):
        Staging.create(tmp_path, "../x")
    assert not (tmp_path / "current").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, y, i: (v[0], y, i), r"vectors has shape \[3\]; it must be \[n, dim\]"),
        (
            lambda v, y, i: (v.astype(np.float64), y, i),
            r"vectors has dtype float64; .* \.astype\('float32'\)",
        ),
        (lambda v, y, i: (np.where(v == v[3, 1], np.nan, v), y, i), "vectors row 3 contains a NaN"),
        (
            lambda v, y, i: (np.where(v == v[3, 1], np.inf, v), y, i),
            "vectors row 3 contains a NaN or infinite",
        ),
        (
            lambda v, y, i: (np.where(v == v[3, 1], np.float32(1e19), v), y, i),
            "vectors row 3 contains a norm near",
        ),
        (lambda v, y, i: (v, y[1:], i), r"labels has shape \[39\]; it must be \[40\]"),
        (lambda v, y, i: (v, y.astype(np.int32), i), r"labels has dtype int32; .* \.astype\('int64'\)"),
        (lambda v, y, i: (v, y - 1, i), "labels and ids must be at least 0"),
        (lambda v, y, i: (v, y, np.where(i == i[0], i[1], i)), "id .* is given to more than one vector"),
        (lambda v, y, i: (v, y, i.astype(np.float32)), "ids has dtype float32"),
        (lambda v, y, i: (v[:0], y[:0], i[:0]), "vectors has no rows"),
    ],
)
def test_input_that_does_not_fit_leaves_nothing_behind(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        build(tmp_path / "index", *change(*example()))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(("key", "value"), [("shards", 0), ("keep_versions", 0)])
def test_settings_have_ranges(key: str, value: int) -> None:
    with pytest.raises(ConfigError, match=rf"index\.{key}=0 must be at least 1"):
        IndexConfig(**{key: value})


@pytest.mark.parametrize("name", ["shard-00001.npy", "labels.npy", "ids.npy"])
def test_damage_is_found_and_named(tmp_path: Path, name: str) -> None:
    path = build(tmp_path, *example(), IndexConfig(shards=2)) / name
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    open_index(tmp_path, verify=False)  # the size is right; only the checksum tells
    with pytest.raises(VersionError, match=f"{name} is damaged: its checksum"):
        open_index(tmp_path)
    path.write_bytes(content[:-1])
    with pytest.raises(VersionError, match=f"{name} is damaged: {len(content) - 1} bytes"):
        open_index(tmp_path)
    path.unlink()
    with pytest.raises(VersionError, match=f"{name} is missing"):
        open_index(tmp_path)


def test_damaged_manifests_are_refused(tmp_path: Path) -> None:
    path = build(tmp_path, *example()) / "manifest.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"format": 2}, "format=2; this program reads format 1"),
        ({"dim": True}, "dim=true must be a whole number"),
        ({"extra": 1}, "unknown key extra"),
        ({"shard_starts": [1]}, "not ascending"),
        ({"files": {"../x": {"size_bytes": 1, "crc32": 1}}}, "files lists"),
    ]:
        path.write_bytes(checksums.encode_json(good | change, "manifest.json"))
        with pytest.raises(VersionError, match=message):
            open_index(tmp_path)
    path.write_text("{")
    with pytest.raises(VersionError, match=r"manifest\.json is damaged"):
        open_index(tmp_path)


def test_what_is_no_index_is_said(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="contains no published index"):
        open_index(tmp_path)
    (tmp_path / "current").write_text("../elsewhere")
    with pytest.raises(VersionError, match="is not the name of a version"):
        open_index(tmp_path)
    (tmp_path / "current").write_text("000009")
    with pytest.raises(VersionError, match="names version 000009, which is not there"):
        open_index(tmp_path)


def test_a_stale_owner_neither_writes_nor_publishes(tmp_path: Path) -> None:
    vectors, labels, ids = example()
    old = Owner.claim(tmp_path)
    staging = Staging.create(tmp_path, "a", old)
    staging.write_shard(0, vectors)
    unfenced = Staging.open(tmp_path, "a")
    Owner.claim(tmp_path)
    order = np.lexsort((ids, labels))
    for attempt in (
        lambda: staging.write_shard(0, vectors),
        lambda: staging.publish(labels[order], ids[order], IndexConfig(), {}),
        lambda: unfenced.publish(labels[order], ids[order], IndexConfig(), {}, owner=old),
        lambda: build(tmp_path, vectors, labels, owner=old),
        lambda: Staging.create(tmp_path, "b", old),
    ):
        with pytest.raises(StaleOwnerError):
            attempt()
    assert versions.list_versions(tmp_path) == []


def test_rolling_back_names_another_version_and_removes_none(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    for factor in (1, 2, 3):
        build(tmp_path, vectors * np.float32(factor), labels)
    assert roll_back(tmp_path).version == 2
    assert open_index(tmp_path).manifest.version == 2
    assert roll_back(tmp_path, 3).version == 3
    assert roll_back(tmp_path, 1).version == 1
    assert versions.list_versions(tmp_path) == [1, 2, 3]
    with pytest.raises(RequestError, match=r"has no version before the current 1 \(it has 1, 2, 3\)"):
        roll_back(tmp_path)
    with pytest.raises(RequestError, match="has no version 9; it has 1, 2, 3"):
        roll_back(tmp_path, 9)
    with pytest.raises(RequestError, match="is one version; name the folder of its index"):
        roll_back(tmp_path / "versions" / "000001")
    with pytest.raises(VersionError, match="contains no published index"):
        roll_back(tmp_path / "none")
    shard = tmp_path / "versions" / "000002" / "shard-00000.npy"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\0")
    with pytest.raises(VersionError, match="is damaged: its checksum"):
        roll_back(tmp_path, 2)
    assert open_index(tmp_path).manifest.version == 1
    # The next version is the highest number, whichever was current.
    build(tmp_path, vectors, labels)
    assert open_index(tmp_path).manifest.version == 4


def test_going_back_works_when_the_current_version_is_gone(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    for _ in range(2):
        build(tmp_path, vectors, labels)
    files.remove_folder(tmp_path / "versions" / "000002")
    with pytest.raises(VersionError, match=r"names version 000002, which is not there; .*roll_back\(INDEX\)"):
        open_index(tmp_path)
    assert roll_back(tmp_path).version == 1
    assert open_index(tmp_path).num_vectors == 40


def test_a_version_that_is_open_stays_until_it_is_closed(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    config = IndexConfig(keep_versions=1)
    build(tmp_path, vectors, labels, config=config)
    reader = open_index(tmp_path)
    for _ in range(2):
        build(tmp_path, vectors, labels, config=config)
    assert versions.list_versions(tmp_path) == [1, 3]
    assert reader.search(vectors, 1).num_missing == 0
    del reader
    build(tmp_path, vectors, labels, config=config)
    assert versions.list_versions(tmp_path) == [4]
    assert files.list_folder(tmp_path / "staging") == []


def test_a_following_index_goes_along_between_searches(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vectors, labels, _ = example()
    build(tmp_path, vectors, labels)
    following = FollowingIndex(tmp_path)
    first = following.latest()
    assert following.latest() is first
    build(tmp_path, vectors * np.float32(2), labels)
    assert following.latest().manifest.version == 2
    assert first.search(vectors[:3], 1).distances.max() == 0  # who has the old version keeps it
    roll_back(tmp_path)
    assert following.latest().manifest.version == 1
    path = build(tmp_path, vectors, labels) / "labels.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    for _ in range(3):
        assert following.latest().manifest.version == 1
    assert caplog.text.count("stays at version 1") == 1
    build(tmp_path, vectors, labels)
    assert following.latest().manifest.version == 4
    (tmp_path / "current").unlink()
    assert following.latest().manifest.version == 4


def test_an_index_of_another_source_is_refused(tmp_path: Path) -> None:
    vectors, labels, _ = example()
    build(tmp_path, vectors, labels, source={"catalogue": "abc"})
    index = open_index(tmp_path)
    versions.check_source(index.path, index.manifest, {"catalogue": "abc"})
    with pytest.raises(RequestError, match="was made from catalogue abc; this run has catalogue xyz"):
        versions.check_source(index.path, index.manifest, {"catalogue": "xyz"})
    with pytest.raises(RequestError, match="does not say which parameters it was made from"):
        versions.check_source(index.path, index.manifest, {"parameters": "step-1"})
