"""Vectors added to, removed from and replaced in a version: against brute force, merged, written by many, damaged."""

import multiprocessing
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index import changes, publishing, versions
from index.base.errors import FslDistError, RequestError, VersionError
from index.changes import Contents, batch_path, roll_back
from index.config import IndexConfig
from index.following import FollowingIndex
from index.plan import Planner
from index.search import open_index
from index.tune import store
from index.vectors import unit_vectors
from index.writing.build import build
from index.writing.merging import merge
from index.writing.writer import IndexWriter


def vectors_of(rng: np.random.Generator, num: int, dim: int = 3) -> np.ndarray:
    """float32 [num, dim] on a coarse grid, so that ties are everywhere; no zeros, which cosine refuses."""
    found = rng.integers(-2, 3, (num, dim)).astype(np.float32)
    found[~found.any(axis=1)] = 1
    return found


def brute_force(rows: dict[int, tuple[int, np.ndarray]], metric: str, query, k: int, is_allowed) -> list[int]:
    """Ids of the k nearest by a plain loop in float64 over {id: (label, vector)}; -1 where there are fewer."""
    found = []
    for number, (label, vector) in rows.items():
        if is_allowed(label, number):
            a, b = np.asarray(query, np.float64), np.asarray(vector, np.float64)
            found.append((float(((a - b) ** 2).sum()) if metric == "l2" else -float((a * b).sum()), number))
    return ([number for _, number in sorted(found)] + [-1] * k)[:k]


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num=st.integers(1, 40),
    kind=st.sampled_from(["flat", "ivf_flat"]),
    metric=st.sampled_from(["l2", "inner_product", "cosine"]),
    shards=st.integers(1, 3),
    num_changes=st.integers(1, 6),
    k=st.integers(1, 12),
    filter_name=st.sampled_from([None, "same_class", "other_class"]),
    has_ranges=st.booleans(),
    is_merged=st.booleans(),
)
def test_a_changed_index_equals_brute_force_over_what_is_there(
    seed, num, kind, metric, shards, num_changes, k, filter_name, has_ranges, is_merged
) -> None:
    rng = np.random.default_rng(seed)

    def stored(vectors):
        return unit_vectors(vectors, "vectors") if metric == "cosine" else vectors

    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.candidates.Candidates.visits", lambda self, parameters: 0)
        # So that hidden rows take more places than are spare.
        patch.setattr("index.shard._SPARE", 1)
        out = Path(name)
        given_vectors, labels = vectors_of(rng, num), rng.integers(0, 4, num)
        ids = rng.permutation(60)[:num].astype(np.int64)
        nlist = {"nlist": min(3, num), "nprobe": min(3, num)} if kind == "ivf_flat" else {}
        config = IndexConfig(kind=kind, metric=metric, shards=shards, **nlist)
        build(out, given_vectors, labels, ids, config)
        rows = {int(i): (int(c), v) for i, c, v in zip(ids, labels, stored(given_vectors), strict=True)}
        writer = IndexWriter(out)
        early = open_index(out)
        for _ in range(num_changes):
            there = np.array(sorted(rows), dtype=np.int64)
            some = rng.permutation(there)[: int(rng.integers(1, 1 + max(1, len(there))))]
            what = rng.choice(["add", "remove", "update"]) if len(there) else "add"
            new, new_labels = vectors_of(rng, max(1, len(some))), rng.integers(0, 5, max(1, len(some)))
            if what == "add":
                change = writer.add(new, new_labels)
                assert not set(change.ids.tolist()) & set(rows)
                rows |= {
                    int(i): (int(c), v) for i, c, v in zip(change.ids, new_labels, stored(new), strict=True)
                }
            elif what == "remove":
                writer.remove(some)
                for number in some.tolist():
                    del rows[number]
            else:
                keeps = bool(rng.integers(2))
                writer.update(some, new, None if keeps else new_labels)
                for number, label, vector in zip(some.tolist(), new_labels, stored(new), strict=True):
                    rows[number] = (rows[number][0] if keeps else int(label), vector)
        if not rows:
            with pytest.raises(RequestError, match=r"every vector of .* was removed"):
                merge(out)
            assert early.caught_up().search(given_vectors, 2).num_missing == 2 * num
            return
        if is_merged:
            fewer = min(3, len(rows))
            merge(out, {"nlist": fewer, "nprobe": fewer} if kind == "ivf_flat" else {})
            assert open_index(out).changes.number == 0
        opened = open_index(out) if is_merged or seed % 2 else early.caught_up()
        assert opened.num_vectors == len(rows)
        numbers = np.array(list(rows), dtype=np.int64)
        assert opened.labels_of(numbers).tolist() == [rows[int(i)][0] for i in numbers]
        queries = np.stack([rows[int(i)][1] for i in numbers])
        query_labels = np.array([rows[int(i)][0] for i in numbers])
        query_ids = numbers if seed % 3 else None
        low = rng.integers(0, 50, len(numbers))
        ranges = np.column_stack([low, low + 15]) if has_ranges else None
        found = opened.search(
            queries,
            k,
            **({filter_name: query_labels} if filter_name else {}),
            query_ids=query_ids,
            exclude_ids=ranges,
        )
        for row, number in enumerate(numbers.tolist()):

            def is_allowed(label, other, row=row, number=number):
                if (query_ids is not None and other == number) or (
                    ranges is not None and ranges[row, 0] <= other < ranges[row, 1]
                ):
                    return False
                own = query_labels[row]
                return {"same_class": label == own, "other_class": label != own}.get(filter_name, True)

            # Ties beyond the candidates may be broken either way: distances decide, ids where they differ.
            wanted = brute_force(rows, metric, queries[row], k, is_allowed)
            costs = [cost_of(rows, metric, queries[row], i) for i in wanted]
            assert [cost_of(rows, metric, queries[row], int(i)) for i in found.ids[row]] == pytest.approx(
                costs
            )
            assert all(i == -1 or is_allowed(rows[int(i)][0], int(i)) for i in found.ids[row])
            there = [int(i) for i in found.ids[row] if i >= 0]
            assert len(set(there)) == len(there)


