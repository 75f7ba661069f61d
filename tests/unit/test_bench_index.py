"""The index benchmark: all ways find the same neighbours, and the smallest sufficient effort is chosen."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.suite.index import _choose, _exact, _recall
from benchmarks.suite.peers_index import WAYS, built
from benchmarks.vectors import draw_clusters


@pytest.mark.parametrize("name", WAYS)
def test_every_way_finds_nearly_all_with_its_largest_effort(name: str, tmp_path: Path) -> None:
    way = WAYS[name]
    if not way.is_installed:
        pytest.skip(f"{way.module} is not installed")
    points, labels = draw_clusters(1100)
    queries, vectors = points[:50], points[50:]
    assert built(name, vectors, np.sort(labels[50:]), tmp_path) > 0
    opened = way.open(tmp_path, vectors)
    assert _recall(opened.search(queries, 10, opened.efforts[-1]), _exact(vectors, queries)) > 0.98
    if opened.filtered is not None:
        found = opened.filtered(queries, 10, opened.efforts[-1], 400, 900)
        assert ((found >= 400) & (found < 900)).all()
        assert _recall(found, _exact(vectors[400:900], queries) + 400) > 0.9


def test_the_smallest_sufficient_effort_is_chosen_and_measured_on_other_queries() -> None:
    true = np.arange(20).reshape(2, 10)

    def search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        return np.where(np.arange(10) < effort + queries[0, 0], true, -1)

    queries = np.zeros((2, 3)), -np.ones((2, 3))
    chosen = _choose((1, 2, 4, 8, 9, 10), search, 0.75, queries, (true, true))
    assert chosen is not None
    assert (chosen.effort, chosen.recall) == (8, 0.7)
    assert _choose((1, 2), search, 0.75, queries, (true, true)) is None
