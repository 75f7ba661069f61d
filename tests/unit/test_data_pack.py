"""Packing: what lands in shards and catalogue, what is refused, and that it is all or nothing."""

import os
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import all_bytes, encode_noise, write_images, write_table

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.ingest import pack_pieces
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.errors import DataError, RequestError


def counts_by_class(dataset):
    catalogue = Catalogue.open(dataset)
    return {
        name: np.bincount(catalogue.splits[catalogue.labels == label], minlength=4).tolist()
        for label, name in enumerate(catalogue.class_names)
    }


@pytest.fixture
def source(tmp_path):
    return write_images(tmp_path / "src", {"owl": 10, "ant": 6, "bee/worker": 5})


def test_packed_bytes_are_the_files_bytes(source, tmp_path):
    report = pack(source, tmp_path / "out", PackOptions())
    assert (report.num_samples, report.num_classes, report.bad_samples) == (21, 3, ())
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.class_names == ["ant", "bee", "owl"]
    where = catalogue.locate(np.arange(21))
    keys = catalogue.keys(np.arange(21))
    assert "bee/worker/000" in keys
    for key, shard, offset, size in zip(keys, where.shard, where.offset, where.size, strict=True):
        file = (source / key).with_suffix(".png").read_bytes()
        packed = (tmp_path / "out" / catalogue.shards[shard].name).read_bytes()
        assert packed[offset : offset + size] == file
    assert np.array_equal(catalogue.image_sizes([0])[0], [9, 11])


def test_shards_are_plain_tar_with_label_files(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    catalogue = Catalogue.open(tmp_path / "out")
    label_of = dict(zip(catalogue.keys(range(21)), catalogue.labels.tolist(), strict=True))
    with tarfile.open(tmp_path / "out/shards/shard-000000.tar") as tar:
        members = tar.getmembers()
        assert len(members) == 42
        for image, label in zip(members[0::2], members[1::2], strict=True):
            key, extension = image.name.split(".")
            assert (label.name, extension) == (f"{key}.cls", "png")
            assert tar.extractfile(label).read() == str(label_of[key]).encode()
            assert (image.mtime, image.uid, image.gid, image.uname) == (0, 0, 0, "")
    # shuffled over the classes, not class after class
    order = [label_of[member.name.split(".")[0]] for member in members[0::2]]
    assert order != sorted(order)


@pytest.mark.integration
def test_one_seed_gives_the_same_bytes_whatever_the_processes(source, tmp_path, monkeypatch):
    monkeypatch.setattr(pack_pieces, "CHUNK_SIZE", 5)
    options = {"a": PackOptions(processes=1), "b": PackOptions(processes=3), "c": PackOptions(seed=1)}
    for name, option in options.items():
        pack(source, tmp_path / name, option)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert all_bytes(tmp_path / "a") != all_bytes(tmp_path / "c")


def test_shards_close_before_they_grow_too_large(tmp_path):
    source = tmp_path / "src" / "x"
    source.mkdir(parents=True)
    for number in range(5):  # noise of 400 × 300 pixels: 360 kB as BMP, so two a megabyte
        (source / f"{number}.bmp").write_bytes(encode_noise(number, "BMP", (300, 400)))
    report = pack(tmp_path / "src", tmp_path / "out", PackOptions(shard_size_mb=1))
    shards = Catalogue.open(tmp_path / "out").shards
    assert report.num_shards == len(shards) == 3
    for shard in shards:
        path = tmp_path / "out" / shard.name
        assert path.stat().st_size == shard.size_bytes <= 1_000_000
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) % 2 == 0


