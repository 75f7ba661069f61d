"""Filters on every kind of index against masked float64 brute force, and never too few answers."""

import tempfile
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import index.flat
import index.plan
from index.base.errors import RequestError
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build


def brute_force(gallery, metric, query, k, is_allowed):
    """(ids, costs) of one query by plain loops in float64 over the rows that is_allowed(label, id) lets through."""
    found = []
    for vector, label, number in zip(*gallery, strict=True):
        if is_allowed(label, number):
            a, b = np.asarray(query, np.float64), np.asarray(vector, np.float64)
            cost = float(((a - b) ** 2).sum()) if metric == "l2" else -float((a * b).sum())
            found.append((cost, int(number)))
    found = sorted(found)[:k] + [(np.inf, -1)] * (k - len(found))
    return [number for _, number in found], [cost for cost, _ in found]


def stored(opened, vectors, ids):
    """The vectors as the index holds them, in the order given: for cosine of length 1."""
    positions = [int(np.flatnonzero(opened.ids == number)[0]) for number in ids]
    return opened.vectors(0, opened.num_vectors)[positions]


@st.composite
def requests(draw):
    """A small gallery on a coarse grid, so that ties are everywhere, with filters for each of its vectors."""
    # Not more rows than candidates: of more ties than those, any may be kept.
    num, dim = draw(st.integers(1, 11)), draw(st.integers(1, 3))
    numbers = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim).filter(any)
    vectors = np.array(draw(st.lists(numbers, min_size=num, max_size=num)), np.float32)
    labels = np.array(draw(st.lists(st.integers(0, 3), min_size=num, max_size=num)), np.int64)
    if draw(st.booleans()):
        ids = np.array(draw(st.lists(st.integers(0, 30), min_size=num, max_size=num, unique=True)), np.int64)
    else:  # a range of ids in the order of positions
        labels = np.sort(labels)
        ids = np.arange(7, 7 + num, dtype=np.int64)
    bounds = st.tuples(st.integers(-3, 35), st.integers(-3, 35)).map(sorted)
    few = draw(st.lists(bounds, min_size=1, max_size=3))  # some queries share a range
    ranges = st.lists(st.sampled_from(few), min_size=num, max_size=num).map(lambda r: np.array(r, np.int64))
    return (
        (vectors, labels, ids),
        draw(st.sampled_from([None, "same_class", "other_class"])),
        draw(st.none() | ranges),
        draw(st.none() | ranges),
        draw(st.booleans()),
    )


@settings(max_examples=60)
@given(
    request=requests(),
    kind=st.sampled_from(["flat", "ivf_flat"]),
    metric=st.sampled_from(["l2", "inner_product", "cosine"]),
    shards=st.integers(1, 4),
    k=st.integers(1, 18),
    max_runs=st.sampled_from([1, 32]),
    queries_a_cluster=st.sampled_from([0, 10**9]),
)
def test_what_claims_to_be_exact_equals_brute_force(
    request, kind, metric, shards, k, max_runs, queries_a_cluster
) -> None:
    gallery, filter_name, include, exclude, without_itself = request
    vectors, labels, ids = gallery
    nlist = {"nlist": min(3, len(ids)), "nprobe": min(3, len(ids))} if kind == "ivf_flat" else {}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.plan, "_MAX_RUNS", max_runs)
        patch.setattr(index.flat, "_ROWS_AT_ONCE", 4)
        # By matrix products over queries that share a cluster, or by FAISS's scan.
        patch.setattr("index.candidates._QUERIES_A_CLUSTER", queries_a_cluster)
        # Otherwise so small a gallery is always searched flat.
        patch.setattr("index.candidates.Candidates.visits", lambda self, parameters: 0)
        build(
            Path(folder), vectors, labels, ids, IndexConfig(kind=kind, metric=metric, shards=shards, **nlist)
        )
        opened = open_index(Path(folder))
        held = stored(opened, vectors, ids)
        if metric == "cosine":
            exact = vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
            np.testing.assert_allclose(held, exact, rtol=1e-6)
        result = opened.search(
            vectors,
            k,
            **({filter_name: labels} if filter_name else {}),
            query_ids=ids if without_itself else None,
            include_ids=include,
            exclude_ids=exclude,
        )
        missing = 0
        for row in range(len(ids)):

            def is_allowed(label, number, row=row):
                is_same = label == labels[row]
                return (
                    (filter_name is None or is_same == (filter_name == "same_class"))
                    and (include is None or include[row, 0] <= number < include[row, 1])
                    and (exclude is None or not exclude[row, 0] <= number < exclude[row, 1])
                    and not (without_itself and number == ids[row])
                )

            expected, costs = brute_force((held, labels, ids), metric, held[row], k, is_allowed)
            assert result.ids[row].tolist() == expected
            sign = 1 if metric == "l2" else -1
            np.testing.assert_allclose(sign * result.distances[row], costs, rtol=1e-6, atol=1e-7)
            missing += expected.count(-1)
        assert result.num_missing == missing


