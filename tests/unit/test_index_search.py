"""Search against a float64 brute force: metrics, shards, filters, ties, spread 0.01 at norm 16."""

import itertools
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import index.plan
import index.search
from index.base.errors import RequestError
from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.shard import Shard
from index.writing.build import build


def brute_force(vectors, labels, ids, metric, query, k, *, keep=None, query_label=None, skip=-1):
    """(ids, costs) of one query by plain loops in float64; costs are distances, or negative products."""
    found = []
    for vector, label, number in zip(vectors, labels, ids, strict=True):
        if number == skip or (keep == "same_class" and label != query_label):
            continue
        if keep == "other_class" and label == query_label:
            continue
        a, b = np.asarray(query, np.float64), np.asarray(vector, np.float64)
        cost = float(((a - b) ** 2).sum()) if metric == "l2" else -float((a * b).sum())
        found.append((cost, int(number)))
    found = sorted(found)[:k] + [(np.inf, -1)] * (k - len(found))
    return [number for _, number in found], [cost for cost, _ in found]


def assert_equals_brute_force(
    opened: LocalIndex, result, vectors, labels, ids, queries, k, **filters
) -> None:
    filter_name = next((name for name in ("same_class", "other_class") if name in filters), None)
    query_labels, query_ids = filters.get(filter_name), filters.get("query_ids")
    sign = 1 if opened.metric == "l2" else -1
    missing = 0
    for row, query in enumerate(queries):
        expected, costs = brute_force(
            vectors,
            labels,
            ids,
            opened.metric,
            query,
            k,
            keep=filter_name,
            query_label=None if query_labels is None else query_labels[row],
            skip=-1 if query_ids is None else query_ids[row],
        )
        assert result.ids[row].tolist() == expected
        np.testing.assert_allclose(sign * result.distances[row], costs, rtol=1e-6, atol=1e-30)
        missing += expected.count(-1)
    assert result.num_missing == missing
    assert (result.ids.dtype, result.distances.dtype) == (np.int64, np.float32)


@st.composite
def galleries(draw):
    """Small galleries on a coarse grid, so that ties are everywhere and all arithmetic is exact."""
    num, dim = draw(st.integers(1, 14)), draw(st.integers(1, 3))
    numbers = st.integers(-2, 2)
    vectors = draw(st.lists(st.lists(numbers, min_size=dim, max_size=dim), min_size=num, max_size=num))
    labels = draw(st.lists(st.integers(0, 3), min_size=num, max_size=num))
    ids = draw(st.lists(st.integers(0, 99), min_size=num, max_size=num, unique=True))
    return np.array(vectors, np.float32), np.array(labels, np.int64), np.array(ids, np.int64)


@settings(max_examples=50)
@given(
    gallery=galleries(),
    metric=st.sampled_from(["l2", "inner_product"]),
    shards=st.integers(1, 6),
    k=st.integers(1, 20),
    filter_name=st.sampled_from([None, "same_class", "other_class"]),
    with_ids=st.booleans(),
)
def test_any_shards_any_filter_equal_brute_force(gallery, metric, shards, k, filter_name, with_ids) -> None:
    vectors, labels, ids = gallery
    filters = {filter_name: labels} if filter_name else {}
    filters["query_ids"] = ids if with_ids else None
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), vectors, labels, ids, IndexConfig(metric=metric, shards=shards))
        opened = open_index(Path(folder))
        result = opened.search(vectors, k, **filters)
        assert_equals_brute_force(opened, result, vectors, labels, ids, vectors, k, **filters)


