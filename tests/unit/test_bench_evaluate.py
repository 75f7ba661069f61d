"""The benchmark's ways to scores: this project's and its peers' give the same."""

import numpy as np
import pytest

from benchmarks.suite import evaluate
from benchmarks.suite.report import BenchOptions
from fsl_dist.data.selection import Selection
from fsl_dist.errors import TrainingError
from fsl_dist.metrics.knn import vote, vote_each

TINY = evaluate.Sizes(
    gallery=300, queries=80, dim=8, classes=5, k_ps=(1, 3), base=4, base_clusters=3, base_test=5, novel=3,
    novel_clusters=2, novel_images=8, novel_test=3, draws=2,
)  # fmt: skip


def test_all_ways_give_the_same_scores(tmp_path):
    for way, ways in (("knn", evaluate._knn_ways(tmp_path, TINY)), ("mca", evaluate._prototype_ways(TINY))):
        found = {name: scores() for name, scores in ways.items()}
        ours = found.pop("fsl-dist")
        for scores in found.values():
            compared = [name for name in scores if not name.startswith("knn/") or name.endswith("@1")]
            assert compared
            assert all(name.startswith(way) for name in compared)
            assert [scores[name] for name in compared] == pytest.approx([ours[name] for name in compared])


def test_a_way_with_other_scores_is_refused():
    ways = {"fsl-dist": lambda: {"acc": 0.5}, "other": lambda: {"acc": 0.6}}
    with pytest.raises(TrainingError, match="do not do the same work"):
        evaluate._time("query", ways, 1, "acc", 1)


def test_the_report_holds_both_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "_SMOKE", TINY)
    report = evaluate.measure(BenchOptions(tmp_path, is_smoke=True, rounds=1))
    assert [len(table.rows) for table in report.tables] == [4, 2]
    assert len(report.targets) == 8


def test_votes_of_all_k_p_are_those_of_each():
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 4, (60, 9))
    distances = np.sort(rng.integers(0, 6, (60, 9)), axis=1).astype(np.float32)
    each = vote_each(labels, distances, (9, 1, 4))
    assert each.tolist() == [vote(labels, distances, k_p).tolist() for k_p in (9, 1, 4)]


def test_a_sorted_selection_needs_no_sort():
    labels, ids = np.array([2, 2, 5, 7, 7, 7]), np.array([3, 9, 1, 0, 4, 8])
    sorted_, any_order = Selection.from_sorted(ids, labels), Selection.from_labels(ids[::-1], labels[::-1])
    for name in ("ids", "labels", "starts"):
        assert getattr(sorted_, name).tolist() == getattr(any_order, name).tolist()
    assert Selection.from_sorted(ids[:0], labels[:0]).starts.tolist() == [0]
