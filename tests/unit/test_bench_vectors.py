"""The vectors of the index benchmark: the same on every call, with the dimension and the clusters that were made."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import vectors
from benchmarks.vectors import NUM_QUERIES, VectorSet, describe, draw_clusters, draw_gaussians, open_vectors
from index.base.errors import RequestError


@pytest.mark.parametrize("draw", [draw_clusters, draw_gaussians])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(draw, monkeypatch) -> None:
    monkeypatch.setattr(vectors, "BLOCK", 64)
    few, many = draw(100), draw(300)
    assert few[0].dtype == np.float32
    assert few[1].dtype == np.int64
    for part, whole in zip(few, many, strict=True):
        assert np.array_equal(part, whole[:100])
    assert not np.array_equal(many[0][:64], many[0][64:128])
    assert not np.array_equal(few[0], draw(100, seed=1)[0])


def made(points: np.ndarray) -> VectorSet:
    labels = np.zeros(len(points), np.int64)
    return VectorSet("test", points[500:], labels[500:], points[:500], labels[:500])


@pytest.mark.parametrize("inner", [2, 6])
def test_the_intrinsic_dimension_is_that_of_the_surface(inner: int) -> None:
    rng = np.random.default_rng(0)
    flat = rng.uniform(size=(4500, inner)) @ rng.standard_normal((inner, 24))
    shape = describe(made(flat.astype(np.float32)), sample=500)
    assert shape.two_nn == pytest.approx(inner, rel=0.25)
    assert shape.mle == pytest.approx(inner, rel=0.25)


def test_separate_clusters_are_told_from_one_cloud() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4500, 16))
    apart = describe(
        made((100 * rng.standard_normal((40, 16))[rng.integers(0, 40, 4500)] + noise).astype(np.float32))
    )
    cloud = describe(made(noise.astype(np.float32)))
    assert apart.own_cluster > 2 * cloud.own_cluster
    assert apart.examined < cloud.examined / 4


def test_queries_are_not_in_the_index_and_do_not_depend_on_its_size() -> None:
    small, large = open_vectors("clusters", 1000), open_vectors("clusters", 3000)
    assert small.vectors.shape == (1000, 64)
    assert small.queries.shape == (NUM_QUERIES, 64)
    assert np.array_equal(small.queries, large.queries)
    assert np.array_equal(small.vectors, large.vectors[:1000])
    assert len(np.unique(np.concatenate([small.queries, small.vectors]), axis=0)) == NUM_QUERIES + 1000


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RequestError, match="no set of vectors 'words'; there are omniglot, photographs, clusters"
    ):
        open_vectors("words", 1000)
    with pytest.raises(RequestError, match=r"need omniglot.tar.gz; FSL_DIST_TEST_DATA must name the folder"):
        open_vectors("omniglot", 1000, archives=tmp_path, cache=tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
