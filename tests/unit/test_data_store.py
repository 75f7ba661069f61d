"""Byte ranges: merged where they should be, and the bytes are the files' bytes."""

import threading

import numpy as np
import pytest
from dataset_files import write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.inspection import describe, find_damage, summarise
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.store import ShardStore, coalesce
from fsl_dist.errors import DataError


@settings(max_examples=80, deadline=None)
@given(
    places=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 12)), max_size=25),
    max_gap=st.integers(0, 8),
)
def test_coalesced_ranges_cover_exactly_what_is_asked(places, max_gap):
    shard, offset, size = np.array(places, dtype=np.int64).reshape(-1, 3).T
    ranges = coalesce(shard, offset, size, max_gap)
    wanted = {(s, byte) for s, o, n in places for byte in range(o, o + n)}
    # oracle: walk the wanted bytes of a shard, a gap above max_gap starts a new range
    expected = []
    for s, byte in sorted(wanted):
        if expected and expected[-1][0] == s and byte - expected[-1][2] <= max_gap:
            expected[-1][2] = byte + 1
        else:
            expected.append([s, byte, byte + 1])
    found = np.stack([ranges.shard, ranges.start, ranges.stop], axis=1).tolist()
    assert found == expected
    for (s, o, n), index in zip(places, ranges.range_of_sample, strict=True):
        assert found[index][0] == s
        assert found[index][1] <= o <= o + n <= found[index][2]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """36 noisy images of 3 classes in several shards; (data set, source)."""
    root = tmp_path_factory.mktemp("store")
    write_images(root / "src", dict.fromkeys("abc", 12), size=(150, 200), kind="BMP")
    pack(root / "src", root / "out", PackOptions(shard_size_mb=1))
    return root / "out", root / "src"


def files_of(catalogue, source, ids):
    return [(source / f"{key}.bmp").read_bytes() for key in catalogue.keys(ids)]


@pytest.mark.parametrize("options", [{}, {"max_open": 1}, {"max_gap": 0}, {"threads": 3, "max_gap": 0}])
def test_reads_equal_the_files_in_any_order_with_repeats(packed, options):
    catalogue = Catalogue.open(packed[0])
    assert len(catalogue.shards) > 2
    store = ShardStore(catalogue, **options)
    ids = np.random.default_rng(3).integers(0, 36, 90)
    assert [bytes(sample) for sample in store.read(ids)] == files_of(catalogue, packed[1], ids)
    assert store.read(np.array([], dtype=np.int64)) == []
    store.close()
    assert bytes(store.read(ids[:1])[0]) == files_of(catalogue, packed[1], ids[:1])[0]


def test_threads_may_share_a_store_that_keeps_one_shard_open(packed):
    catalogue = Catalogue.open(packed[0])
    store = ShardStore(catalogue, max_open=1)
    expected = files_of(catalogue, packed[1], np.arange(36))
    failures = []

    def read_repeatedly(seed):
        draw = np.random.default_rng(seed)
        for _ in range(30):
            ids = draw.integers(0, 36, 6)
            if [bytes(sample) for sample in store.read(ids)] != [expected[i] for i in ids]:
                failures.append(seed)

    threads = [threading.Thread(target=read_repeatedly, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.fixture
def damaged(packed, tmp_path):
    """A copy of the data set with one byte of sample 7 changed."""
    for file in packed[0].rglob("*.*"):
        copy = tmp_path / file.relative_to(packed[0])
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(file.read_bytes())
    catalogue = Catalogue.open(tmp_path)
    where = catalogue.locate([7])
    shard = tmp_path / catalogue.shards[where.shard[0]].name
    data = bytearray(shard.read_bytes())
    data[where.offset[0] + 100] ^= 1
    shard.write_bytes(data)
    return catalogue


def test_a_changed_byte_is_found(damaged):
    key = damaged.keys([7])[0]
    store = ShardStore(damaged)
    with pytest.raises(
        DataError, match=rf"shard '.*tar': sample '{key}' \(id 7\) does not match its checksum"
    ):
        store.read(np.array([6, 7]))
    assert len(ShardStore(damaged, check_reads=False).read(np.array([7]))) == 1
    assert [sample.path for sample in find_damage(damaged)] == [key]


def test_a_missing_or_cut_shard_is_told(damaged):
    first, second = (damaged.folder / shard.name for shard in damaged.shards[:2])
    first.unlink()
    second.write_bytes(second.read_bytes()[:-600])
    store = ShardStore(damaged)
    where = damaged.locate(np.arange(36)).shard
    with pytest.raises(DataError, match=r"cannot be opened \(No such file or directory\)"):
        store.read(np.flatnonzero(where == 0))
    with pytest.raises(DataError, match=r"the catalogue says .* changed or cut after packing"):
        store.read(np.flatnonzero(where == 1))


def test_the_summary_counts(packed):
    catalogue = Catalogue.open(packed[0])
    summary = summarise(catalogue)
    assert find_damage(catalogue) == []
    assert (summary.num_samples, summary.num_classes, summary.width) == (36, 3, (200, 200.0, 200))
    assert summary.class_counts == {"a": 12, "b": 12, "c": 12}
    train = summary.splits["train"]
    assert (train.num_samples, train.num_classes, train.tail.largest, train.tail.ratio) == (27, 3, 9, 1.0)
    text = describe(summary)
    assert "train       27 samples of 3 classes, 9 … 9 per class" in text
