"""What calls itself exact equals float64 brute force, for any distances: the definition, its bound, and its ties."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import index.exact.cells
import index.exact.second_look
from index.base.errors import RequestError
from index.config import IndexConfig
from index.exact import rounding
from index.exact.costs import Vectors
from index.search import LocalIndex, open_index
from index.writing.build import build
from index.writing.writer import IndexWriter

METRICS = ("l2", "inner_product", "cosine")
TIE = 1e-12
"""costs that differ by less than this, relative to their terms, may be in either order"""


def true_costs(vectors: np.ndarray, query: np.ndarray, metric: str) -> np.ndarray:
    """Squared distances, negative products or negative cosines in float64: [n]."""
    a, b = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    if metric == "l2":
        return ((b - a) ** 2).sum(axis=1)
    products = -(b * a).sum(axis=1)
    if metric == "cosine":
        products /= np.sqrt((a * a).sum()) * np.sqrt((b * b).sum(axis=1))
    return products


def assert_nearest(found: np.ndarray, costs: np.ndarray, ids: np.ndarray, k: int, scale: float) -> None:
    """`found` has the k least of `costs` by (cost, id), −1 behind; costs within TIE · `scale` may change places."""
    order = np.lexsort((ids, costs))[:k]
    assert (found[len(order) :] == -1).all()
    found = found[: len(order)]
    if np.array_equal(found, ids[order]):
        return
    assert len(set(found.tolist())) == len(found)
    places = {int(number): place for place, number in enumerate(ids)}
    got = costs[[places[int(number)] for number in found]]
    np.testing.assert_allclose(got, costs[order], rtol=TIE, atol=TIE * scale)


def opened(folder: str | Path, vectors, labels=None, ids=None, **settings) -> LocalIndex:
    labels = np.zeros(len(vectors), np.int64) if labels is None else labels
    return open_index(build(Path(folder), vectors, labels, ids, IndexConfig(**settings)))


def looked_at(opened: LocalIndex) -> int:
    return sum(shard.num_looked_at_again for shard in opened._shards)


@st.composite
def galleries(draw):
    """Clusters of any width and distance, some rows twice; labels that follow them or not."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num, dim = draw(st.sampled_from([30, 250, 600])), draw(st.sampled_from([1, 2, 8, 70]))
    clusters = draw(st.integers(1, 8))
    separation, spread = (10.0 ** draw(st.integers(low, high)) for low, high in ((-2, 6), (-6, 1)))
    of = rng.integers(0, clusters, num)
    vectors = separation * rng.standard_normal((clusters, dim))[of] + spread * rng.standard_normal((num, dim))
    vectors[rng.integers(0, num, num // 4)] = vectors[0]
    labels = of if draw(st.booleans()) else rng.integers(0, 4, num)
    return (
        vectors.astype(np.float32),
        labels.astype(np.int64),
        rng.permutation(2 * num)[:num].astype(np.int64),
    )


@settings(max_examples=80)
@given(
    gallery=galleries(),
    metric=st.sampled_from(METRICS),
    kind=st.sampled_from(["flat", "ivf_flat", "exact"]),
    filter_name=st.sampled_from([None, "same_class", "other_class"]),
    has_range=st.booleans(),
    is_changed=st.booleans(),
    shards=st.integers(1, 4),
    k=st.sampled_from([1, 5, 40]),
    queries_for_cells=st.sampled_from([0, 8, 10**9]),
    tile=st.sampled_from([7, 512]),
)
def test_equals_brute_force(
    gallery, metric, kind, filter_name, has_range, is_changed, shards, k, queries_for_cells, tile
) -> None:
    vectors, labels, ids = gallery
    asked = np.arange(0, len(ids), max(1, len(ids) // 30))
    queries, query_labels, query_ids = vectors[asked], labels[asked], ids[asked]
    options = {} if kind == "flat" else {"nlist": 3, "nprobe": 3 if kind == "ivf_flat" else 1}
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(index.exact.second_look, "_QUERIES_FOR_CELLS", queries_for_cells)
        patch.setattr(index.exact.second_look, "_QUERIES_A_THREAD", tile)
        patch.setattr("index.runtime.faiss.omp_get_max_threads", lambda: 3)
        patch.setattr(index.exact.second_look, "_QUERIES_AT_ONCE", tile)
        patch.setattr(index.exact.second_look, "_ROWS_AT_ONCE", tile)
        patch.setattr(index.exact.second_look, "_PAIRS_FOR_TWINS", tile)
        patch.setattr(index.exact.second_look, "_PAIRS_AT_ONCE", 10 * tile)
        patch.setattr(index.exact.cells, "_ROWS_A_CELL", 16)
        settings = {"metric": metric, "shards": shards, **options}
        found_in = opened(
            folder, vectors, labels, ids, kind="flat" if kind == "flat" else "ivf_flat", **settings
        )
        if is_changed:
            writer = IndexWriter(folder)
            gone = np.setdiff1d(ids, query_ids)[:20]
            added = writer.add(vectors[:4], labels[:4]).ids
            if len(gone):
                writer.remove(gone)
            kept = ~np.isin(ids, gone)
            vectors = np.concatenate([vectors[kept], vectors[:4]])
            labels, ids = np.concatenate([labels[kept], labels[:4]]), np.concatenate([ids[kept], added])
            found_in = found_in.caught_up()
        filters = {filter_name: query_labels} if filter_name else {}
        filters["query_ids"] = query_ids
        if has_range:
            filters["exclude_ids"] = np.tile([len(ids) // 2, len(ids)], (len(asked), 1))
        result = found_in.search(queries, k, exact=kind == "exact", **filters)
        alone = found_in.search(
            queries[:1], k, exact=kind == "exact", **{name: value[:1] for name, value in filters.items()}
        )
    assert np.array_equal(alone.ids[0], result.ids[0])
    assert np.array_equal(alone.exact_distances[0], result.exact_distances[0])
    longest = np.sqrt((vectors.astype(np.float64) ** 2).sum(axis=1).max())
    for row, query in enumerate(queries):
        allowed = ids != query_ids[row]
        if filter_name:
            allowed &= (labels == query_labels[row]) == (filter_name == "same_class")
        if has_range:
            allowed &= (ids < len(ids) // 2) | (ids >= len(ids))
        costs = true_costs(vectors[allowed], query, metric)
        # The terms of a product cancel; those of a distance do not.
        scale = {"l2": 0.0, "cosine": 1e-2, "inner_product": 1e-2 * longest * np.linalg.norm(query)}[metric]
        assert_nearest(result.ids[row], costs, ids[allowed], k, float(scale))


def tight_clusters(rng):
    centres = rng.standard_normal((10, 128))
    centres *= 10 / np.linalg.norm(centres, axis=1, keepdims=True)
    return centres[rng.integers(0, 10, 3000)] + 0.003 * rng.standard_normal((3000, 128))


def places_in_metres(rng):
    places = rng.standard_normal((20, 3))
    places *= 6.37e6 / np.linalg.norm(places, axis=1, keepdims=True)
    return places[rng.integers(0, 20, 3000)] + 50 * rng.standard_normal((3000, 3))


def one_huge_column(rng):
    vectors = rng.standard_normal((3000, 64))
    vectors[:, 0] = 1000 * rng.integers(0, 40, 3000)
    return vectors


def many_small_clusters(rng):
    return np.repeat(100 * rng.standard_normal((60, 16)), 50, axis=0) + 1e-4 * rng.standard_normal((3000, 16))


def an_outlier_in_each_cluster(rng):
    vectors = tight_clusters(rng)
    vectors[:10] *= 50
    return vectors


CASES = (tight_clusters, places_in_metres, one_huge_column, many_small_clusters, an_outlier_in_each_cluster)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_clusters_that_float32_cannot_tell_apart(tmp_path, make, metric, shards) -> None:
    vectors = make(np.random.default_rng(1)).astype(np.float32)
    found_in = opened(tmp_path, vectors, metric=metric, shards=shards)
    result = found_in.search(vectors[:90], 5)
    ids = np.arange(len(vectors))
    for row in range(90):
        assert_nearest(result.ids[row], true_costs(vectors, vectors[row], metric), ids, 5, 0.0)
    if metric == "l2":
        assert looked_at(found_in), "the first look cannot have been enough"


@pytest.mark.parametrize("scale", [1e-43, 1e-38, 1e-30, 1e-10, 1e10, 1e16])
@pytest.mark.parametrize("metric", METRICS)
def test_any_scale(tmp_path, metric, scale) -> None:
    rng = np.random.default_rng(2)
    vectors = scale * (rng.standard_normal((5, 8))[rng.integers(0, 5, 400)] + rng.standard_normal((400, 8)))
    vectors = vectors.astype(np.float32)
    if metric == "cosine":
        vectors = vectors[vectors.any(axis=1)]
    found_in = opened(tmp_path, vectors, metric=metric, shards=2)
    result = found_in.search(vectors[:60], 7)
    for row in range(60):
        costs = true_costs(vectors, vectors[row], metric)
        assert_nearest(result.ids[row], costs, np.arange(len(vectors)), 7, 0.0)
        sign = 1 if metric == "l2" else -1
        found = sign * costs[result.ids[row]]
        np.testing.assert_allclose(result.exact_distances[row], found, rtol=1e-12)
        np.testing.assert_allclose(result.distances[row], found.astype(np.float32), rtol=1e-6)
    if scale == 1e-30 and metric == "l2":
        assert not result.distances.any(), "no float32 is so small"
        assert not looked_at(found_in), "a power of two scales them into range"


def test_queries_far_out_of_the_rows_range(tmp_path) -> None:
    vectors = (1e-40 * np.random.default_rng(0).integers(1, 9, (50, 4))).astype(np.float32)
    found = opened(tmp_path, vectors).search(np.full((3, 4), 1e15, np.float32), 5)
    # All are as far, to the last digit of float64.
    assert found.ids.tolist() == [[0, 1, 2, 3, 4]] * 3
    assert found.num_missing == 0


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("metric", METRICS)
def test_ties_of_any_number_go_to_the_smaller_id(tmp_path, metric, shards) -> None:
    rng = np.random.default_rng(3)
    # A thousand copies of one vector, in many classes, and others further away.
    vectors = np.concatenate(
        [np.tile([[1.0, 2.0, 2.0]], (1000, 1)), rng.integers(-1, 2, (500, 3)) + np.array([0, 0, 5])]
    )
    vectors = vectors.astype(np.float32)
    labels, ids = rng.integers(0, 7, 1500), rng.permutation(9000)[:1500].astype(np.int64)
    found_in = opened(tmp_path, vectors, labels, ids, metric=metric, shards=shards)
    query = vectors[:1] if metric != "inner_product" else np.array([[5.0, 4.0, -3.0]], np.float32)
    assert (
        true_costs(vectors, query[0], metric)[:1000].max() < true_costs(vectors, query[0], metric)[1000:]
    ).all()
    for k in (1, 10, 300):
        assert found_in.search(query, k).ids[0].tolist() == np.sort(ids[:1000])[:k].tolist()
    least = int(ids[:1000].min())
    without = found_in.search(np.tile(query, (3, 1)), 2, query_ids=np.array([least, -1, least]))
    second, third = np.sort(ids[:1000])[1:3].tolist()
    assert without.ids.tolist() == [[second, third], [least, second], [second, third]]
    others = found_in.search(query, 20, other_class=2)
    assert others.ids[0].tolist() == np.sort(ids[:1000][labels[:1000] != 2])[:20].tolist()


def test_an_embedding_that_collapsed_to_a_point_is_answered_at_once(tmp_path) -> None:
    vectors = np.full((4000, 16), 0.1, np.float32)
    found = opened(tmp_path, vectors, np.arange(4000) % 5).search(vectors, 5, query_ids=np.arange(4000))
    wanted = [[i for i in range(6) if i != row][:5] for row in range(4000)]
    assert found.ids.tolist() == wanted


@pytest.mark.parametrize("metric", METRICS)
def test_binary_codes_are_ordered_by_id_where_they_tie(tmp_path, metric) -> None:
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 2, (1200, 24)).astype(np.float32)
    codes[:, 0] = 1
    result = opened(tmp_path, codes, metric=metric, shards=3).search(codes[:100], 5)
    for row in range(100):
        products = (codes @ codes[row]).astype(np.int64)
        lengths = codes.sum(axis=1).astype(np.int64)
        costs = {
            "l2": lengths - 2 * products,
            "inner_product": -products,
            "cosine": -(products**2) / lengths,  # whole numbers up to their one division
        }[metric]
        assert result.ids[row].tolist() == np.lexsort((np.arange(1200), costs))[:5].tolist()


def test_answers_do_not_depend_on_shards_batches_or_threads(tmp_path, monkeypatch) -> None:
    vectors = tight_clusters(np.random.default_rng(5)).astype(np.float32)
    answers = []
    for shards, batch, threads in ((1, 300, 1), (1, 7, 1), (5, 300, 2), (2, 1, 1)):
        monkeypatch.setattr("index.exact.costs._QUERIES_A_THREAD", 50)
        monkeypatch.setattr("index.exact.second_look._QUERIES_A_THREAD", 50)
        monkeypatch.setattr("index.exact.costs.faiss.omp_get_max_threads", lambda threads=threads: threads)
        found_in = opened(tmp_path / f"{shards}-{batch}", vectors, shards=shards)
        parts = [
            found_in.search(vectors[start : min(start + batch, 300)], 5) for start in range(0, 300, batch)
        ]
        answers.append(
            (
                np.concatenate([part.ids for part in parts]),
                np.concatenate([part.exact_distances for part in parts]),
            )
        )
    for ids, distances in answers[1:]:
        assert np.array_equal(ids, answers[0][0])
        assert np.array_equal(distances, answers[0][1])


def test_cosines_are_of_the_vectors_as_they_were_given(tmp_path) -> None:
    """Divided by their lengths in float32, these lose the digits that tell them apart."""
    rng = np.random.default_rng(6)
    vectors = (7 * rng.standard_normal(32) + 1e-3 * rng.standard_normal((500, 32))).astype(np.float32)
    found_in = opened(tmp_path, vectors, metric="cosine")
    found = found_in.search(vectors[:50], 5)
    for row in range(50):
        costs = true_costs(vectors, vectors[row], "cosine")
        assert_nearest(found.ids[row], costs, np.arange(500), 5, 1e-3)
    assert np.array_equal(found_in.vectors(0, 500, as_given=True), vectors)
    np.testing.assert_allclose(np.linalg.norm(found_in.vectors(0, 500), axis=1), 1, rtol=1e-6)


def test_a_vector_of_zeros_has_no_cosine(tmp_path) -> None:
    vectors = np.eye(3, dtype=np.float32)
    found_in = opened(tmp_path, vectors, metric="cosine")
    with pytest.raises(RequestError, match="queries row 1 is all zeros and has no direction"):
        found_in.search(_zeroed(vectors), 1)
    with pytest.raises(RequestError, match="vectors row 1 is all zeros and has no direction"):
        IndexWriter(tmp_path).add(_zeroed(vectors), np.zeros(3, np.int64))


def _zeroed(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.copy()
    vectors[1] = 0
    return vectors


@pytest.mark.parametrize("metric", ["l2", "inner_product"])
@given(
    seed=st.integers(0, 10**6),
    dim=st.sampled_from([1, 3, 64, 500]),
    offset=st.sampled_from([0.0, 1.0, 300.0]),
)
@settings(max_examples=30)
def test_float32_is_never_further_off_than_the_bound(metric, seed, dim, offset) -> None:
    rng = np.random.default_rng(seed)
    a, b = (offset + rng.standard_normal((n, dim)) * 10.0 ** rng.integers(-3, 3) for n in (20, 30))
    a, b = a.astype(np.float32), b.astype(np.float32)
    lengths_a, lengths_b = (np.sqrt((x.astype(np.float64) ** 2).sum(axis=1)) for x in (a, b))
    products = a @ b.T
    true = a.astype(np.float64) @ b.T.astype(np.float64)
    if metric == "inner_product":
        bound = rounding.product_error(dim, lengths_a[:, None], lengths_b, rounding.FLOAT32)
        found = products
    else:
        bound = rounding.squared_distance_error(dim, lengths_a[:, None], lengths_b, rounding.FLOAT32)
        found = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * products
        true = np.stack([true_costs(b, row, "l2") for row in a])
    assert (np.abs(found - true) <= bound).all()
    assert np.isinf(rounding.gamma(1 << 23, rounding.FLOAT32)), "no promise where the bound does not apply"


def test_costs_depend_on_the_two_vectors_alone() -> None:
    rng = np.random.default_rng(7)
    for dim in (1, 2, 7, 128, 1000):
        rows, queries = (rng.standard_normal((n, dim)).astype(np.float32) for n in (40, 9))
        for metric in METRICS:
            vectors = Vectors(rows, metric)
            pairs = rng.integers(0, 40, (9, 17))
            together = vectors.costs(queries, pairs)
            for row in range(9):
                alone = [
                    vectors.costs(queries[row : row + 1], pairs[row : row + 1, [c]])[0, 0] for c in range(17)
                ]
                assert together[row].tolist() == alone
