"""Kinds of index: their rules, what they refuse, and that a shard's FAISS index is a function of its input."""

import faiss
import numpy as np
import pytest

from index import kinds
from index.base.errors import ConfigError, VersionError
from index.base.settings import validate
from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build


def gaussian(num: int = 600, dim: int = 12) -> np.ndarray:
    return np.random.default_rng(4).standard_normal((num, dim)).astype(np.float32) + 30


@pytest.mark.parametrize(
    ("options", "dim", "num", "described", "parameters"),
    [
        ({}, 8, 100, "Flat", {}),
        ({"kind": "ivf_flat"}, 256, 200_000, "IVF1789,Flat", {"nprobe": 111, "k_factor": 1}),
        ({"kind": "ivf_flat"}, 256, 1000, "IVF25,Flat", {"nprobe": 1, "k_factor": 1}),
        ({"kind": "ivf_flat"}, 256, 5, "IVF1,Flat", {"nprobe": 1, "k_factor": 1}),
        ({"kind": "ivf_pq", "nprobe": 9}, 256, 200_000, "IVF1789,PQ64x8", {"nprobe": 9, "k_factor": 4}),
        ({"kind": "ivf_pq"}, 30, 1000, "IVF25,PQ6x4", {"nprobe": 1, "k_factor": 4}),
        ({"kind": "ivf_pq", "pq_m": 5, "pq_bits": 6}, 30, 1000, "IVF25,PQ5x6", {"nprobe": 1, "k_factor": 4}),
        ({"kind": "ivf_pq"}, 2, 9, "IVF1,PQ1x1", {"nprobe": 1, "k_factor": 4}),
        ({"kind": "hnsw", "hnsw_m": 16}, 8, 100, "HNSW16,Flat", {"ef_search": 64, "k_factor": 1}),
        (
            {"kind": "factory", "factory": "OPQ4,IVF32,PQ4x4", "k_factor": 7},
            *(16, 1000, "OPQ4,IVF32,PQ4x4", {"nprobe": 2, "k_factor": 7}),
        ),
    ],
)
def test_rules(options, dim, num, described, parameters) -> None:
    config = IndexConfig(**options)
    kinds.check(config, dim, num)
    assert kinds.factory_of(config, dim, num) == described
    assert kinds.parameters_of(config, dim, num) == parameters
    assert 0 < kinds.sample_size(config, dim, num) <= num


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"nlist": 8},
            "index.nlist belongs to index.kind=ivf_flat or index.kind=ivf_pq; this index has index.kind=flat",
        ),
        (
            {"kind": "hnsw", "pq_m": 8},
            "index.pq_m belongs to index.kind=ivf_pq; this index has index.kind=hnsw",
        ),
        ({"kind": "ivf_flat", "factory": "IVF8,Flat"}, "index.factory belongs to index.kind=factory"),
        ({"kind": "factory"}, "index.kind=factory needs index.factory"),
        ({"kind": "ivf_flat", "nlist": -1}, "index.nlist=-1 must be at least 0"),
        ({"kind": "ivf_flat", "nlist": 4, "nprobe": 5}, "index.nprobe=5 is above index.nlist=4"),
        ({"kind": "ivf_pq", "pq_bits": 13}, "index.pq_bits=13 must be at least 0 and at most 12"),
        ({"kind": "hnsw", "hnsw_m": 1}, "index.hnsw_m=1 must be 0 or at least 2 and at most 512"),
        ({"kind": "annoy"}, "index.kind"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        validate(IndexConfig, options, "the arguments", "index")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "ivf_flat", "nlist": 601}, "index.nlist=601 makes 601 clusters of 600 vectors"),
        (
            {"kind": "ivf_pq", "pq_m": 5},
            "index.pq_m=5 does not divide the vectors' dim=12; use one of 1, 2, 3, 4, 6, 12",
        ),
        (
            {"kind": "factory", "factory": "IVF8;Flat"},
            "index.factory=IVF8;Flat is not a valid FAISS factory for dim=12",
        ),
        (
            {"kind": "factory", "factory": "SQ8", "nprobe": 2},
            "index.nprobe=2 does not fit: SQ8 has no clusters",
        ),
        (
            {"kind": "factory", "factory": "IVF8,Flat", "nprobe": 9},
            "index.nprobe=9 does not fit: IVF8,Flat has 8 clusters",
        ),
        (
            {"kind": "factory", "factory": "SQ8", "ef_search": 2},
            "index.ef_search=2 does not fit: SQ8 has no graph",
        ),
        (
            {"kind": "ivf_flat", "nlist": 30, "train_size": 20},
            "index.train_size=20 is too few vectors to find 30 clusters",
        ),
        (
            {"kind": "factory", "factory": "IDMap,Flat"},
            "index.factory=IDMap,Flat cannot add vectors in order",
        ),
    ],
)
def test_settings_that_the_vectors_cannot_have_are_refused(tmp_path, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, gaussian(), np.zeros(600, np.int64), config=IndexConfig(**options))
    assert not (tmp_path / "current").exists()


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "ivf_flat", "nlist": 16},
        {"kind": "ivf_pq", "nlist": 8, "pq_bits": 4},
        {"kind": "hnsw", "ef_construction": 40},
        {"kind": "factory", "factory": "OPQ4,IVF8,PQ4x4"},
    ],
    ids=lambda options: options["kind"],
)
def test_same_input_same_bytes_for_any_number_of_threads(options) -> None:
    config, vectors = IndexConfig(**options), gaussian()
    made, before = [], faiss.omp_get_max_threads()
    try:
        for threads in (1, 2, 3):
            faiss.omp_set_num_threads(threads)
            trained = kinds.train(vectors[::2].copy(), len(vectors), config)
            made.append((trained, bytes(faiss.serialize_index(kinds.fill(trained, vectors, config)))))
            assert faiss.omp_get_max_threads() == threads
    finally:
        faiss.omp_set_num_threads(before)
    assert made[0] == made[1] == made[2]
    assert (made[0][0] == b"") == (config.kind == "hnsw")


def test_empty_shards_are_searched_like_others(tmp_path) -> None:
    vectors = gaussian(5)
    for kind in ("ivf_flat", "ivf_pq", "hnsw"):
        build(tmp_path / kind, vectors, np.zeros(5, np.int64), config=IndexConfig(kind=kind, shards=8))
        found = open_index(tmp_path / kind).search(vectors, 7)
        assert found.ids[:, 0].tolist() == [0, 1, 2, 3, 4]
        assert found.num_missing == 10


def test_a_damaged_faiss_file_is_named(tmp_path) -> None:
    path = build(tmp_path, gaussian(), np.zeros(600, np.int64), config=IndexConfig(kind="hnsw"))
    file = path / "shard-00000.faiss"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(VersionError, match=r"shard-00000.faiss is damaged"):
        open_index(tmp_path)