def cost_of(rows, metric: str, query, number: int) -> float:
    """Squared distance or negative product of a query and a row, float64; a large number for id -1."""
    if number < 0:
        return 1e9
    a, b = np.asarray(query, np.float64), np.asarray(rows[number][1], np.float64)
    return float(((a - b) ** 2).sum()) if metric == "l2" else -float((a * b).sum())


@pytest.mark.parametrize("kind", ["ivf_pq", "hnsw"])
def test_kinds_that_may_miss_neighbours_never_answer_what_was_removed_and_never_too_few(
    tmp_path, kind
) -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((2000, 8), dtype=np.float32), rng.integers(0, 10, 2000)
    build(tmp_path, vectors, labels, config=IndexConfig(kind=kind))
    opened = open_index(tmp_path)

    def recall(opened):
        found, true = (opened.search(vectors[:200], 10, exact=exact).ids for exact in (False, True))
        return np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, true, strict=True)])

    before = recall(opened)
    writer = IndexWriter(tmp_path)
    writer.remove(rng.permutation(2000)[:500])
    opened = opened.caught_up()
    assert recall(opened) > before - 0.1
    gone = np.unique(opened.search(vectors[:20], 40).ids)  # whatever these queries find crowds them now
    writer.remove(gone)
    opened = opened.caught_up()
    found = opened.search(vectors[:20], 10)
    assert found.num_missing == 0
    assert not np.isin(found.ids, gone).any()


