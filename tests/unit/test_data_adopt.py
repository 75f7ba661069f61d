"""Existing shards, indexed in place: layouts, labels, names, refusals."""

import io
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
from dataset_files import encode, encode_noise, read_images

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.adopt import AdoptOptions, adopt
from fsl_dist.data.ingest.inspection import find_damage
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.ingest.shards.wds_samples import SampleKeys
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError, RequestError


def jpeg(number):
    return encode_noise(number, "JPEG")


def write_shard(path, samples):
    """samples: (key, {extension: bytes, text or JSON object})."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for key, members in samples:
            for extension, content in members.items():
                if isinstance(content, dict):
                    content = json.dumps(content)
                data = content if isinstance(content, bytes) else content.encode()
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def options(**keys):
    return AdoptOptions(keys=SampleKeys(**keys))


def reasons(report):
    return {bad.path: bad.reason for bad in report.bad_samples}


def rows(dataset):
    """key → (class name, split code, image bytes)."""
    catalogue = Catalogue.open(dataset)
    return {
        key: (catalogue.label_name(int(catalogue.labels[i])), int(catalogue.splits[i]), image)
        for i, (key, image) in enumerate(read_images(catalogue).items())
    }


def test_cls_members_are_labels_and_nothing_is_rewritten(tmp_path):
    for shard in range(3):
        samples = [
            (f"{shard}{i:03d}", {"jpg": jpeg(10 * shard + i), "cls": f"{i % 12}\n"}) for i in range(24)
        ]
        write_shard(tmp_path / f"s/part-{shard:04d}.tar", samples)
    before = {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()}
    report = adopt(str(tmp_path / "s"), tmp_path / "out", AdoptOptions())
    assert (report.num_samples, report.num_classes, report.num_shards, report.bad_samples) == (72, 12, 3, ())
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == before
    assert [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()] == [
        "catalogue/000001.arrow"
    ]
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.class_names == [str(label) for label in range(12)]  # by value, as the numbers mean
    found = rows(tmp_path / "out")
    assert found["2003"] == ("3", found["2003"][1], jpeg(23))


def test_img2dataset_layout_and_keys_of_json(tmp_path):
    samples = [
        (
            f"0000{i:05d}",
            {
                "jpg": jpeg(i),
                "json": {
                    "caption": "a",
                    "species": ["owl", 7, 3.0][i % 3],
                    "where": f"w{i % 2}",
                    "side": "test" if i % 4 else "train",
                },
                "txt": "a caption",
            },
        )
        for i in range(12)
    ]
    write_shard(tmp_path / "00000.tar", samples)
    (tmp_path / "00000.parquet").write_bytes(b"img2dataset leaves it here")
    keys = options(label="species", group="where", split="side")
    report = adopt(str(tmp_path), tmp_path / "out", keys)
    catalogue = Catalogue.open(tmp_path / "out")
    assert (catalogue.class_names, catalogue.group_names) == (["3", "7", "owl"], ["w0", "w1"])
    assert report.split_counts == {"train": 3, "test": 9}
    assert catalogue.keys([0])[0].startswith("0000")


@pytest.mark.parametrize("key", ["label", "class", "cls"])
def test_usual_json_keys_need_no_option(tmp_path, key):
    write_shard(
        tmp_path / "a.tar",
        [(f"k{i}", {"png": encode_noise(i), "json": {key: f"c{i % 2}"}}) for i in range(4)],
    )
    adopt(str(tmp_path / "a.tar"), tmp_path / "out", AdoptOptions())
    assert Catalogue.open(tmp_path / "out").class_names == ["c0", "c1"]


def test_which_member_is_the_image(tmp_path):
    two = {"left.jpg": jpeg(1), "right.jpg": jpeg(2), "cls": "a"}
    masked = {"JPG": jpeg(3), "mask.png": encode_noise(4), "cls": "a"}
    rival = {"jpg": jpeg(5), "png": encode_noise(6), "cls": "a"}
    write_shard(
        tmp_path / "a.tar", [("two", two), ("masked", masked), ("rival", rival), ("none", {"cls": "a"})]
    )
    report = adopt(str(tmp_path / "a.tar"), tmp_path / "plain", AdoptOptions())
    assert {key: row[2] for key, row in rows(tmp_path / "plain").items()} == {"masked": jpeg(3)}
    assert reasons(report) == {
        "a.tar:two": "has several images, left.jpg, right.jpg; select one with image_extensions=…",
        "a.tar:rival": "has several images, jpg, png; select one with image_extensions=…",
        "a.tar:none": "has no image; it has cls",
    }
    chosen = options(image_extensions=("right.jpg", "png"))
    report = adopt(str(tmp_path / "a.tar"), tmp_path / "chosen", chosen)
    assert {key: row[2] for key, row in rows(tmp_path / "chosen").items()} == {
        "two": jpeg(2),
        "rival": encode_noise(6),
    }
    assert reasons(report)["a.tar:masked"] == "has no member right.jpg or png; it has jpg, mask.png, cls"


def grey(height, width, kind="PNG"):
    return encode(np.arange(height * width).reshape(height, width), kind)


def test_masks_of_adopted_shards_are_catalogued_as_pack_stores_them(tmp_path):
    rows = ["file,class,mask"]
    for number in range(9):
        path = tmp_path / "src" / f"{number}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
        if number % 3:
            path.with_suffix(".png").write_bytes(grey(10, 12))
        rows.append(f"{number}.jpg,{'ab'[number % 2]},{f'{number}.png' if number % 3 else ''}")
    (tmp_path / "t.csv").write_text("\n".join([*rows, ""]))
    columns = TableColumns(table=str(tmp_path / "t.csv"), mask="mask")
    pack(tmp_path / "src", tmp_path / "packed", PackOptions(columns=columns, seed=3))
    keys = SampleKeys(mask="mask.png")
    adopt(str(tmp_path / "packed/shards"), tmp_path / "adopted", AdoptOptions(keys=keys, seed=3))
    packed, adopted = Catalogue.open(tmp_path / "packed"), Catalogue.open(tmp_path / "adopted")
    for name, column in packed.columns().items():
        assert list(column) == list(adopted.columns()[name]), name
    store = ShardStore(adopted)
    masks = dict(zip(adopted.keys(range(9)), store.read_masks(np.arange(9)), strict=True))
    store.close()
    assert {key: mask if mask is None else bytes(mask) for key, mask in masks.items()} == {
        str(number): grey(10, 12) if number % 3 else None for number in range(9)
    }
    assert find_damage(adopted) == []


def test_masks_that_do_not_serve_are_bad_samples(tmp_path):
    good = {"jpg": jpeg(1), "cls": "a"}
    samples = [
        ("fits", {**good, "png": grey(10, 12)}),
        ("none", good),
        ("turned", {**good, "png": grey(12, 10)}),
        ("jpeg", {**good, "png": grey(10, 12, "JPEG")}),
        ("text", {**good, "png": "no image"}),
    ]
    write_shard(tmp_path / "a.tar", samples)
    report = adopt(str(tmp_path / "a.tar"), tmp_path / "out", options(mask="png"))
    assert rows(tmp_path / "out").keys() == {"fits", "none"}
    assert reasons(report) == {
        "a.tar:turned.jpg": "its mask 'a.tar:turned.png' has 10 × 12 pixels, its image 12 × 10",
        "a.tar:jpeg.jpg": "its mask 'a.tar:jpeg.png' is not an upright PNG; use `pack` for other formats (mask_column=…)",
        "a.tar:text.jpg": "its mask 'a.tar:text.png' is not an image that decodes: its format is unknown",
    }


def test_bad_samples_are_named_and_the_rest_is_adopted(tmp_path):
    good = jpeg(1)
    samples = [
        ("ok", {"jpg": good, "cls": "a"}),
        ("cut", {"jpg": good[: len(good) // 2], "cls": "a"}),
        ("text", {"jpg": "no image", "cls": "a"}),
        ("empty", {"jpg": b"", "cls": "a"}),
        ("unlabelled", {"jpg": good}),
        ("blank", {"jpg": good, "cls": " "}),
        ("broken", {"jpg": good, "json": "{"}),
        ("deep", {"jpg": good, "json": "[" * 100_000}),
        ("list", {"jpg": good, "json": "[1]"}),
        ("odd", {"jpg": good, "json": {"label": [1]}}),
        ("flag", {"jpg": good, "json": {"label": True}}),
        ("bytes", {"jpg": good, "cls": b"\xff\xfe"}),
        ("binary", {"jpg": good, "cls": b"\n\0\0\0"}),  # 10 as DALI reads it with dtypes=INT32
        ("ok", {"jpg": jpeg(2), "cls": "b"}),
        (".hidden", {"jpg": good, "cls": "a"}),
        ("__info__", {"json": {}}),
    ]
    write_shard(tmp_path / "a.tar", samples)
    report = adopt(str(tmp_path / "a.tar"), tmp_path / "out", AdoptOptions())
    assert {key: row[0] for key, row in rows(tmp_path / "out").items()} == {"ok": "a", "flag": "true"}
    found = reasons(report)
    assert "truncated" in found["a.tar:cut.jpg"].lower()
    assert found["a.tar:text.jpg"] == "is not an image that decodes: its format is unknown"
    assert found["a.tar:empty.jpg"] == "has zero bytes"
    assert found["a.tar:unlabelled.jpg"].startswith(
        "has no label: no .cls, and no label or class or cls in .json"
    )
    assert found["a.tar:blank.jpg"].startswith("has no label")
    assert found["a.tar:broken.jpg"].startswith("its .json cannot be read")
    assert found["a.tar:deep.jpg"].startswith("its .json cannot be read")
    assert found["a.tar:list.jpg"] == "its .json is not an object"
    assert found["a.tar:odd.jpg"] == "'label' in .json is a list, neither text nor a number"
    assert found["a.tar:bytes.jpg"] == "'bytes.cls' is not UTF-8 text"
    assert found["a.tar:binary.jpg"].startswith(
        "its .cls is not text; write the label as a name or in digits"
    )
    assert found["a.tar:ok.jpg"] == "duplicate key 'ok', taken by a.tar:ok.jpg"
    assert found["a.tar:__info__"] == "has no image; it has json"
    assert len(found) == 13
    assert report.num_ignored == 2
    assert Catalogue.open(tmp_path / "out").bad_samples == list(report.bad_samples)


def test_links_and_damage_are_bad_samples(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x.jpg", jpeg(1)), ("x.cls", b"a"), ("../y.jpg", jpeg(2))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("z.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    shutil.copy(tmp_path / "a.tar", tmp_path / "b.tar")
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:300])
    report = adopt(str(tmp_path), tmp_path / "out", AdoptOptions())
    assert list(reasons(report)) == ["a.tar:../y.jpg", "a.tar:z.jpg", "b.tar"]
    assert len(Catalogue.open(tmp_path / "out").shards) == 1


def test_shards_that_count_alike_are_told_apart_by_name(tmp_path):
    for shard in ("x-0.tar", "x-1.tar"):
        write_shard(tmp_path / shard, [(f"d/{i}", {"jpg": jpeg(i), "cls": f"{i}"}) for i in range(2)])
    report = adopt(str(tmp_path), tmp_path / "out", options(shard_in_key=True))
    assert report.bad_samples == ()
    assert rows(tmp_path / "out").keys() == {"x-0/d/0", "x-0/d/1", "x-1/d/0", "x-1/d/1"}


def test_shard_names_that_differ_give_keys_that_differ(tmp_path):
    """Whatever the names have in common; and the first dot ends no key, as WebDataset cuts names there."""
    names = [
        "train.000.tar",
        "train.001.tar",
        "train_000.tar",
        "train.tar",
        "train.TAR",
        "v1.0/a.tar",
        "v1.1/a.tar",
        "v1_0/a.tar",
        "2024-05-01T10:00.tar",
        "2024-05-01T10.00.tar",
        "é.0.tar",
    ]
    for name in names:
        write_shard(tmp_path / "s" / name, [("d/0", {"jpg": jpeg(1), "cls": "a"})])
    report = adopt(str(tmp_path / "s"), tmp_path / "out", options(shard_in_key=True))
    assert report.bad_samples == ()
    keys = rows(tmp_path / "out").keys()
    assert len(keys) == len(names)
    assert all(key.endswith("/d/0") and "." not in key for key in keys)
    assert {"train/d/0", "train_000/d/0", "v1_0/a/d/0"} < keys


@pytest.mark.parametrize("relative", [False, True])
def test_the_catalogue_opens_from_any_working_folder(tmp_path, monkeypatch, relative):
    write_shard(tmp_path / "all/s/a.tar", [(f"k{i}", {"jpg": jpeg(i), "cls": "a"}) for i in range(3)])
    monkeypatch.chdir(tmp_path / "all")
    adopt("s", "sets/out", AdoptOptions(relative=relative))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert rows(tmp_path / "all/sets/out")["k2"][2] == jpeg(2)
    assert rows("../all/sets/out")["k2"][2] == jpeg(2)
    os.symlink(tmp_path / "all/sets/out", "link")
    assert rows("link")["k2"][2] == jpeg(2)
    name = Catalogue.open("link").shards[0].name
    assert name == ("../../s/a.tar" if relative else str(tmp_path / "all/s/a.tar"))
    if relative:
        shutil.move(tmp_path / "all", tmp_path / "moved")
        assert rows(tmp_path / "moved/sets/out")["k2"][2] == jpeg(2)


def test_a_folder_of_shards_may_become_the_data_set(tmp_path):
    write_shard(tmp_path / "s/deep/a.tar", [(f"k{i}", {"jpg": jpeg(i), "cls": "a"}) for i in range(3)])
    adopt(str(tmp_path / "s"), tmp_path / "s", AdoptOptions())
    assert Catalogue.open(tmp_path / "s").shards[0].name == "deep/a.tar"
    assert rows(tmp_path / "s")["k1"][2] == jpeg(1)
    with pytest.raises(RequestError, match="already has a catalogue"):
        adopt(str(tmp_path / "s"), tmp_path / "s", AdoptOptions())
    with pytest.raises(RequestError, match="is not an empty folder"):
        adopt(str(tmp_path / "s/deep"), tmp_path / "s/catalogue", AdoptOptions())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s"]


def test_a_shard_that_changes_afterwards_is_caught(tmp_path):
    shard = write_shard(tmp_path / "s/a.tar", [("k", {"jpg": jpeg(1), "cls": "a"})])
    adopt(str(shard), tmp_path / "out", AdoptOptions())
    whole = shard.read_bytes()
    shard.write_bytes(whole[:600] + bytes([whole[600] ^ 1]) + whole[601:])
    with pytest.raises(DataError, match=r"sample 'k' .* does not match its checksum"):
        rows(tmp_path / "out")
    shard.write_bytes(whole + bytes(512))
    with pytest.raises(DataError, match="the catalogue says"):
        rows(tmp_path / "out")
    shard.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        rows(tmp_path / "out")


def test_adopted_shards_of_a_pack_make_the_same_rows(tmp_path):
    for label in range(11):
        (tmp_path / f"src/{label}").mkdir(parents=True)
        for i in range(6):
            (tmp_path / f"src/{label}/{i}.jpg").write_bytes(jpeg(10 * label + i))
    pack(tmp_path / "src", tmp_path / "packed", PackOptions(seed=3))
    adopt(str(tmp_path / "packed/shards"), tmp_path / "adopted", AdoptOptions(seed=3))
    assert rows(tmp_path / "packed") == rows(tmp_path / "adopted")
    packed, adopted = Catalogue.open(tmp_path / "packed"), Catalogue.open(tmp_path / "adopted")
    for name, column in packed.columns().items():
        assert list(column) == list(adopted.columns()[name]), name


def test_what_cannot_be_adopted_is_refused_and_nothing_written(tmp_path):
    write_shard(
        tmp_path / "s/a.tar", [("k", {"jpg": jpeg(1), "json": {"side": "dev"}}), ("l", {"jpg": jpeg(1)})]
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        RequestError, match=r"none of the 2 samples can be used; the first, 'a.tar:k.jpg': has no label"
    ):
        adopt(str(tmp_path / "s"), tmp_path / "out", AdoptOptions())
    with pytest.raises(
        RequestError,
        match=r"split_key=side must contain train, val, test, novel in every .json; it contains 'dev'",
    ):
        adopt(str(tmp_path / "s"), tmp_path / "out", options(label="side", split="side"))
    with pytest.raises(RequestError, match="split=column needs split_key="):
        AdoptOptions(split="column")
    assert sorted(tmp_path.rglob("*")) == before
