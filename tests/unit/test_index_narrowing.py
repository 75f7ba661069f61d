"""Candidates that float32 discards are never among the nearest, and a search returns what it returned without that."""

from pathlib import Path

import numpy as np
import pytest

import index.exact.narrowing
from index.config import IndexConfig
from index.exact.costs import Vectors, linear
from index.exact.narrowing import narrow
from index.search import open_index
from index.writing.build import build

METRICS = ("l2", "inner_product", "cosine")
GALLERIES = {
    "spread": lambda rng: rng.standard_normal((900, 24)),
    "many ties": lambda rng: rng.integers(-1, 2, (900, 24)) + 0.5,
    "tight and far": lambda rng: 300 + rng.integers(0, 9, (900, 1)) + 1e-5 * rng.standard_normal((900, 24)),
    "tiny": lambda rng: 1e-25 * rng.standard_normal((900, 24)),
    "huge": lambda rng: 1e16 * rng.standard_normal((900, 24)),
}


def gallery(name: str) -> np.ndarray:
    return np.asarray(GALLERIES[name](np.random.default_rng(3)), np.float32)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", GALLERIES)
def test_no_discarded_candidate_costs_less_than_the_limit(name: str, metric) -> None:
    raw, rng = gallery(name), np.random.default_rng(4)
    vectors = Vectors(raw, metric)
    queries = raw[rng.integers(0, 900, 70)]
    rows = np.stack([rng.permutation(900)[:60] for _ in queries])
    rows[::3, 40:] = -1
    rows[0, 3:] = -1
    kept, limits = narrow(vectors, queries, rows, 5)
    assert kept.shape[1] < 20
    costs = linear(vectors.costs(queries, rows), metric)
    for query in range(len(queries)):
        assert set(kept[query]) <= set(rows[query])
        discarded = (rows[query] >= 0) & ~np.isin(rows[query], kept[query])
        assert (costs[query, discarded] >= limits[query]).all()
    if name == "spread":
        best = np.sort(np.where(rows < 0, np.inf, costs), axis=1)[:, 4]
        assert (best < limits)[1:].mean() > 0.9


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("name", ["spread", "many ties", "huge"])
def test_a_search_by_codes_returns_the_same(tmp_path: Path, monkeypatch, name: str, metric) -> None:
    raw = gallery(name)
    config = IndexConfig(kind="ivf_pq", nlist=4, nprobe=3, pq_m=6, pq_bits=4, k_factor=8, metric=metric)
    folder = build(tmp_path, raw, np.sort(np.arange(900) % 7), config=config)
    narrowed: list[int] = []

    def watch(vectors: Vectors, queries: np.ndarray, rows: np.ndarray, count: int):
        narrowed.append(rows.shape[1])
        return narrow(vectors, queries, rows, count)

    monkeypatch.setattr("index.shard.narrow", watch)
    answers = []
    for least in (0, 1 << 62):
        monkeypatch.setattr(index.exact.narrowing, "_LEAST_NUMBERS", least)
        opened = open_index(folder)
        for options in ({}, {"query_ids": np.arange(40)}, {"other_class": np.full(40, 2)}):
            found = opened.search(raw[:40], 5, **options)
            answers.append((found.ids, found.exact_distances, found.num_missing))
    assert narrowed == [51, 51, 51]
    for (ids, distances, missing), (other_ids, others, other_missing) in zip(
        answers[:3], answers[3:], strict=True
    ):
        assert np.array_equal(ids, other_ids)
        assert np.array_equal(distances, others)
        assert missing == other_missing == 0