def test_a_merge_keeps_kind_settings_tuning_and_source_and_doing_it_again_does_nothing(tmp_path) -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((900, 4), dtype=np.float32), rng.integers(0, 3, 900)
    config = IndexConfig(kind="ivf_flat", nlist=7, metric="cosine", shards=3, keep_versions=5)
    build(tmp_path, vectors, labels, config=config, source={"catalogue": "c", "parameters": "p"})
    store(open_index(tmp_path), {"nprobe": 5, "k_factor": 2})
    IndexWriter(tmp_path).add(vectors[:5] + 1, labels[:5])
    before = open_index(tmp_path)
    folder, is_new = merge(tmp_path)
    after = open_index(tmp_path)
    assert is_new
    assert (folder, after.manifest.version) == (after.path, 2)
    assert after.manifest.settings | {"nprobe": 0, "k_factor": 0} == before.manifest.settings
    assert (after.manifest.factory, len(after.manifest.shard_starts)) == ("IVF7,Flat", 3)
    assert after.parameters == {"nprobe": 5, "k_factor": 2}
    assert after.manifest.source == {"catalogue": "c", "parameters": "p"}
    np.testing.assert_array_equal(
        after.search(vectors, 5, exact=True).ids, before.search(vectors, 5, exact=True).ids
    )
    assert merge(tmp_path) == (folder, False)
    assert versions.list_versions(tmp_path) == [1, 2]
    IndexWriter(tmp_path).remove(np.array([0]))
    merge(tmp_path, {"nlist": 9, "nprobe": 0})
    changed = open_index(tmp_path)
    assert (changed.manifest.factory, changed.parameters) == ("IVF9,Flat", {"nprobe": 1, "k_factor": 2})