def long_tail(offset: float, spread: float, dim: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """240 vectors around one point, classes of 1 to 60, labels with gaps, ids in no order."""
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(12) * 3 + 2, [60, 50, 40, 30, 20, 15, 10, 6, 4, 2, 2, 1]).astype(np.int64)
    vectors = offset / np.sqrt(dim) + spread * rng.standard_normal((len(labels), dim))
    order = rng.permutation(len(labels))
    return (
        vectors[order].astype(np.float32),
        labels[order],
        rng.permutation(999)[: len(labels)].astype(np.int64),
    )


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@pytest.mark.parametrize("block", [(1, 1), (64, 16), (2048, 256)], ids=lambda b: f"blocks of {b[0]}")
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (16.0, 0.01)])
def test_neighbours_by_blocks_equal_brute_force(tmp_path, monkeypatch, metric, block, offset, spread) -> None:
    monkeypatch.setattr(index.plan, "_BLOCK_ROWS", block[0])
    monkeypatch.setattr(index.plan, "_BLOCK_QUERIES", block[1])
    monkeypatch.setattr(index.search, "_QUERIES_AT_ONCE", 100)  # cuts classes and blocks
    vectors, labels, ids = long_tail(offset, spread)
    build(tmp_path, vectors, labels, ids, IndexConfig(metric=metric, shards=3))
    opened = open_index(tmp_path)
    found = opened.neighbours(vectors, labels, ids, 5, 4)
    for row in range(0, len(vectors), 3):
        arguments = (vectors, labels, ids, metric, vectors[row])
        options = {"query_label": labels[row], "skip": ids[row]}
        same, _ = brute_force(*arguments, 5, keep="same_class", **options)
        other, _ = brute_force(*arguments, 4, keep="other_class", **options)
        assert found.same_ids[row].tolist() == same
        assert found.other_ids[row].tolist() == other


def test_no_wrong_neighbour_at_norm_16_and_spread_001(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    direction = rng.standard_normal(64)
    vectors = 16 * direction / np.linalg.norm(direction) + 0.01 / 8 * rng.standard_normal((1000, 64))
    vectors = vectors.astype(np.float32)
    build(tmp_path, vectors, np.zeros(1000, np.int64))
    found = open_index(tmp_path).search(vectors[:100], 15)
    exact = np.stack(
        [((vectors.astype(np.float64) - q) ** 2).sum(1) for q in vectors[:100].astype(np.float64)]
    )
    assert np.array_equal(found.ids, np.argsort(exact, axis=1, kind="stable")[:, :15])
    # The plain float32 search is wrong here, or this test would show nothing.
    monkeypatch.setattr(faiss.cvar, "distance_compute_blas_threshold", 1)
    assert (faiss.knn(vectors[:100], vectors, 15)[1] != found.ids).any()


def test_tight_classes_far_from_the_mean_are_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(4), 100)
    centers = 1000 * rng.standard_normal((4, 8))
    vectors = (centers[labels] + 0.05 * rng.standard_normal((400, 8))).astype(np.float32)
    build(tmp_path, vectors, labels)
    found = open_index(tmp_path).search(vectors, 5, same_class=labels, query_ids=np.arange(400))
    for row in range(0, 400, 7):
        expected, _ = brute_force(
            vectors,
            labels,
            range(400),
            "l2",
            vectors[row],
            5,
            keep="same_class",
            query_label=labels[row],
            skip=row,
        )
        assert found.ids[row].tolist() == expected


def test_other_class_takes_labels_the_gallery_lacks(tmp_path: Path) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    opened = open_index(tmp_path)
    for missing in (0, 12, 999):  # below, between and above the gallery's labels
        query_labels = np.full(6, missing, np.int64)
        query_labels[2] = 2
        filters = {"other_class": query_labels}
        result = opened.search(vectors[:6], 3, **filters)
        assert_equals_brute_force(opened, result, vectors, labels, ids, vectors[:6], 3, **filters)


def test_ties_reach_over_the_candidates_edge(tmp_path: Path) -> None:
    ids = np.arange(30, dtype=np.int64)[::-1].copy()
    vectors = np.ones((30, 2), np.float32)
    vectors[12:] = 5  # 12 equal vectors, ids 29 ... 18: two answers and ten in the margin
    build(tmp_path, vectors, np.zeros(30, np.int64), ids)
    assert open_index(tmp_path).search(vectors[:1], 2).ids.tolist() == [[18, 19]]


def test_ids_that_the_index_lacks_leave_nothing_out(tmp_path: Path) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    for folder, numbers in (("a", ids), ("b", None)):
        build(tmp_path / folder, vectors, labels, numbers)
        opened = open_index(tmp_path / folder)
        plain = opened.search(vectors[:4], 3)
        unknown = opened.search(vectors[:4], 3, query_ids=np.array([-1, 5000, 1 << 40, -1]))
        assert np.array_equal(plain.ids, unknown.ids)


