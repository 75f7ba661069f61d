"""Damage while reading: named once, replaced by the same sound sample everywhere, and refused where it is too much."""

import logging
import shutil
import struct

import numpy as np
import pytest
import torch
from dataset_files import encode, write_images
from hypothesis import given, settings
from hypothesis import strategies as st

from fsl_dist.data.augmentation.parameters import draw_augment
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder
from fsl_dist.data.images import prepare_encoded
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.loader import Loader, Request, open_source
from fsl_dist.data.pixels import MAX_PIXELS, declared_size, find_excess_pixels
from fsl_dist.data.resize import StoredSize
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """3 classes of 60 noisy bitmaps of one size, in shards of about 25."""
    root = tmp_path_factory.mktemp("damage")
    write_images(root / "src", dict.fromkeys("abc", 60), size=(110, 120), kind="BMP")
    pack(root / "src", root / "out", PackOptions(shard_size_mb=1))
    return root / "out"


@pytest.fixture
def dataset(packed, tmp_path):
    """A copy to damage."""
    shutil.copytree(packed, tmp_path / "data")
    return tmp_path / "data"


def open_images(dataset, **changes):
    config = DataConfig(dataset=str(dataset), decoder="torchvision", image_size=16, resize_size=18, **changes)
    return open_source(config, seed=3)


def overwrite(dataset, ids, place=100, value=None):
    """Flip a bit of each sample's byte at `place`, or write `value` there."""
    catalogue = Catalogue.open(dataset)
    where = catalogue.locate(ids)
    for shard, offset in zip(where.shard.tolist(), where.offset.tolist(), strict=True):
        with open(dataset / catalogue.shards[shard].name, "r+b") as file:
            file.seek(offset + place)
            old = file.read(1)[0]
            file.seek(offset + place)
            file.write(value or bytes([old ^ 1]))


def ids_of(dataset, split, label):
    catalogue = Catalogue.open(dataset)
    return [i for i in catalogue.split_ids(split) if catalogue.labels[i] == label]


def pixels_with(dataset, content_ids, ids, epoch):
    """Oracle: the content of `content_ids` with the augmentation of `ids`, from an undamaged data set."""
    config = DataConfig(dataset=str(dataset), decoder="torchvision", image_size=16, resize_size=18)
    encoded = ShardStore(Catalogue.open(dataset)).read(np.asarray(content_ids))
    augment = None if epoch is None else draw_augment(config, 3, epoch, np.asarray(ids))
    return make_decoder(config).decode(encoded, augment)


def test_a_flipped_bit_is_named_once_and_the_next_of_its_class_stands_in(packed, dataset, caplog):
    bad = ids_of(dataset, "train", 1)[4]
    overwrite(dataset, [bad])
    source = open_images(dataset)
    ids = np.array([bad + 3, bad, 0, bad])
    for epoch in (0, 1, None):
        found = source.fetch(ids, epoch)
        assert found.shape == (4, 3, 16, 16)
        assert torch.equal(found, pixels_with(packed, [bad + 3, bad + 1, 0, bad + 1], ids, epoch))
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    key = source.catalogue.keys([bad])[0]
    assert len(said) == 1
    assert f"tar': sample '{key}' (id {bad}) does not match its checksum; the next intact sample" in said[0]


def test_the_stand_in_stays_in_class_and_split_whatever_was_read_before(packed, dataset):
    """A row of bad ones at the end of a class wraps around to the first of its split."""
    members = ids_of(dataset, "train", 0)
    bad = [*members[-3:], members[0]]
    overwrite(dataset, bad)
    for order in (bad, bad[::-1], bad[1:3] + bad[:1] + bad[3:]):
        source = open_images(dataset, max_bad_fraction=0.03)
        single = torch.cat([source.fetch(np.array([i]), None) for i in order])
        together = open_images(dataset, max_bad_fraction=0.03).fetch(np.array(order), None)
        assert torch.equal(single, together)
        assert torch.equal(together, pixels_with(packed, [members[1]] * 4, order, None))


def test_every_sample_of_an_epoch_is_served_by_the_loader(dataset):
    overwrite(dataset, [3])
    source = open_images(dataset)
    batches = np.array_split(np.arange(180), 12)
    loaded = [images for _, images in Loader(source, (Request(ids, 0) for ids in batches))]
    assert [len(images) for images in loaded] == [len(ids) for ids in batches]


def test_more_than_the_allowed_fraction_ends_the_run(dataset):
    overwrite(dataset, [10, 70, 130])  # 3 of 180; 1 % allows 1
    source = open_images(dataset)
    source.fetch(np.array([10, 11]), 0)
    with pytest.raises(DataError) as caught:
        source.fetch(np.array([70, 130]), 0)
    said = str(caught.value)
    assert "2 of 180 samples of " in said
    assert "more than data.max_bad_fraction=0.01 allows (1)" in said
    for sample_id in (10, 70):
        assert f"sample '{source.catalogue.keys([sample_id])[0]}' (id {sample_id})" in said
    assert "\n" not in said
    open_images(dataset, max_bad_fraction=0.02).fetch(np.array([10, 70, 130]), 0)
    with pytest.raises(DataError, match=r"1 of 180 .*max_bad_fraction=0 allows \(0\)"):
        open_images(dataset, max_bad_fraction=0.0).fetch(np.array([10]), 0)