def clustered(num: int = 1500, dim: int = 8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.sort(rng.integers(0, 12, num))
    centers = 2 * rng.standard_normal((12, dim))
    vectors = (10 + centers[labels] + rng.standard_normal((num, dim))).astype(np.float32)
    return vectors, labels, rng.permutation(5000)[:num].astype(np.int64)


APPROXIMATE = [
    ({"kind": "ivf_flat", "nlist": 20, "nprobe": 8}, 0.8),
    ({"kind": "ivf_pq", "nlist": 20, "nprobe": 8, "pq_bits": 5}, 0.7),
    ({"kind": "hnsw"}, 0.95),
    ({"kind": "factory", "factory": "PCA6,IVF20,PQ3x5", "nprobe": 8}, 0.7),
    ({"kind": "factory", "factory": "SQ8"}, 0.95),
    ({"kind": "factory", "factory": "LSHrt", "k_factor": 40}, 0.5),  # refuses selectors
]


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize(
    ("options", "floor"),
    APPROXIMATE,
    ids=lambda o: o.get("factory", o["kind"]) if isinstance(o, dict) else "",
)
def test_approximate_kinds_keep_filters_and_find_most(tmp_path, options, floor, metric) -> None:
    if metric == "cosine" and options.get("factory") == "LSHrt":
        pytest.skip("LSH compares bits, whatever the metric")
    vectors, labels, ids = clustered()
    build(tmp_path, vectors, labels, ids, IndexConfig(metric=metric, shards=2, **options))
    opened = open_index(tmp_path)
    asked = np.arange(0, len(ids), 30)
    lows = np.full((len(asked), 2), [500, 4000])
    for filters in (
        {},
        {"other_class": labels[asked]},
        {"include_ids": lows},
        {"exclude_ids": lows},
        {"other_class": labels[asked], "include_ids": lows},
    ):
        arguments = {"query_ids": ids[asked], **filters}
        found = opened.search(vectors[asked], 10, **arguments)
        true = opened.search(vectors[asked], 10, exact=True, **arguments)
        assert found.num_missing == true.num_missing == 0
        hits = np.mean([len(set(a) & set(b)) for a, b in zip(found.ids, true.ids, strict=True)]) / 10
        assert hits >= floor
        assert not (found.ids == ids[asked, None]).any()
        if "other_class" in filters:
            assert (opened.labels_of(found.ids) != labels[asked, None]).all()
        inside = (found.ids >= 500) & (found.ids < 4000)
        assert inside.all() if "include_ids" in filters else True
        assert not inside.any() if "exclude_ids" in filters else True


def test_a_range_that_the_index_hardly_meets_is_answered_whole(tmp_path) -> None:
    """One cluster is probed and most of them hold nothing of the range: the exact search steps in."""
    vectors, labels, ids = clustered()
    build(tmp_path, vectors, labels, ids, IndexConfig(kind="ivf_flat", nlist=60, nprobe=1))
    opened = open_index(tmp_path)
    chosen = np.sort(ids)[:60]
    include = np.full((40, 2), [chosen[0], chosen[-1] + 1])
    found = opened.search(vectors[:40], 30, include_ids=include)
    true = opened.search(vectors[:40], 30, include_ids=include, exact=True)
    assert found.num_missing == 0
    short = [set(a) != set(b) for a, b in zip(found.ids, true.ids, strict=True)]
    assert np.mean(short) < 0.2


def test_same_class_is_exact_on_every_kind(tmp_path) -> None:
    vectors, labels, ids = clustered()
    for number, (options, _) in enumerate(APPROXIMATE):
        build(tmp_path / str(number), vectors, labels, ids, IndexConfig(**options))
        opened = open_index(tmp_path / str(number))
        arguments = {"same_class": labels[:50], "query_ids": ids[:50]}
        found = opened.search(vectors[:50], 7, **arguments)
        for row in range(0, 50, 25):
            expected, _ = brute_force(
                (vectors, labels, ids),
                "l2",
                vectors[row],
                7,
                lambda label, number, row=row: label == labels[row] and number != ids[row],
            )
            assert found.ids[row].tolist() == expected


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
def test_queries_that_share_clusters_get_the_neighbours_of_a_scan(tmp_path, monkeypatch, metric) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((3000, 16), dtype=np.float32) + 5  # far from the origin, too
    build(tmp_path, vectors, rng.integers(0, 9, 3000), config=IndexConfig(kind="ivf_flat", metric=metric))
    opened = open_index(tmp_path)
    ranges = np.tile([[200, 1900]], (500, 1))
    for asked in ({}, {"include_ids": ranges}, {"exclude_ids": ranges}):
        found = {}
        for least in (0, 10**9):
            monkeypatch.setattr("index.candidates._QUERIES_A_CLUSTER", least)
            found[least] = opened.search(vectors[:500], 7, parameters={"nprobe": 20}, **asked)
        np.testing.assert_array_equal(found[0].ids, found[10**9].ids)
        np.testing.assert_array_equal(found[0].distances, found[10**9].distances)


def test_equal_ranges_are_searched_together(tmp_path) -> None:
    vectors, labels, _ = clustered()
    opened = open_index(build(tmp_path, vectors, labels))
    planner = index.plan.Planner(opened.labels, opened.ids, opened.manifest.ids_offset)
    spans = index.plan.id_spans(None, np.full((99, 2), [10, 20]), 99)
    tasks = planner.plan(None, np.zeros(99, np.int64), spans)
    assert [(t.query_start, t.query_stop, t.start, t.stop) for t in tasks] == [
        (0, 99, 0, 10),
        (0, 99, 20, 1500),
    ]


def test_ranges_and_parameters_that_do_not_fit_are_refused(tmp_path) -> None:
    vectors, labels, ids = clustered()
    build(tmp_path, vectors, labels, ids, IndexConfig(kind="hnsw", metric="cosine"))
    opened = open_index(tmp_path)
    for options, message in [
        ({"include_ids": np.zeros(3, np.int64)}, r"include_ids is int64 \[3\]; it must be int64 \[3, 2\]"),
        ({"exclude_ids": np.zeros((3, 2))}, r"exclude_ids is float64 \[3, 2\]; it must be int64"),
        (
            {"exclude_ids": np.array([[1, 2], [9, 4], [0, 0]])},
            r"exclude_ids row 1 is \[9, 4\]; it must not end",
        ),
        ({"parameters": {"nprobe": 3}}, r"parameters has the unknown nprobe; .* has ef_search, k_factor"),
        ({"parameters": {"ef_search": 0}}, "ef_search=0; it must be a whole number of at least 1"),
        ({"parameters": {"k_factor": True}}, "k_factor=True; it must be a whole number"),
    ]:
        with pytest.raises(RequestError, match=message):
            opened.search(vectors[:3], 2, **options)
    with pytest.raises(RequestError, match=r"queries row 1 .* zeros"):
        opened.search(np.stack([vectors[0], 0 * vectors[0]]), 2)
    if faiss.get_num_gpus():
        return
    with pytest.raises(RequestError, match=r"index.device=gpu: FAISS sees no GPU on this machine"):
        open_index(tmp_path, device="gpu")