def test_no_queries_give_empty_answers(tmp_path: Path) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    opened = open_index(tmp_path)
    assert opened.search(vectors[:0], 3).ids.shape == (0, 3)
    nothing = opened.neighbours(vectors[:2], labels[:2], ids[:2], 0, 1)
    assert (nothing.same_ids.shape, nothing.other_ids.shape) == ((2, 0), (2, 1))


def test_answers_may_be_changed_although_another_process_shares_them(tmp_path, monkeypatch) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    answer = Shard.answer

    def shared(self, request):
        arrays = answer(self, request)
        for array in arrays:
            array.flags.writeable = False
        return arrays

    monkeypatch.setattr(Shard, "answer", shared)
    for count in (1, 5):
        found = open_index(tmp_path).search(vectors[:count], 3)
        for array in (found.ids, found.distances, found.exact_distances):
            array += 1


def test_faiss_setting_is_put_back(tmp_path: Path) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    before = faiss.cvar.distance_compute_blas_threshold
    for count in (1, 50):
        open_index(tmp_path).search(vectors[:count], 3)
    assert faiss.cvar.distance_compute_blas_threshold == before


def test_requests_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    opened = open_index(tmp_path)
    bad = vectors[:3].copy()
    bad[1, 2] = np.nan
    for arguments, options, message in [
        ((vectors[:3, :5], 3), {}, "queries has dim=5; the index contains vectors of dim=16"),
        ((vectors[:3].astype(np.float64), 3), {}, "queries has dtype float64"),
        ((vectors[0], 3), {}, r"queries has shape \[16\]"),
        ((vectors[:3], 0), {}, "k=0 must be a whole number from 1 to 16384"),
        ((vectors[:3], True), {}, "k=True must be"),
        ((vectors[:3], 16385), {}, "k=16385 must be a whole number from 1 to 16384"),
        (
            (vectors[:3], 3),
            {"parameters": {"nprobe": 2}},
            r"parameters has the unknown nprobe; .*\(kind=flat\) has none",
        ),
        (
            (vectors[:3], 3),
            {"same_class": 2, "other_class": 2},
            "same_class and other_class exclude each other",
        ),
        ((vectors[:3], 3), {"same_class": "cat"}, "same_class has 'cat', which is not a class of the index"),
        ((vectors[:3], 3), {"same_class": [2, 3, 2]}, "query 1 has label 3, which no vector"),
        ((vectors[:3], 3), {"same_class": labels[:2]}, r"same_class has shape \[2\]; it must be \[3\]"),
        ((vectors[:3], 3), {"other_class": np.ones(3)}, "other_class has dtype float64; it must be int64"),
        ((vectors[:3], 3), {"query_ids": ids[:2]}, r"query_ids has shape \[2\]"),
    ]:
        with pytest.raises(RequestError, match=message):
            opened.search(*arguments, **options)


def test_every_pair_of_classes_is_searched_once_whatever_the_blocks(tmp_path, monkeypatch) -> None:
    vectors, labels, ids = long_tail(0.0, 1.0)
    build(tmp_path, vectors, labels, ids)
    opened = open_index(tmp_path)
    query_labels = np.sort(np.concatenate([labels[::2], [0, 3, 99]]))
    for rows, queries in itertools.product((1, 40, 100, 5000), (1, 30, 5000)):
        monkeypatch.setattr(index.plan, "_BLOCK_ROWS", rows)
        monkeypatch.setattr(index.plan, "_BLOCK_QUERIES", queries)
        searched = np.zeros((len(query_labels), len(ids)), int)
        for task in opened._contents.planner.plan("other_class", query_labels, None):
            pairs = np.ones((task.query_stop - task.query_start, task.stop - task.start), int)
            if task.is_masked:
                own = query_labels[task.query_start : task.query_stop, None]
                pairs = (own != opened.labels[None, task.start : task.stop]).astype(int)
            searched[task.query_start : task.query_stop, task.start : task.stop] += pairs
        assert np.array_equal(searched, query_labels[:, None] != opened.labels[None])