def test_a_class_without_a_sound_sample_is_told(dataset):
    members = ids_of(dataset, "val", 2)
    overwrite(dataset, members)
    with pytest.raises(DataError, match=rf"class 'c': all {len(members)} samples of one split are bad"):
        open_images(dataset, max_bad_fraction=1.0).fetch(np.array(members[:1]), 0)


def test_an_image_that_the_decoder_refuses_is_replaced_too(packed, dataset):
    overwrite(dataset, [20, 21], place=0, value=b"nothing that is an image")
    source = open_images(dataset, check_reads=False, max_bad_fraction=0.02)
    ids = np.array([19, 20, 21])
    assert torch.equal(source.fetch(ids, 0), pixels_with(packed, [19, 22, 22], ids, 0))
    assert torch.equal(source.fetch(ids, 0), pixels_with(packed, [19, 22, 22], ids, 0))


def test_shards_that_are_missing_cut_or_longer_are_found_at_opening(dataset):
    first, second, third = (dataset / shard.name for shard in Catalogue.open(dataset).shards[:3])
    with open(third, "ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match=rf"'{third}' has \d+ bytes, the catalogue says .* is another file"):
        open_images(dataset)
    second.write_bytes(second.read_bytes()[:-600])
    with pytest.raises(DataError, match=f"'{second}' has"):
        open_images(dataset)
    first.unlink()
    with pytest.raises(DataError, match=rf"'{first}' cannot be opened \(No such file or directory\)"):
        open_images(dataset)


def test_a_shard_in_the_place_of_another_is_told_at_its_first_read(dataset):
    first, second = (dataset / shard.name for shard in Catalogue.open(dataset).shards[:2])
    assert first.stat().st_size == second.stat().st_size
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    source = open_images(dataset, max_bad_fraction=1.0)
    with pytest.raises(DataError, match=rf"shard '({first}|{second})' is not the file that the catalogue"):
        source.fetch(np.arange(180), 0)


def declare(width, height):
    """A small PNG whose header declares another size."""
    data = bytearray(encode(np.zeros((4, 4))))
    data[16:24] = struct.pack(">II", width, height)
    return bytes(data)


def test_a_decompression_bomb_is_not_decoded(tmp_path, packed, monkeypatch):
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(declare(60_000, 50_000))
    monkeypatch.setattr("fsl_dist.data.images.decode_turned", lambda *_: pytest.fail("decoded"))
    monkeypatch.setattr("fsl_dist.data.decode_torchvision.open_upright", lambda *_: pytest.fail("decoded"))
    said = prepare_encoded(bomb.read_bytes(), str(bomb), StoredSize())
    assert said == f"declares 60000 × 50000 pixels, more than the {MAX_PIXELS} allowed; not decoded"
    with pytest.raises(
        DataError, match=r"1 of 180 .* declares 120 × 110 pixels, more than the 13199 allowed"
    ):
        open_images(packed, max_pixels=13_199, max_bad_fraction=0.0).fetch(np.array([5]), 0)


def test_a_bomb_among_others_is_replaced(tmp_path):
    for name in "ab":
        (tmp_path / "src" / name).mkdir(parents=True)
        for number in range(40):
            side = 40 if (name, number) == ("a", 7) else 20
            (tmp_path / "src" / name / f"{number:02}.png").write_bytes(encode(np.full((side, side), number)))
    (tmp_path / "src" / "a" / "bomb.png").write_bytes(declare(2**31 - 1, 2**31 - 1))
    report = pack(tmp_path / "src", tmp_path / "out", PackOptions(fractions=(1.0, 0.0, 0.0)))
    assert [bad.path for bad in report.bad_samples] == ["a/bomb.png"]
    found = open_images(tmp_path / "out", max_pixels=400, max_bad_fraction=0.02).fetch(np.arange(80), None)
    assert torch.equal(found[7], found[8])
    assert not torch.equal(found[6], found[7])


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"]),
    width=st.integers(1, 90),
    height=st.integers(1, 90),
)
def test_the_declared_size_is_the_images(kind, width, height):
    data = encode(np.zeros((height, width, 3)), kind)
    assert declared_size(data) == declared_size(memoryview(data)) == (width, height)
    assert find_excess_pixels(data, width * height) is None
    assert find_excess_pixels(data, width * height - 1) is not None


def test_a_frame_header_is_found_behind_thumbnails_fill_and_rubbish():
    thumbnail = encode(np.zeros((8, 8, 3)), "JPEG")
    data = encode(np.zeros((50, 70, 3)), "JPEG", progressive=True)
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    for between in (b"", segment, b"\xff\xff\xff", segment + b"rubbish", segment + b"\x00\xff\xd0" * 3):
        assert declared_size(data[:2] + between + data[2:]) == (70, 50)
    for cut in range(len(data[: data.index(b"\xff\xc2")])):
        assert declared_size(data[:cut]) is None
    assert declared_size(b"") is None


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"max_bad_fraction": 1.5}, "data.max_bad_fraction=1.5 must be at least 0 and at most 1"),
        ({"max_pixels": 0}, "data.max_pixels=0 must be at least 1 and at most 178956970"),
        ({"max_pixels": 2 * MAX_PIXELS}, "must be at least 1 and at most 178956970"),
    ],
)
def test_the_limits_are_checked(change, text):
    with pytest.raises(ConfigError, match=text):
        DataConfig(**change)
