"""`index.device=gpu`: the same answers as on the CPU, with FAISS's CPU indexes in the GPU's place, and on a GPU where there is one.

The stand-ins refuse what a GPU's index refuses or ignores: selectors, and more neighbours or clusters than it selects.
"""

import types
from pathlib import Path

import faiss
import numpy as np
import pytest

import index.flat
import index.gpu
import index.plan
from index.base.errors import RequestError
from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.writing.build import build

NUM, DIM, CLASSES = 900, 12, 7
searches: list[int] = []
"""neighbours asked for, a search on the GPU each"""


class FlatInPlace:
    """A flat index on the CPU with the limits of one on a GPU."""

    def __init__(self, resources, dim, metric, config):
        self.gpu, self.held = config.device, faiss.IndexFlat(dim, metric)

    def add(self, vectors):
        self.held.add(vectors)

    def search(self, queries, count, params=None):
        assert params is None, "a flat index on a GPU ignores parameters"
        return self.held.search(queries, count)


def upload_in_place(resources, number, kind):
    if not faiss.isGpuIndexImplemented(kind):
        raise RuntimeError("Error: This index type is not implemented on GPU.")
    return faiss.clone_index(kind)


@pytest.fixture(params=["in its place", pytest.param("a GPU", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """A GPU, or CPU indexes in its place; small pieces and blocks, and no search too small to go there."""
    monkeypatch.setattr(index.flat, "_ROWS_AT_ONCE", 128)
    monkeypatch.setattr(index.flat, "_PRODUCTS_FOR_GPU", 0)
    monkeypatch.setattr(index.plan, "_BLOCK_ROWS", 100)
    monkeypatch.setattr(index.plan, "_BLOCK_QUERIES", 30)
    if request.param == "a GPU":
        if not faiss.get_num_gpus():
            pytest.skip("FAISS sees no GPU on this machine")
    else:
        for name, in_place in {
            "get_num_gpus": lambda: 2,
            "GpuIndexFlatConfig": types.SimpleNamespace,
            "GpuIndexFlat": FlatInPlace,
            "StandardGpuResources": object,
            "index_cpu_to_gpu": upload_in_place,
        }.items():
            monkeypatch.setattr(faiss, name, in_place)
        index.gpu._resources.cache_clear()
    searches.clear()
    search = index.gpu.search_on_gpu

    def limited(where, queries, count, parameters=None):
        assert count <= index.gpu.MOST_NEIGHBOURS
        assert getattr(parameters, "sel", None) is None
        searches.append(count)
        return search(where, queries, count, parameters)

    monkeypatch.setattr(index.gpu, "search_on_gpu", limited)
    yield request.param
    index.gpu._resources.cache_clear()


def make_vectors(num=NUM):
    """Long-tailed classes far from the origin, some vectors twice; ids in disorder."""
    draw = np.random.default_rng(5)
    labels = np.sort(np.minimum(draw.geometric(0.3, num) - 1, CLASSES - 1)).astype(np.int64)
    vectors = (draw.normal(size=(CLASSES, DIM))[labels] + 0.4 * draw.normal(size=(num, DIM)) + 20).astype(
        np.float32
    )
    vectors[::50] = vectors[25::50]
    return vectors, labels, draw.permutation(num).astype(np.int64)


def build_one(folder: Path, config: IndexConfig, num=NUM):
    vectors, labels, ids = make_vectors(num)
    build(folder, vectors, labels, ids, config)
    return vectors, labels, ids


def both(folder: Path) -> tuple[LocalIndex, LocalIndex]:
    return open_index(folder), open_index(folder, device="gpu")


@pytest.mark.parametrize("metric", ["l2", "inner_product", "cosine"])
@pytest.mark.parametrize("kind", ["flat", "ivf_flat", "ivf_pq"])
def test_same_answers_as_on_the_cpu(gpu, tmp_path, kind, metric):
    options = {"shards": 2} if kind == "flat" else {"nlist": 12, "nprobe": 5}
    # A GPU takes codes of 8 bits alone; training 256 of them takes seconds.
    options |= {"pq_m": 4, "pq_bits": 8 if gpu == "a GPU" else 4} if kind == "ivf_pq" else {}
    vectors, labels, ids = build_one(tmp_path, IndexConfig(kind=kind, metric=metric, **options))
    on_cpu, on_gpu = both(tmp_path)
    spans = np.stack([ids // 2, ids // 2 + 300], axis=1)
    for asked in (
        {},
        {"same_class": labels},
        {"other_class": labels},
        {"include_ids": np.tile(np.array([[100, 700]]), (NUM, 1))},
        {"exclude_ids": np.tile(np.array([[100, 700]]), (NUM, 1)), "other_class": labels},
        {"include_ids": spans[:5]},
    ):  # fmt: skip
        num = len(asked.get("include_ids", vectors))
        searches.clear()
        found = on_gpu.search(vectors[:num], 5, query_ids=ids[:num], **asked)
        assert searches, asked
        # Filters leave the GPU's clusters aside: then the answer is exact, for any kind of index.
        wanted = on_cpu.search(vectors[:num], 5, query_ids=ids[:num], exact=bool(asked), **asked)
        if not asked and kind == "ivf_pq":  # codes of another implementation, another choice of candidates
            assert (found.ids == wanted.ids).mean() > 0.9
            continue
        if not asked and kind == "ivf_flat" and metric == "inner_product":
            # Far from the origin products differ little: a query may have two clusters that are equally near in float32.
            assert (found.ids != wanted.ids).any(axis=1).sum() <= 1
            continue
        np.testing.assert_array_equal(found.ids, wanted.ids)
        np.testing.assert_array_equal(found.distances, wanted.distances)


def test_mining_searches_what_is_there_already(gpu, tmp_path, monkeypatch):
    vectors, labels, ids = build_one(tmp_path, IndexConfig())
    on_cpu, on_gpu = both(tmp_path)
    on_gpu.search(vectors[:1], 1)
    uploaded = []
    upload = index.gpu.upload_flat
    monkeypatch.setattr(
        index.gpu, "upload_flat", lambda rows, *rest: uploaded.append(len(rows)) or upload(rows, *rest)
    )
    found = on_gpu.neighbours(vectors, labels, ids, 3, 4)
    wanted = on_cpu.neighbours(vectors, labels, ids, 3, 4)
    for name in ("same_ids", "same_distances", "other_ids", "other_distances"):
        np.testing.assert_array_equal(getattr(found, name), getattr(wanted, name))
    # A class is uploaded once, without its mean; of the rest, what is left of a piece that a block cuts.
    sizes = np.bincount(labels)
    assert sum(uploaded) <= sizes.sum() + 2 * 128 * len(sizes)
    searches.clear()
    uploaded.clear()
    on_gpu.search(vectors[:3], 4)
    assert (len(searches), uploaded) == (-(-NUM // 128), [])


def test_what_a_gpu_does_not_select_is_searched_on_the_cpu(gpu, tmp_path):
    num = 5000
    vectors, _, _ = build_one(tmp_path / "flat", IndexConfig(), num)
    build_one(tmp_path / "ivf", IndexConfig(kind="ivf_flat", nlist=20, nprobe=4), num)
    for kind in ("flat", "ivf"):
        on_cpu, on_gpu = both(tmp_path / kind)
        wanted = on_cpu.search(vectors[:4], 2100, exact=True)
        np.testing.assert_array_equal(on_gpu.search(vectors[:4], 2100).ids, wanted.ids)
    # More clusters than exist: all of them, and exact.
    found = on_gpu.search(vectors[:4], 6, parameters={"nprobe": 3000})
    np.testing.assert_array_equal(found.ids, on_cpu.search(vectors[:4], 6, exact=True).ids)


def test_an_index_on_a_gpu_outlives_the_one_it_was_made_of(gpu, tmp_path):
    vectors, _, _ = build_one(tmp_path, IndexConfig(kind="ivf_flat", nlist=20, nprobe=4))
    on_gpu = open_index(tmp_path, device="gpu")
    (shard,) = on_gpu._shards
    assert shard._candidates is not None
    assert shard._candidates._ivf is None, "it would point into the CPU's index, which is gone"
    assert (on_gpu.num_clusters, shard._candidates.visits({"nprobe": 4})) == (20, NUM // 5)
    assert on_gpu.search(vectors[:4], 2).num_missing == 0


def test_kinds_and_gpus_that_are_not_there_are_refused(gpu, tmp_path):
    build_one(tmp_path, IndexConfig(kind="hnsw"))
    with pytest.raises(
        RequestError, match=r"FAISS does not support this index on a GPU: .*\(index.device=cpu\)"
    ):
        open_index(tmp_path, device="gpu")
    seen = index.gpu.faiss.get_num_gpus()
    with pytest.raises(
        RequestError, match=rf"FAISS sees {seen} GPUs, numbered from 0, and not number {seen}"
    ):
        open_index(tmp_path, device="gpu", gpu=seen)


def test_rows_that_the_gpu_has_no_room_for_are_named(gpu, tmp_path, monkeypatch):
    vectors, _, _ = build_one(tmp_path, IndexConfig())

    def refuse(*_):
        raise RuntimeError("Error: 'err == cudaSuccess' failed: StandardGpuResources: alloc fail")

    monkeypatch.setattr(index.gpu, "upload_flat", refuse)
    with pytest.raises(
        RequestError, match=rf"index.device=gpu: {NUM} vectors of {DIM} numbers, .* alloc fail"
    ):
        open_index(tmp_path, device="gpu").search(vectors[:2], 3)
