"""Shards that are joined, cut, empty, compressed or no tar files: what is sound is adopted, the rest is named and counted."""

import bz2
import gzip
import io
import lzma
import os
import re
import tarfile

import pytest
from commands import cli_of
from dataset_files import encode_noise, read_images

import fsl_dist
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.inspection import describe, find_damage, summarise
from fsl_dist.errors import DataError


def tar_of(first, number=4, labels="ab", kind=tarfile.USTAR_FORMAT):
    """A shard of samples that are numbered from `first`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
        for sample in range(first, first + number):
            for name, data in (
                (f"{sample:06d}.png", encode_noise(sample)),
                (f"{sample:06d}.cls", labels[sample % 2].encode()),
            ):
                add(tar, name, data)
    return buffer.getvalue()


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def offset_of(tar, number):
    with tarfile.open(fileobj=io.BytesIO(tar)) as opened:
        return opened.getmembers()[number].offset


ONE, TWO, THREE = tar_of(0), tar_of(10), tar_of(20, kind=tarfile.PAX_FORMAT)
FLIPPED = bytearray(TWO)
FLIPPED[offset_of(TWO, 4) + 1] ^= 1

# Name of a second shard, its content, how many of its samples are sound, how often it is named, and as what.
KINDS = {
    "sound": ("b.tar", TWO, 4, 0, ""),
    "upper case": ("b.TAR", TWO, 4, 0, ""),
    "joined": ("b.tar", TWO + THREE, 8, 0, ""),
    "joined without end marks": ("b.tar", TWO[: offset_of(TWO, 7) + 1024] + THREE, 8, 0, ""),
    "joined, the second cut": ("b.tar", TWO + THREE[: offset_of(THREE, 4)], 6, 1, "is cut: it ends at byte"),
    "joined with text": ("b.tar", TWO + b"end of file\n", 4, 1, "no archive follows its end mark"),
    "cut in a member": ("b.tar", TWO[: offset_of(TWO, 4) + 600], 2, 1, "is cut: '000012.png' reaches beyond"),
    "cut between samples": ("b.tar", TWO[: offset_of(TWO, 4)], 2, 1, "without the end mark"),
    "cut in a sample": ("b.tar", TWO[: offset_of(TWO, 5)], 2, 2, "without the end mark|has no label"),
    "cut in a header": ("b.tar", TWO[: offset_of(TWO, 4) + 300], 2, 1, "inside a header"),
    "cut in the end mark": ("b.tar", TWO[: offset_of(TWO, 7) + 1024 + 512], 4, 1, "inside its end mark"),
    "of a killed download": ("b.tar", TWO[: offset_of(TWO, 4)] + bytes(2 << 20), 2, 1, "unfinished download"),
    "bad header": ("b.tar", bytes(FLIPPED), 2, 1, "bad checksum"),
    "zero bytes": ("b.tar", b"", 0, 1, "is empty: it has 0 bytes"),
    "zeros": ("b.tar", bytes(10240), 0, 1, "is empty: a tar file without members"),
    "gzip": ("b.tar.gz", gzip.compress(TWO), 0, 1, "compressed with gzip.*`gunzip`"),
    "tgz": ("b.tgz", gzip.compress(TWO), 0, 1, "compressed with gzip.*`gunzip`"),
    "gzip called tar": ("b.tar", gzip.compress(TWO), 0, 1, "compressed with gzip.*`gunzip`"),
    "bzip2": ("b.tar.bz2", bz2.compress(TWO), 0, 1, "compressed with bzip2.*`bunzip2`"),
    "xz": ("b.tar.xz", lzma.compress(TWO), 0, 1, "compressed with xz.*`unxz`"),
    "zstd": ("b.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(800), 0, 1, "compressed with zstd.*`unzstd`"),
    "error page": ("b.tar", b"<!DOCTYPE html><p>429", 0, 1, "an HTML page: the download failed"),
    "git-lfs": ("b.tar", b"version https://git-lfs.github.com/spec/v1\n", 0, 1, "`git lfs pull`"),
    "zip by name": ("b.tar.zip", b"PK\x03\x04" + bytes(600), 0, 1, "a zip archive: unpack it"),
    "image twice": ("b.tar", TWO[: offset_of(TWO, 7) + 1024] + TWO[offset_of(TWO, 6) : offset_of(TWO, 7)] + bytes(1024), 4, 1,
                    "^duplicate part: its png was in the shard before$"),
    "label twice": ("b.tar", TWO[: offset_of(TWO, 7) + 1024] + TWO[offset_of(TWO, 7) : offset_of(TWO, 7) + 1024] + bytes(1024), 4, 1,
                    "^duplicate part: its cls was in the shard before$"),
    "zip": ("b.tar", b"PK\x03\x04" + bytes(600), 0, 1, "a zip archive"),
    "unfinished": ("b.tar.part", TWO, 0, 1, "is skipped: its name does not end in .tar"),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
def test_sound_samples_are_adopted_and_the_rest_is_named(tmp_path, monkeypatch, capfd, caplog, case):
    name, content, sound, num_bad, reason = KINDS[case]
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.tar").write_bytes(ONE)
    (tmp_path / "s" / name).write_bytes(content)
    data = fsl_dist.adopt(tmp_path / "s", tmp_path / "out", progress=False)
    assert len(data) == 4 + sound
    bad = data.report.bad_samples
    assert len(bad) == num_bad
    assert all(sample.path.startswith(name) for sample in bad)
    assert re.search(reason, " | ".join(sample.reason for sample in bad))
    # Every byte range is that of its image, also behind the first of two joined archives.
    images = read_images(data)
    assert images == {key: encode_noise(int(key)) for key in images}
    assert find_damage(data) == []
    joined = [note for note in data.report.notes if "joined" in note]
    assert bool(joined) == (case in ("joined", "joined, the second cut"))

    run = cli_of(monkeypatch, capfd)
    caplog.clear()
    code, out, _ = run("adopt", tmp_path / "s", tmp_path / "again")
    assert code == bool(num_bad)
    assert f"adopted {4 + sound} images" in out
    assert (f"left out {num_bad} bad samples" in out) == bool(num_bad)
    assert all(sample.reason in caplog.text for sample in bad)
    if num_bad:
        assert run("adopt", tmp_path / "s", tmp_path / "allowed", "--allow-bad")[0] == 0


UNUSABLE = {
    "compressed": {"a.tar.gz": gzip.compress(ONE)},
    "empty": {"a.tar": b""},
    "zeros": {"a.tar": bytes(10240)},
    "error page": {"a.tar": b"<!DOCTYPE html><p>429"},
    "unfinished": {"a.tar.part": ONE},
    "several": {"a.tar": b"", "b.tgz": gzip.compress(ONE), "c.tar": b"<html>", "d.tar.part": ONE},
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_shards_of_which_none_can_be_used_are_a_failure_that_names_and_counts_them(
    tmp_path, monkeypatch, capfd, caplog, case
):
    (tmp_path / "s").mkdir()
    for name, content in UNUSABLE[case].items():
        (tmp_path / "s" / name).write_bytes(content)
    run = cli_of(monkeypatch, capfd)
    for options in ((), ("--allow-bad",)):
        caplog.clear()
        code, _, err = run("adopt", tmp_path / "s", tmp_path / "out", *options)
        assert code == 1
        assert len(err.strip().splitlines()) == 1
        assert "no shard is left, so nothing is written" in err
        assert f" {len(UNUSABLE[case])} " in err
        assert any(name in err for name in UNUSABLE[case])
        assert len(UNUSABLE[case]) == 1 or all(name in caplog.text for name in UNUSABLE[case])
        assert not (tmp_path / "out").exists()
    # A shard that can be read and has no label is a request for another label key.
    with tarfile.open(tmp_path / "s/e.tar", "w") as tar:
        add(tar, "0.png", encode_noise(0))
    assert run("adopt", tmp_path / "s", tmp_path / "out")[0] == 2


def test_only_unusable_shards_are_refused_with_what_to_do(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a.tar.gz").write_bytes(gzip.compress(ONE))
    for shards in (tmp_path / "s", tmp_path / "s/a.tar.gz", tmp_path / "s/*"):
        with pytest.raises(
            DataError, match=r"'a.tar.gz': is not a tar file but compressed with gzip.*`gunzip` first"
        ):
            fsl_dist.adopt(shards, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "s/a.tar").write_bytes(ONE)  # as `gunzip --keep` leaves it
    assert fsl_dist.adopt(tmp_path / "s", tmp_path / "out", progress=False).report.bad_samples == ()


def test_members_that_are_apart_doubled_or_missing_are_named(tmp_path):
    """Archives as `tar -r`, hard links of equal files, and writers that go by extension make them."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number in range(3):
            add(tar, f"{number}.png", encode_noise(number))
        for number in range(3):
            add(tar, f"{number}.cls", b"a")
        add(tar, "whole.png", encode_noise(7))
        add(tar, "whole.cls", b"a")
        add(tar, "whole.png", encode_noise(8))  # a newer version of the file
        add(tar, "whole.cls", b"b")
        link = tarfile.TarInfo("copy.png")
        link.type, link.linkname = tarfile.LNKTYPE, "whole.png"
        tar.addfile(link)
        add(tar, "copy.cls", b"a")
        add(tar, "none.png", b"")
        add(tar, "none.cls", b"a")
    data = fsl_dist.adopt(tmp_path / "a.tar", tmp_path / "out", progress=False)
    assert read_images(data) == {"whole": encode_noise(7)}
    reasons = {bad.path: bad.reason for bad in data.report.bad_samples}
    apart = "its members are not adjacent: cls after those of other samples (write the shard again, sorted by name)"
    no_label = "has no label: no .cls, and no label or class or cls in .json; label_key=… names the key"
    assert reasons == {
        **{f"a.tar:{number}.png": no_label for number in range(3)},
        **{f"a.tar:{number}": apart for number in range(3)},
        "a.tar:whole.png": "duplicate key 'whole', taken by a.tar:whole.png",
        "a.tar:copy.png": "is a hard link",
        "a.tar:copy": "has no image; it has cls",
        "a.tar:none.png": "has zero bytes",
    }


