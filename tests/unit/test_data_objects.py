"""Data sets at s3://, against a real server on loopback."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from dataset_files import write_images

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError
from index.base.errors import RequestError
from index.base.object_cache import place_of, working_folder
from index.base.object_store import Bucket


def bucket_at(place: str) -> tuple[Bucket, str]:
    found = place_of(working_folder(place))
    assert found is not None
    return found.bucket, found.key


@pytest.fixture
def packed(s3: str, digits_source: Path) -> str:
    pack(digits_source, f"{s3}/digits", PackOptions(shard_size_mb=1, processes=1))
    return f"{s3}/digits"


@pytest.fixture(scope="module")
def digits_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("source"), {"a": 12, "b": 12}, size=(8, 8))


def test_a_data_set_reads_the_same_as_on_disk(
    packed: str, digits_source: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    pack(digits_source, tmp_path / "disk", PackOptions(shard_size_mb=1, processes=1))
    elsewhere("b")
    on_disk, remote = Catalogue.open(tmp_path / "disk"), Catalogue.open(packed)
    assert remote.fingerprint == on_disk.fingerprint
    ids = np.random.default_rng(1).permutation(24)
    store = ShardStore(remote)
    store.check_files()
    assert store.read(ids) == ShardStore(on_disk).read(ids)
    assert not list(working_folder(packed).rglob("*.tar"))  # shards are read where they are


def test_a_shard_that_is_gone_or_another_is_told(packed: str) -> None:
    bucket, key = bucket_at(packed)
    store = ShardStore(Catalogue.open(packed))
    bucket.put(f"{key}/shards/shard-000000.tar", b"short")
    with pytest.raises(DataError, match="has 5 bytes, the catalogue says"):
        store.check_files()
    bucket.delete([f"{key}/shards/shard-000000.tar"])
    for read in (store.check_files, lambda: store.read(np.arange(3))):
        with pytest.raises(DataError, match=r"shard-000000\.tar' is missing"):
            read()


def test_a_place_that_is_taken_is_refused_and_a_killed_packs_shards_are_taken_over(
    packed: str, s3: str, digits_source: Path, tmp_path: Path
) -> None:
    options = PackOptions(shard_size_mb=1, processes=1)
    with pytest.raises(RequestError, match="is not empty"):
        pack(digits_source, packed, options)
    bucket, key = bucket_at(packed)
    bucket.delete([f"{key}/catalogue/000001.arrow"])
    pack(digits_source, packed, options)
    bucket.delete([f"{key}/catalogue/000001.arrow"])
    with pytest.raises(RequestError, match="exists with other bytes"):
        pack(digits_source, packed, PackOptions(shard_size_mb=1, processes=1, seed=5))
    with pytest.raises(RequestError, match="pack reads images from a disk"):
        pack(f"{s3}/images", tmp_path / "out", options)


def test_versions_are_added_from_anywhere(
    packed: str, digits_source: Path, tmp_path: Path, elsewhere: Callable[[str], None]
) -> None:
    import shutil

    elsewhere("b")
    more = tmp_path / "more"
    shutil.copytree(digits_source, more)
    for path in list(more.rglob("*.png")):
        path.rename(path.with_name(f"more-{path.name}"))
    append(more, packed, PackOptions(processes=1))
    elsewhere("c")
    resplit(packed, ResplitOptions(split="classes", fractions=(0.5, 0.0, 0.5)))
    catalogue = Catalogue.open(packed)
    assert (catalogue.version, catalogue.num_samples) == (3, 48)
    assert len(ShardStore(catalogue).read(np.arange(48))) == 48
    assert Catalogue.open(packed, 1).num_samples == 24
