"""Reads from an object store whose bytes change on the way: read again, and never taken for a damaged image."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_images
from faulty_proxy import FaultyProxy

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.damage import SoundReader
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.store import ShardStore
from index import open_index
from index.base.object_cache import place_of, working_folder
from index.base.object_store import Bucket
from index.writing.build import build

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def packed(s3: str, tmp_path: Path) -> str:
    source = write_images(tmp_path / "source", {"a": 60, "b": 60}, size=(8, 8))
    pack(source, f"{s3}/data", PackOptions(shard_size_mb=1, processes=1))
    return f"{s3}/data"


@pytest.fixture
def faulty(s3_server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., FaultyProxy]]:
    """Put a proxy before the store."""
    proxies: list[FaultyProxy] = []

    def begin(**faults: float) -> FaultyProxy:
        proxies.append(FaultyProxy(s3_server.address, **faults))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxies[-1].address)
        return proxies[-1]

    yield begin
    for proxy in proxies:
        proxy.close()


def bucket_at(place: str) -> tuple[Bucket, str]:
    found = place_of(working_folder(place))
    assert found is not None
    return found.bucket, found.key


@pytest.mark.parametrize("changed", [0.05, 0.25])
def test_images_that_change_on_the_way_are_read_again(
    packed: str, tmp_path: Path, faulty: Callable[..., FaultyProxy], changed: float
) -> None:
    wanted = [bytes(sample) for sample in ShardStore(Catalogue.open(packed)).read(np.arange(120))]
    proxy = faulty(changed=changed, refused=0.1, seed=3)
    catalogue = Catalogue.open(packed)
    reader = SoundReader(catalogue, ShardStore(catalogue, max_gap=0), max_pixels=10**6, max_bad_fraction=0.0)
    order = np.random.default_rng(0).permutation(120)
    for ids in np.array_split(order, 60):
        batch = reader.read(ids)
        assert [bytes(sample) for sample in batch.samples] == [wanted[i] for i in ids]
        assert batch.ids.tolist() == ids.tolist()
    assert reader.bad_samples == {}
    assert proxy.num_changed >= 3


def test_what_is_damaged_in_the_store_is_named_after_two_equal_reads(packed: str) -> None:
    catalogue = Catalogue.open(packed)
    bucket, key = bucket_at(packed)
    name = f"{key}/{catalogue.shards[0].name}"
    found = bucket.get(name)
    assert found is not None
    where = catalogue.locate([7])
    data = bytearray(found[0])
    data[int(where.offset[0]) + 20] ^= 0xFF
    bucket.put(name, bytes(data))
    _, mismatched = ShardStore(catalogue).read_compared(np.arange(20))
    assert mismatched == [7]


def test_whole_objects_that_change_on_the_way_are_read_again(
    s3: str, tmp_path: Path, faulty: Callable[..., FaultyProxy]
) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((500, 16)).astype(np.float32)
    build(Path(working_folder(f"{s3}/index")), vectors, rng.integers(0, 5, 500))
    proxy = faulty(changed=0.25, seed=1)
    for again in range(4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FSL_DIST_CACHE", str(tmp_path / f"cache-{again}"))
            index = open_index(working_folder(f"{s3}/index"))
            np.testing.assert_array_equal(np.sort(index.ids), np.arange(500))
            found = index.vectors(0, 500)
            np.testing.assert_array_equal(np.sort(found[:, 0]), np.sort(vectors[:, 0]))
    assert proxy.num_changed >= 3


def test_tags_that_are_no_digests_are_known_after_two_equal_reads(s3: str, monkeypatch) -> None:
    """Of encrypted objects."""
    from index.base import object_store

    bucket, key = bucket_at(s3)
    bucket.put(f"{key}/a", b"some bytes")
    tag = object_store._tag
    monkeypatch.setattr(object_store, "_tag", lambda meta: object_store.Tag("f" * 32, tag(meta).version))
    fresh = Bucket(bucket._endpoint, "s3", bucket.url.removeprefix("s3://"))
    assert fresh.get(f"{key}/a") == (b"some bytes", object_store.Tag("f" * 32))
    assert not fresh._tags_are_digests