def test_a_shard_without_samples_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(ONE)
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        add(tar, "README", b"x")
        add(tar, "__info__", b"{}")
    data = fsl_dist.adopt(tmp_path, tmp_path / "out", progress=False)
    assert [(bad.path, bad.reason) for bad in data.report.bad_samples] == [
        ("b.tar", "contains no sample: none of its members is named KEY.EXTENSION")
    ]
    assert data.report.num_ignored == 2


def test_shards_of_one_name_in_several_folders_are_told_apart(tmp_path):
    for folder, first in (("train", 0), ("val", 0), ("test", 10)):
        (tmp_path / "s" / folder).mkdir(parents=True)
        (tmp_path / "s" / folder / "000.tar").write_bytes(tar_of(first))
    data = fsl_dist.adopt(tmp_path / "s", tmp_path / "out", progress=False)
    assert [bad.path for bad in data.report.bad_samples] == [
        f"val/000.tar:{number:06d}.png" for number in range(4)
    ]
    assert "taken by train/000.tar:000000.png" in data.report.bad_samples[0].reason
    assert data.report.notes == (
        "the folders test, train, val were not read as splits; set split_key=… to the key of .json that contains the split",
    )
    data = fsl_dist.adopt(tmp_path / "s", tmp_path / "named", shard_in_key=True, progress=False)
    assert data.report.bad_samples == ()
    assert set(data.keys([0, 11])) < {
        f"{name}/000/{i:06d}" for name in ("train", "val", "test") for i in range(14)
    }