def test_changes_made_while_a_merge_runs_are_in_the_new_version(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.standard_normal((50, 4), dtype=np.float32), rng.integers(0, 3, 50)
    build(tmp_path, vectors, labels)
    writer = IndexWriter(tmp_path)
    writer.add(vectors[:2] + 9, labels[:2])
    published = publishing.publish_version

    def publish_late(*arguments, **more):
        writer.remove(np.array([3, 50]))
        writer.add(vectors[2:3] + 9, labels[2:3])
        return published(*arguments, **more)

    monkeypatch.setattr(publishing, "publish_version", publish_late)
    merge(tmp_path)
    opened = open_index(tmp_path)
    assert (opened.manifest.version, opened.manifest.num_vectors, opened.changes.number) == (2, 52, 2)
    assert opened.num_vectors == 51
    assert opened.search(vectors[2:3] + 9, 1).ids.tolist() == [[52]]
    # A writer of the old version continues in the new one, and ids are never given twice.
    change = writer.add(vectors[:1], labels[:1])
    assert (change.version, change.number, change.ids.tolist()) == (2, 3, [53])


def test_a_merge_killed_between_its_last_two_steps_is_ended_by_the_next_writer_or_by_itself(
    tmp_path, monkeypatch
) -> None:
    def killed(*_, **__):
        raise KeyboardInterrupt

    for who in ("writer", "merge"):
        out = tmp_path / who
        build(out, np.eye(4, dtype=np.float32), np.arange(4))
        IndexWriter(out).add(np.ones((1, 4), np.float32), np.array([1]))
        with monkeypatch.context() as patch:
            patch.setattr(publishing, "make_current", killed)
            with pytest.raises(KeyboardInterrupt):
                merge(out)
        assert versions.current_version(out) == 1
        if who == "writer":
            assert IndexWriter(out).add(np.ones((1, 4), np.float32), np.array([1])).version == 2
        else:
            merge(out)
        assert versions.current_version(out) == 2
        assert open_index(out).num_vectors == (6 if who == "writer" else 5)


def test_a_version_that_was_merged_takes_changes_again_after_a_rollback(tmp_path) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    IndexWriter(tmp_path).remove(np.array([0]))
    merge(tmp_path)
    assert roll_back(tmp_path).version == 1
    assert open_index(tmp_path).num_vectors == 3  # its changes count again
    assert IndexWriter(tmp_path).remove(np.array([1])).version == 1
    assert open_index(tmp_path).num_vectors == 2
    merge(tmp_path)
    assert open_index(tmp_path).num_vectors == 2
    assert versions.current_version(tmp_path) == 3


def test_building_over_a_changed_version_says_that_its_changes_stay_behind(tmp_path, caplog) -> None:
    vectors = np.eye(4, dtype=np.float32)
    build(tmp_path, vectors, np.arange(4))
    IndexWriter(tmp_path).remove(np.array([0]))
    build(tmp_path, vectors, np.arange(4))
    assert open_index(tmp_path).num_vectors == 4
    assert "version 1 was changed after it was published; version 2 has none of that" in caplog.text
    caplog.clear()
    IndexWriter(tmp_path).remove(np.array([0]))
    merge(tmp_path)
    assert "none of that" not in caplog.text


def test_a_following_reader_sees_changes_and_keeps_what_it_has_where_one_is_damaged(tmp_path, caplog) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    following = FollowingIndex(tmp_path)
    first = following.latest()
    writer = IndexWriter(tmp_path)
    writer.remove(np.array([2]))
    second = following.latest()
    assert (first.num_vectors, second.num_vectors) == (4, 3)
    assert following.latest() is second
    writer.remove(np.array([1]))
    path = batch_path(second.path, 2)
    good = path.read_bytes()
    path.write_bytes(good[:70] + bytes([good[70] ^ 1]) + good[71:])
    for _ in range(3):
        assert following.latest() is second
    assert caplog.text.count("00000002.npz is damaged") == 1
    with pytest.raises(VersionError, match=r"00000002\.npz is damaged"):
        open_index(tmp_path)
    path.write_bytes(good)
    writer.add(np.ones((1, 4), np.float32), np.array([7]))
    batch_path(second.path, 1).unlink()
    with pytest.raises(VersionError, match=r"00000001\.npz is missing; 00000002\.npz was written after it"):
        open_index(tmp_path)
    assert open_index(tmp_path, changes=False).num_vectors == 4


def test_every_flipped_byte_of_a_batch_is_found(tmp_path) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    vectors = np.arange(8, dtype=np.float32).reshape(2, 4)
    IndexWriter(tmp_path).update(np.array([1, 2]), vectors)
    folder = open_index(tmp_path).path
    path, manifest = batch_path(folder, 1), versions.read_manifest(folder)
    good = path.read_bytes()
    num_refused = 0
    for place in range(0, len(good), 7):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        # Bytes that say nothing about the arrays (a time, a flag) may change; an array never.
        try:
            found = changes.read_batch(folder, 1, manifest)
        except VersionError:
            num_refused += 1
        else:
            np.testing.assert_array_equal(found.vectors, vectors)
            assert found.removed.tolist() == found.ids.tolist() == found.labels.tolist() == [1, 2]
    assert num_refused > len(good) // 14


def _add_many(out: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    writer = IndexWriter(out)
    for _ in range(15):
        change = writer.add(rng.standard_normal((2, 4), dtype=np.float32), np.array([seed, seed]))
        if rng.integers(3) == 0:
            writer.remove(change.ids[:1])


def test_processes_that_write_at_once_lose_nothing_while_another_merges(tmp_path) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(tmp_path, seed)) for seed in (100, 101)]
    for process in processes:
        process.start()
    merged = 0
    while any(process.is_alive() for process in processes):
        merged += merge(tmp_path)[1]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    merge(tmp_path)
    opened = open_index(tmp_path)
    wanted = {}
    for seed in (100, 101):
        rng = np.random.default_rng(seed)
        rows: list[np.ndarray] = []
        for _ in range(15):
            new = rng.standard_normal((2, 4), dtype=np.float32)
            rows += list(new[1:] if rng.integers(3) == 0 else new)
        wanted[seed] = np.stack(rows)
    assert merged >= 1
    for seed, rows in wanted.items():
        own = opened.vectors(0, opened.num_vectors)[opened.labels == seed]
        np.testing.assert_array_equal(np.unique(own, axis=0), np.unique(rows, axis=0))


