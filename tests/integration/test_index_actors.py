"""Shards as Ray actors: the same answers as in one process, and a dead actor is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.local import ray_session
from index.build import build
from index.client import open_ray_index
from index.config import IndexConfig
from index.errors import PartialSearchError, RequestError, VersionError
from index.search import open_index

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def _ray() -> Iterator[None]:
    with ray_session(2):
        yield


def long_tail(metric: str, folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    labels = np.minimum(rng.geometric(0.15, 600), 15)
    vectors = rng.standard_normal((600, 12)).astype(np.float32)
    ids = rng.permutation(2000)[:600]
    build(folder, vectors, labels, ids, IndexConfig(metric=metric, shards=3))
    return vectors, labels, ids


@pytest.mark.usefixtures("_ray")
@pytest.mark.parametrize("metric", ["l2", "inner_product"])
def test_actors_answer_as_one_process_does(tmp_path: Path, metric: str) -> None:
    vectors, labels, ids = long_tail(metric, tmp_path)
    local = open_index(tmp_path)
    with open_ray_index(tmp_path, num_actors=2, num_cpus=0.5) as remote:
        for filter_name in (None, "same_class", "other_class"):
            options = {"filter": filter_name, "query_labels": labels, "query_ids": ids}
            expected, found = local.search(vectors, 90, **options), remote.search(vectors, 90, **options)
            assert np.array_equal(found.ids, expected.ids)
            assert np.array_equal(found.distances, expected.distances)
            assert found.num_missing == expected.num_missing
        mined = remote.neighbours(vectors, labels, ids, 3, 2)
        assert np.array_equal(mined.other_ids, local.neighbours(vectors, labels, ids, 3, 2).other_ids)
    with pytest.raises(RequestError, match="is closed"):
        remote.search(vectors[:1], 1)


@pytest.mark.usefixtures("_ray")
def test_a_dead_actor_is_an_error_that_names_its_shards(tmp_path: Path) -> None:
    import ray

    vectors, _, _ = long_tail("l2", tmp_path)
    with open_ray_index(tmp_path, num_actors=3, num_cpus=0.5) as remote:
        ray.kill(remote._actors[1])
        with pytest.raises(PartialSearchError, match=r"serving shard-00001\.npy of .* did not answer"):
            remote.search(vectors[:4], 3)


@pytest.mark.usefixtures("_ray")
def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    long_tail("l2", tmp_path)
    with pytest.raises(RequestError, match="num_actors=4 must be between 1 and the 3 shards"):
        open_ray_index(tmp_path, num_actors=4)
    with pytest.raises(PartialSearchError, match=r"no actor for .* was ready within 2 s"):
        open_ray_index(tmp_path, num_actors=3, num_cpus=2, timeout_s=2)
    with pytest.raises(VersionError, match="holds no published index"):
        open_ray_index(tmp_path / "none", num_actors=1)