def test_a_member_too_large_for_an_image_is_named(tmp_path):
    path, size = tmp_path / "a.tar", 3 << 30
    head = tarfile.TarInfo("big.png")
    head.size = size
    with path.open("wb") as file:
        file.write(head.tobuf(tarfile.USTAR_FORMAT))
        file.seek(512 + size)
        label = tarfile.TarInfo("big.cls")
        label.size = 1
        file.write(label.tobuf(tarfile.USTAR_FORMAT) + b"a".ljust(512, b"\0") + ONE)
    data = fsl_dist.adopt(path, tmp_path / "out", progress=False)
    assert len(data) == 4
    (bad,) = data.report.bad_samples
    assert (bad.path, bad.reason) == (
        "a.tar:big.png",
        f"has {size} bytes, more than the {1 << 30} of an image",
    )


def test_a_data_set_whose_shard_changed_says_so_before_it_is_used(tmp_path, caplog):
    (tmp_path / "s").mkdir()
    shard = tmp_path / "s/a.tar"
    shard.write_bytes(ONE)
    fsl_dist.adopt(shard, tmp_path / "out", progress=False)
    for content, text in (
        (ONE[:2000], "has 2000 bytes, the catalogue says"),
        (b"", "has 0 bytes"),
        (None, "cannot be opened"),
    ):
        shard.unlink(missing_ok=True)
        if content is not None:
            shard.write_bytes(content)
        summary = summarise(Catalogue.open(tmp_path / "out"))
        assert text in summary.flags[0]
        assert text in describe(summary)
        caplog.clear()
        fsl_dist.resplit(tmp_path / "out", split="classes", fractions=(0.5, 0.0, 0.5))
        assert text in caplog.text
        with pytest.raises(DataError, match=text):
            read_images(Catalogue.open(tmp_path / "out"))
    assert os.listdir(tmp_path / "s") == []