def test_bad_samples_are_named_and_the_rest_is_packed(source, tmp_path, caplog):
    jpeg = encode_noise(1, "JPEG", (64, 64))
    (source / "ant" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (source / "ant" / "text.jpg").write_text("no image at all")
    (source / "ant" / "empty.png").write_bytes(b"")
    (source / "ant" / "notes.txt").write_text("skipped, not bad")
    outside = tmp_path / "outside.png"
    outside.write_bytes(encode_noise(5))
    (source / "ant" / "link.png").symlink_to(outside)
    (source / "linked").symlink_to(tmp_path, target_is_directory=True)
    with caplog.at_level("INFO"):
        report = pack(source, tmp_path / "out", PackOptions())
    reasons = {bad.path: bad.reason for bad in report.bad_samples}
    assert reasons.keys() == {
        "ant/cut.jpg",
        "ant/text.jpg",
        "ant/empty.png",
        "ant/link.png",
        "linked",
    }
    assert "truncated" in reasons["ant/cut.jpg"]
    assert reasons["ant/text.jpg"] == "is not an image that decodes: its format is unknown"
    assert reasons["ant/empty.png"] == "has zero bytes"
    assert reasons["ant/link.png"] == "leaves the source folder"
    assert reasons["linked"] == "a link to a folder is not followed"
    assert (report.num_samples, report.num_ignored) == (21, 1)
    assert "left out 'ant/cut.jpg'" in caplog.text
    assert Catalogue.open(tmp_path / "out").bad_samples == list(report.bad_samples)


def test_a_folder_that_cannot_be_listed_is_named(source, tmp_path, monkeypatch):
    scandir = os.scandir

    def refuse(folder):  # permissions do not bind the tests where they run as root
        if str(folder).endswith("bee/worker"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    report = pack(source, tmp_path / "out", PackOptions(processes=1))
    assert [(bad.path, bad.reason) for bad in report.bad_samples] == [
        ("bee/worker", "cannot be listed: Permission denied")
    ]


def test_bad_rows_of_a_table_are_named(source, tmp_path):
    (tmp_path / "outside.png").write_bytes(encode_noise(5))
    (source / "ant.png").mkdir()
    rows = [
        {"file": "ant/000.png", "class": "a"},
        {"file": "./ant/../owl/000.png", "class": "b"},
        {"file": "ant/000.png", "class": "b"},
        {"file": "../outside.png", "class": "a"},
        {"file": str(tmp_path / "outside.png"), "class": "a"},
        {"file": "ant/missing.png", "class": "a"},
        {"file": "ant/001.png", "class": ""},
        {"file": "", "class": "a"},
        {"file": "ant.png", "class": "a"},
    ]
    columns = TableColumns(table=write_table(tmp_path / "t.csv", rows))
    report = pack(source, tmp_path / "out", PackOptions(columns=columns))
    assert sorted(Catalogue.open(tmp_path / "out").keys([0, 1])) == ["ant/000", "owl/000"]
    reasons = sorted(bad.reason for bad in report.bad_samples)
    assert reasons == [
        "duplicate key 'ant/000', taken by ant/000.png as 'a', here 'b'",
        "has no label",
        "leaves the source folder",
        "leaves the source folder",
        "no file is named",
        "no such file",
        "not a regular file",
    ]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_columns_become_labels_groups_and_splits(source, tmp_path, suffix):
    rows = [
        {
            "photo": f"ant/{i:03d}.png",
            "kind": i % 2,
            "who": f"p{i // 2}",
            "hid": "x" if i else "",
            "side": side,
        }
        for i, side in enumerate(["train", "train", "val", "test", "novel", "train"])
    ]
    if suffix == "csv":
        table = write_table(tmp_path / "t.csv", rows)
    else:
        table = str(tmp_path / "t.parquet")
        pq.write_table(pa.Table.from_pylist(rows), table)
    columns = TableColumns(
        table=table, path="photo", label="kind", group="who", blind_group="hid", split="side"
    )
    pack(source, tmp_path / "out", PackOptions(columns=columns))
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.class_names == ["0", "1"]
    found = {
        key: (
            catalogue.class_names[catalogue.labels[i]],
            catalogue.group_names[catalogue.groups[i]],
            int(catalogue.blind_groups[i]),
            SPLITS[catalogue.splits[i]],
        )
        for i, key in enumerate(catalogue.keys(range(6)))
    }
    assert found == {
        row["photo"][:-4]: (str(row["kind"]), row["who"], 0 if row["hid"] else -1, row["side"])
        for row in rows
    }


def test_one_column_may_serve_twice(source, tmp_path):
    rows = [{"file": f"ant/{i:03d}.png", "class": "a", "lesion": f"l{i // 2}"} for i in range(6)]
    table = write_table(tmp_path / "t.csv", rows)
    columns = TableColumns(table=table, group="lesion", unit="lesion")
    pack(source, tmp_path / "out", PackOptions(columns=columns, fractions=(0.4, 0.3, 0.3)))
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.group_names == ["l0", "l1", "l2"]
    for group in range(3):
        assert len(set(catalogue.splits[catalogue.groups == group].tolist())) == 1
    assert catalogue.split_names == ["train", "val", "test"]


def test_base_novel_and_classes_through_pack(source, tmp_path):
    pack(source, tmp_path / "bn", PackOptions(split="base-novel", num_base=1, fractions=None))
    # ten images give five and five and leave none for train: all of them train
    assert counts_by_class(tmp_path / "bn") == {
        "ant": [0, 0, 0, 6],
        "bee": [0, 0, 0, 5],
        "owl": [10, 0, 0, 0],
    }
    pack(source, tmp_path / "cl", PackOptions(split="classes", fractions=(0.4, 0.3, 0.3)))
    sides = [tuple(counts) for counts in counts_by_class(tmp_path / "cl").values()]
    assert sorted(np.flatnonzero(counts).tolist() for counts in sides) == [[0], [1], [2]]


def test_a_class_too_small_is_warned_of_and_trains(tmp_path, caplog):
    source = write_images(tmp_path / "src", {"owl": 10, "rare": 2})
    report = pack(source, tmp_path / "out", PackOptions())
    assert counts_by_class(tmp_path / "out") == {"owl": [7, 1, 2, 0], "rare": [2, 0, 0, 0]}
    assert report.warnings == ("class 'rare' is too small for split=stratified (2 images): all go to train",)
    assert report.warnings[0] in caplog.text


def test_keep_together_names_the_unit_that_crosses(source, tmp_path):
    rows = [
        {"file": f"{name}/{i:03d}.png", "class": name, "patient": f"{name}{i}" if i else "smith"}
        for name in ("ant", "owl")
        for i in range(3)
    ]
    columns = TableColumns(table=write_table(tmp_path / "t.csv", rows), unit="patient")
    with pytest.raises(RequestError, match=r"keep_together=…: 'smith' has samples of base and novel"):
        pack(source, tmp_path / "out", PackOptions(columns=columns, split="base-novel", num_base=1))
    for number, row in enumerate(rows):
        row["side"] = "train" if number < 3 else "test"
    columns = TableColumns(table=write_table(tmp_path / "t.csv", rows), unit="patient", split="side")
    with pytest.raises(RequestError, match="'smith' has samples of two splits in the split column"):
        pack(source, tmp_path / "out", PackOptions(columns=columns))
    assert not (tmp_path / "out").exists()


def table_with(tmp_path, text, **names):
    (tmp_path / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return PackOptions(columns=TableColumns(table=str(tmp_path / "t.csv"), **names))


BAD_REQUESTS = {
    "no source": (lambda t: t / "nowhere", lambda t: PackOptions(), "source '.*nowhere': no such folder"),
    "empty": (lambda t: t / "void", lambda t: PackOptions(), "has no class folders with images"),
    "missing column": (
        lambda t: t / "src",
        lambda t: table_with(t, "file,species\na.png,x\n"),
        "has no column 'class'; it has file, species",
    ),
    "no class": (lambda t: t / "src", lambda t: table_with(t, "file,class\na.png,\n"), "names no class"),
    "no rows": (lambda t: t / "src", lambda t: table_with(t, "file,class\n"), "has no rows"),
    "no table": (
        lambda t: t / "src",
        lambda t: PackOptions(columns=TableColumns(table=str(t / "no.csv"))),
        "no such file",
    ),
    "not a table": (
        lambda t: t / "src",
        lambda t: PackOptions(columns=TableColumns(table=str(t / "src/ant/000.png"))),
        r"must end in .csv, .tsv, .parquet, .json or .jsonl",
    ),
    "ragged": (
        lambda t: t / "src",
        lambda t: table_with(t, "file,class\na.png,x,y\n"),
        "line 2: 3 cells, the head has 2",
    ),
    "not utf-8": (
        lambda t: t / "src",
        lambda t: table_with(t, b"file,class\n\xff\xfe,x\n"),
        r"line 2, column 'file': '\\xff\\xfe' is not UTF-8 text",
    ),
    "split names": (
        lambda t: t / "src",
        lambda t: table_with(t, "file,class,s\nant/000.png,x,dev\n", split="s"),
        "must contain train, val, test, novel; it contains 'dev'",
    ),
    "nothing there": (
        lambda t: t / "src",
        lambda t: table_with(t, "file,class\nno.png,x\n"),
        "none of the 1 rows .* 'no.png': no such file",
    ),
    "nothing decodes": (
        lambda t: t / "rot",
        lambda t: PackOptions(),
        "none of the 1 samples can be used; the first, .* its format is unknown",
    ),
    "too many base": (
        lambda t: t / "src",
        lambda t: PackOptions(split="base-novel", num_base=3),
        "num_base=3 must be in 1 … 2",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_bad_request_writes_nothing(source, tmp_path, case):
    (tmp_path / "void").mkdir()
    (tmp_path / "rot" / "x").mkdir(parents=True)
    (tmp_path / "rot" / "x" / "a.jpg").write_text("rotten")
    where, options, text = BAD_REQUESTS[case]
    options = options(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(RequestError, match=text):
        pack(where(tmp_path), tmp_path / "out", options)
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "base-novel"}, "needs num_base="),
        ({"num_base": 3}, "num_base=3 belongs to split=base-novel"),
        (
            {"split": "base-novel", "num_base": 1, "fractions": (0.5, 0.2, 0.3)},
            "fractions=… belongs to split=stratified or",
        ),
        ({"split": "column"}, "split=column needs split_column="),
        ({"split": "classes", "columns": TableColumns(table="t.csv", split="s")}, "leave one out"),
        ({"shard_size_mb": 0}, "shard_size_mb=0 must be at least 1"),
        ({"num_classes": 0}, "num_classes=0 must be at least 1"),
        ({"processes": -1}, "processes=-1 must be at least 0"),
    ],
)
def test_options_that_contradict_are_refused(options, text):
    with pytest.raises(RequestError, match=text):
        PackOptions(**options)


def test_an_output_that_holds_something_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pack(source, out, PackOptions())  # an empty folder is taken
    before = all_bytes(out)
    with pytest.raises(RequestError, match="exists and is not an empty folder"):
        pack(source, out, PackOptions(seed=1))
    assert all_bytes(out) == before


def test_a_failure_midway_leaves_nothing(source, tmp_path):
    def meddle(stage, done, total):
        if (stage, done) == ("checking", total):
            for file in source.rglob("*.png"):
                file.write_bytes(encode_noise(99))

    with pytest.raises(DataError, match="changed while it was packed"):
        pack(source, tmp_path / "out", PackOptions(), meddle)
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


def test_long_and_foreign_names_survive_the_tar(tmp_path):
    folder = tmp_path / "src" / ("很长的名字" * 10)
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{'long' * 20} {number}.JPEG").write_bytes(encode_noise(number, "JPEG"))
    assert pack(tmp_path / "src", tmp_path / "out", PackOptions()).num_samples == 3
    with tarfile.open(tmp_path / "out/shards/shard-000000.tar") as tar:
        names = {name.rsplit(".", 1)[0] for name in tar.getnames() if name.endswith(".jpeg")}
    assert names == set(Catalogue.open(tmp_path / "out").keys(range(3)))


def test_only_the_largest_classes(tmp_path):
    write_images(tmp_path / "source", {"few": 3, "many": 9, "some": 6, "as_some": 6})
    report = pack(tmp_path / "source", tmp_path / "out", PackOptions(num_classes=2))
    # Of two classes with equally many images, the name decides.
    assert list(Catalogue.open(tmp_path / "out").class_names) == ["as_some", "many"]
    assert report.num_samples == 15
    with pytest.raises(RequestError, match="num_classes=5 is more than the 4 classes that exist"):
        pack(tmp_path / "source", tmp_path / "other", PackOptions(num_classes=5))
    with pytest.raises(RequestError, match="adds every class; leave num_classes=2 out"):
        append(tmp_path / "source", tmp_path / "out", PackOptions(num_classes=2))
