"""Tuning: the smallest parameters that reach a recall, stored in the manifest alone."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from cluster.commands.index import index_group
from index import versions
from index.base.errors import RequestError
from index.config import IndexConfig
from index.search import open_index
from index.tune import measure_recall, tune
from index.writing.build import build


def gallery(num: int = 1200, dim: int = 8) -> np.ndarray:
    return np.random.default_rng(6).standard_normal((num, dim)).astype(np.float32)


def recall_of(opened, vectors, k, parameters) -> float:
    """Share of the true neighbours found, by plain loops over sets."""
    ids = np.arange(len(vectors))
    found = opened.search(vectors, k, query_ids=ids, parameters=parameters).ids
    exact = ((vectors[:, None].astype(np.float64) - vectors[None]) ** 2).sum(2)
    np.fill_diagonal(exact, np.inf)
    true = np.argsort(exact, axis=1)[:, :k]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(found, true, strict=True)]))


def test_the_smallest_nprobe_that_reaches_the_recall(tmp_path) -> None:
    vectors = gallery()
    build(
        tmp_path, vectors, np.zeros(1200, np.int64), config=IndexConfig(kind="ivf_flat", nlist=24, shards=2)
    )
    opened = open_index(tmp_path)
    tuning = tune(opened, 0.9, 5, sample=1200)
    nprobe = tuning.chosen.parameters["nprobe"]
    assert tuning.is_reached
    assert 1 < nprobe < 24
    assert tuning.chosen.recall == pytest.approx(recall_of(opened, vectors, 5, {"nprobe": nprobe}), abs=1e-9)
    assert recall_of(opened, vectors, 5, {"nprobe": nprobe - 1}) < 0.9


def test_the_recall_of_an_index_as_it_is(tmp_path) -> None:
    vectors = gallery()
    config = IndexConfig(kind="ivf_flat", nlist=24, shards=2)
    build(tmp_path / "ivf", vectors, np.zeros(1200, np.int64), config=config)
    opened = open_index(tmp_path / "ivf")
    own = opened.parameters
    assert measure_recall(opened, 5, 1200) == pytest.approx(recall_of(opened, vectors, 5, own), abs=1e-9)
    build(tmp_path / "flat", vectors, np.zeros(1200, np.int64), config=IndexConfig(kind="flat"))
    assert measure_recall(open_index(tmp_path / "flat"), 5, 50) == 1.0
    with pytest.raises(RequestError, match="leaves nothing to measure"):
        measure_recall(opened, 5, 0)


def test_the_verb_stores_what_it_found(tmp_path) -> None:
    vectors = gallery()
    path = build(tmp_path / "i", vectors, np.zeros(1200, np.int64), config=IndexConfig(kind="hnsw", hnsw_m=4))
    before = versions.read_manifest(path)
    called = CliRunner().invoke(
        index_group, ["tune", str(tmp_path / "i"), "--recall", "0.9", "--k", "5", "--json"]
    )
    assert called.exit_code == 0
    told = json.loads(called.stdout)
    after = versions.read_manifest(path)
    assert told["reached"]
    assert after.parameters == told["parameters"] == open_index(tmp_path / "i").parameters
    assert (after.files, after.created, after.version) == (before.files, before.created, before.version)
    versions.check_files(path, after, verify=True)


def test_a_recall_out_of_reach_is_said(tmp_path) -> None:
    vectors = gallery()
    config = IndexConfig(kind="factory", factory="LSH")
    build(tmp_path / "i", vectors, np.zeros(1200, np.int64), config=config)
    called = CliRunner().invoke(
        index_group, ["tune", str(tmp_path / "i"), "--recall", "1", "--k", "10", "--sample", "200"]
    )
    assert called.exit_code == 1
    assert "recall@10 1 is not reached; the best is 0." in called.stdout
    assert open_index(tmp_path / "i").parameters == {"k_factor": 64}


def test_flat_has_nothing_to_tune(tmp_path) -> None:
    build(tmp_path / "i", gallery(9), np.zeros(9, np.int64))
    called = CliRunner().invoke(index_group, ["tune", str(tmp_path / "i")])
    assert called.exit_code == 0
    assert "is flat: it finds the true neighbours and has nothing to tune" in called.stdout
    with pytest.raises(RequestError, match="nothing to tune"):
        tune(open_index(tmp_path / "i"), 0.9, 1)


def test_numbers_that_make_no_sense_are_refused(tmp_path) -> None:
    build(tmp_path, gallery(99), np.zeros(99, np.int64), config=IndexConfig(kind="ivf_flat"))
    with pytest.raises(RequestError, match=r"recall=1\.5 must be above 0 and at most 1"):
        tune(open_index(tmp_path), 1.5, 1)