def test_what_cannot_be_changed_is_refused_in_one_line_and_nothing_is_written(tmp_path) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4), config=IndexConfig(metric="cosine"))
    writer = IndexWriter(tmp_path)
    one, label = np.ones((1, 4), np.float32), np.array([1])
    for call, message in (
        (lambda: writer.add(one, label, np.array([3])), "id 3 is in the index .* already"),
        (lambda: writer.add(one, label, np.array([-3])), "ids row 0 is -3; it must be at least 0"),
        (lambda: writer.add(one, np.array([-1])), "labels row 0 is -1; it must be at least 0"),
        (lambda: writer.add(one, label.astype(np.int32)), "labels has dtype int32; it must be int64"),
        (lambda: writer.add(one[:, :3], label), "vectors has dim=3; the index contains vectors of dim=4"),
        (lambda: writer.add(one * np.nan, label), "vectors row 0 contains a NaN"),
        (lambda: writer.add(one * 0, label), "vectors row 0 is all zeros"),
        (lambda: writer.add(one[:0], label[:0]), "vectors has no rows"),
        (lambda: writer.remove(np.array([1, 8, 9])), "ids 8, 9 are not in the index .*; nothing was changed"),
        (lambda: writer.remove(np.array([1, 1])), "ids has 1 more than once"),
        (lambda: writer.remove(np.array([], dtype=np.int64)), "ids has no rows"),
        (lambda: writer.update(np.array([4]), one), "id 4 is not in the index"),
        (
            lambda: IndexWriter(tmp_path / "versions" / "000001"),
            "is one version; name the folder of its index",
        ),
        (lambda: merge(tmp_path / "versions" / "000001"), "is one version; name the folder of its index"),
    ):
        with pytest.raises(RequestError, match=message):
            call()
    assert not (tmp_path / "versions" / "000001" / "changes").exists()
    with pytest.raises(VersionError, match="contains no published index"):
        IndexWriter(tmp_path / "none")
    writer.remove(np.array([2]))
    opened = open_index(tmp_path)
    with pytest.raises(RequestError, match="merge them first"):
        opened.vectors(0, 4)
    with pytest.raises(RequestError, match="query 0 has label 2, which no vector"):
        opened.search(one, 1, same_class=np.array([2]))
    with pytest.raises(RequestError, match="id 2 is not in the index"):
        opened.labels_of(np.array([2]))


def test_a_full_disk_refuses_the_change_and_leaves_the_index_as_it_was(tmp_path, monkeypatch) -> None:
    build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    writer = IndexWriter(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(FslDistError, match=r"was not taken.*No space left.*00000001"):
            writer.remove(np.array([1]))
    assert open_index(tmp_path).num_vectors == 4
    assert os.listdir(tmp_path / "versions" / "000001" / "changes") == []
    assert writer.remove(np.array([1])).number == 1


@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1, 3, 1000]))
def test_ids_are_found_by_a_table_and_without_one_alike(seed, spread) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.permutation(20)[:8].astype(np.int64) * spread
    planner = Planner(np.zeros(8, np.int64), ids, None)
    asked = np.arange(-3, 20 * spread + 3, max(1, spread // 2))
    places = {int(number): place for place, number in enumerate(ids)}
    assert planner.positions_of(asked).tolist() == [places.get(int(i), -1) for i in asked]


def test_contents_up_to_a_number_are_those_of_that_moment(tmp_path) -> None:
    folder = build(tmp_path, np.eye(4, dtype=np.float32), np.arange(4))
    writer = IndexWriter(tmp_path)
    for number in (1, 2, 3):
        writer.remove(np.array([number]))
    contents = Contents(folder, versions.read_manifest(folder), up_to=2)
    assert contents.changes.hidden.tolist() == [1, 2]
    assert not contents.has_more
