"""Appending and changing splits: the next catalogue version, and that earlier ones and their ids stay."""

import numpy as np
import pytest
from dataset_files import all_bytes, read_images, write_images, write_table

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.next_version import hold_dataset
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.errors import RequestError


def rows(dataset, version=None):
    """key → (class, split, group, unit, image bytes)."""
    catalogue = Catalogue.open(dataset, version)
    catalogue.check_fingerprint()
    images = read_images(catalogue)

    def name(names, number):
        return names[number] if number >= 0 else ""

    return {
        key: (
            name(catalogue.class_names, catalogue.labels[i]),
            SPLITS[catalogue.splits[i]],
            name(catalogue.group_names, catalogue.groups[i]),
            name(catalogue.unit_names, catalogue.units[i]),
            image,
        )
        for i, (key, image) in enumerate(images.items())
    }


@pytest.fixture
def source(tmp_path):
    return write_images(tmp_path / "src", {"bee": 10, "owl": 10})


def test_append_adds_shards_and_a_version_and_touches_nothing(source, tmp_path):
    out = tmp_path / "out"
    pack(source, out, PackOptions(seed=2))
    before, old_rows = all_bytes(out), rows(out)
    more = write_images(tmp_path / "more", {"ant": 10, "bee": 10}, first=10)
    report = append(more, out, PackOptions())
    assert (report.version, report.num_samples, report.num_classes, report.num_shards) == (2, 20, 3, 1)
    assert report.split_counts == {"train": 14, "val": 2, "test": 4}
    after = all_bytes(out)
    assert {name: after[name] for name in before} == before
    assert sorted(after.keys() - before.keys()) == [
        "appended-000002/shard-000000.tar",
        "catalogue/000002.arrow",
    ]

    assert rows(out, 1) == old_rows
    new_rows = rows(out)
    assert {key: new_rows[key] for key in old_rows} == old_rows
    assert new_rows["ant/010"][4] == (more / "ant/010.png").read_bytes()
    assert len(new_rows) == 40
    # what was numbered keeps its number, although 'ant' sorts first
    assert Catalogue.open(out).class_names == ["bee", "owl", "ant"]
    assert Catalogue.open(out).options["seed"] == 2


def test_append_is_a_function_of_its_input_and_can_go_on(source, tmp_path):
    for name in ("a", "b"):
        pack(source, tmp_path / name, PackOptions())
        for first in (10, 20):
            more = write_images(tmp_path / f"more{first}", {"bee": 4}, first=first)
            append(more, tmp_path / name, PackOptions(processes=1 if name == "a" else 3))
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert len(rows(tmp_path / "a")) == 28
    assert len(rows(tmp_path / "a", 2)) == 24


def test_a_key_that_is_there_is_a_bad_sample(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    write_images(source, {"bee": 1}, first=10)
    report = append(source, tmp_path / "out", PackOptions())
    assert (report.num_samples, len(report.bad_samples)) == (1, 20)
    assert report.bad_samples[0].reason == "duplicate key 'bee/000', already in the data set"
    before = all_bytes(tmp_path / "out")
    with pytest.raises(RequestError, match="none of the 21 samples can be used"):
        append(source, tmp_path / "out", PackOptions())
    assert all_bytes(tmp_path / "out") == before


def test_appended_samples_follow_their_unit(source, tmp_path):
    def table(name, folder, first):
        found = [
            (f"{c}/{i:03d}.png", c, f"p{i % 5}") for c in ("bee", "owl") for i in range(first, first + 10)
        ]
        return PackOptions(
            columns=TableColumns(table=write_table(tmp_path / name, found, "file,class,who"), unit="who")
        )

    pack(source, tmp_path / "out", table("t1.csv", source, 0))
    sides = {row[3]: row[1] for row in rows(tmp_path / "out").values()}
    more = write_images(tmp_path / "more", {"bee": 10, "owl": 10}, first=10)
    append(more, tmp_path / "out", table("t2.csv", more, 10))
    assert len(rows(tmp_path / "out")) == 40
    assert all(row[1] == sides[row[3]] for row in rows(tmp_path / "out").values())
    assert len(set(sides.values())) > 1


def test_appended_classes_follow_base_and_novel(tmp_path):
    source = write_images(tmp_path / "src", {"ant": 20, "bee": 20, "cat": 5})
    pack(source, tmp_path / "out", PackOptions(split="base-novel", num_base=2))
    more = write_images(tmp_path / "more", {"ant": 20, "cat": 3, "dog": 30}, first=20)
    append(more, tmp_path / "out", PackOptions())
    found = rows(tmp_path / "out")
    assert {row[1] for row in found.values() if row[0] in ("cat", "dog")} == {"novel"}
    counts = [sum(row[:2] == ("ant", side) for row in found.values()) for side in SPLITS]
    assert counts == [20, 10, 10, 0]


def test_appended_classes_follow_whole_classes(tmp_path):
    source = write_images(tmp_path / "src", dict.fromkeys("abcde", 3))
    pack(source, tmp_path / "out", PackOptions(split="classes"))
    sides = {row[0]: row[1] for row in rows(tmp_path / "out").values()}
    report = append(
        write_images(tmp_path / "m1", {"a": 3, "e": 3, "f": 2}, first=3), tmp_path / "out", PackOptions()
    )
    assert report.warnings == (
        "new classes 'f' are too few for split=classes: all of their images go to train",
    )
    append(write_images(tmp_path / "m2", {"g": 3, "h": 3, "i": 3}), tmp_path / "out", PackOptions())
    sides |= {"f": "train"}
    found = {(row[0], row[1]) for row in rows(tmp_path / "out").values()}
    assert len(found) == 9  # every class on one side
    assert {name: side for name, side in found if name in sides} == sides
    assert {side for name, side in found if name in "ghi"} == {"train", "val", "test"}


def test_what_append_cannot_do_is_refused(source, tmp_path):
    with pytest.raises(RequestError, match="no such folder; `pack` creates one"):
        append(source, tmp_path / "out", PackOptions())
    assert not (tmp_path / "out").exists()
    pack(source, tmp_path / "out", PackOptions(seed=1))
    more = write_images(tmp_path / "more", {"bee": 3}, first=20)
    before = all_bytes(tmp_path / "out")
    with pytest.raises(
        RequestError, match=r"by the data set's own rule \(stratified, seed 1\) .* leave split=classes out"
    ):
        append(more, tmp_path / "out", PackOptions(split="classes"))
    # What a killed append had left behind is gone after the next writer, whatever that is.
    for name in ("appended-000002/x", "catalogue/.next.partial"):
        (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "out" / name).touch()
    with (
        hold_dataset(tmp_path / "out"),
        pytest.raises(RequestError, match="is locked: another process is writing there"),
    ):
        append(more, tmp_path / "out", PackOptions())
    assert all_bytes(tmp_path / "out") == before


def test_a_class_order_makes_its_bytes_contiguous(source, tmp_path):
    for order in ("class", "mixed"):
        pack(source, tmp_path / order, PackOptions(order=order))
    runs = {}
    for order in ("class", "mixed"):
        catalogue = Catalogue.open(tmp_path / order)
        where = catalogue.locate(np.arange(20))
        runs[order] = catalogue.labels[np.lexsort((where.offset, where.shard))].tolist()
    assert runs["class"] == [0] * 10 + [1] * 10
    assert runs["mixed"] != sorted(runs["mixed"])
    strip = {key: row[:4] for key, row in rows(tmp_path / "class").items()}
    assert strip == {key: row[:4] for key, row in rows(tmp_path / "mixed").items()}


@pytest.mark.parametrize(
    "split",
    [{"seed": 4}, {"split": "classes", "fractions": (0.4, 0.3, 0.3)}, {"split": "base-novel", "num_base": 2}],
)
def test_resplit_divides_as_pack_would_have(tmp_path, split):
    source = write_images(tmp_path / "src", {"ant": 12, "bee": 11, "cat": 9, "dog": 5})
    pack(source, tmp_path / "a", PackOptions())
    before = all_bytes(tmp_path / "a")
    report = resplit(tmp_path / "a", ResplitOptions(**split))
    pack(source, tmp_path / "b", PackOptions(**split))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert report.version == 2
    after = all_bytes(tmp_path / "a")
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"catalogue/000002.arrow"}


def test_resplit_takes_labels_and_groups_by_path_or_key(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    old = rows(tmp_path / "out")
    found = [(f"{c}/{i:03d}.png", f"odd{i % 2}", f"{c}{i // 5}") for c in ("bee", "owl") for i in range(10)]
    table = write_table(tmp_path / "t.csv", found, "file,parity,half")
    options = ResplitOptions(table=table, path_column="file", label_column="parity", group_column="half")
    report = resplit(tmp_path / "out", options)
    assert (report.num_samples, report.bad_samples) == (20, ())
    for path, label, group in found:
        row = rows(tmp_path / "out")[path[:-4]]
        assert row == (label, old[path[:-4]][1], group, "", old[path[:-4]][4])  # the side stays

    sides = [(key, "novel" if key < "c" else "val") for key in old]
    keyed = write_table(tmp_path / "k.csv", sides, "key,side")
    resplit(tmp_path / "out", ResplitOptions(table=keyed, key_column="key", split_column="side"))
    third = rows(tmp_path / "out")
    assert {row[1] for key, row in third.items() if key.startswith("bee")} == {"novel"}
    assert third["owl/001"][:3] == ("odd1", "val", "owl0")
    assert rows(tmp_path / "out", 1) == old


# No path below a source: empty, blank, the source itself or its parent, roots.
NO_FILES = [
    "",
    " ",
    "\u200b",
    ".",
    "./",
    "/",
    "//",
    "\\",
    ".\\",
    "..",
    "../",
    "bee/..",
    "bee\\..",
    "%2F",
    "\u2800",
]


@pytest.mark.parametrize("path", NO_FILES)
def test_resplit_leaves_out_rows_whose_path_names_no_file(source, tmp_path, path):
    pack(source, tmp_path / "out", PackOptions())
    table = write_table(tmp_path / "t.csv", [("bee/000.png", "x"), (path, "x")], "file,name")
    report = resplit(tmp_path / "out", ResplitOptions(table=table, path_column="file", label_column="name"))
    assert report.num_samples == 1
    reasons = [bad.reason for bad in report.bad_samples if "is not in the table" not in bad.reason]
    assert reasons in (["no file is named"], ["no such sample in the data set"])


def test_resplit_leaves_out_what_the_table_does_not_name(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    found = [("bee/000", "x"), ("bee/001", ""), ("bee/000", "y"), ("gnu/000", "x")]
    table = write_table(tmp_path / "t.csv", found, "key,name")
    report = resplit(tmp_path / "out", ResplitOptions(table=table, key_column="key", label_column="name"))
    assert list(rows(tmp_path / "out")) == ["bee/000"]
    reasons = [(bad.path, bad.reason) for bad in report.bad_samples]
    assert reasons[:4] == [
        ("bee/000", "duplicate key 'bee/000', named by an earlier row"),
        ("gnu/000", "no such sample in the data set"),
        ("bee/001", "has no label"),
        ("bee/002", "is not in the table"),
    ]
    assert len(reasons) == 21
    assert len(Catalogue.open(tmp_path / "out").bad_samples) == 21


def test_resplit_keeps_the_others_and_the_last_row_counts(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    old = rows(tmp_path / "out")
    found = [("bee/000", "owl"), ("bee/001", ""), ("bee/000", "bat"), ("gnu/000", "owl"), ("owl/003", "owl")]
    table = write_table(tmp_path / "t.csv", found, "key,name")
    options = ResplitOptions(table=table, key_column="key", label_column="name", keep_others=True)
    report = resplit(tmp_path / "out", options)
    expected = {key: row for key, row in old.items() if key != "bee/001"}
    expected["bee/000"] = ("bat", *old["bee/000"][1:])
    assert rows(tmp_path / "out") == expected
    assert {(bad.path, bad.reason) for bad in report.bad_samples} == {
        ("gnu/000", "no such sample in the data set"),
        ("bee/001", "has no label"),
    }
    grouped = write_table(tmp_path / "g.csv", [("owl/001", "far")], "key,place")
    options = ResplitOptions(table=grouped, key_column="key", group_column="place", keep_others=True)
    resplit(tmp_path / "out", options)
    assert {key: row[2] for key, row in rows(tmp_path / "out").items() if row[2]} == {"owl/001": "far"}


def test_units_stay_together_when_divided_anew(source, tmp_path):
    found = [(f"{c}/{i:03d}.png", c, f"p{i // 2}") for c in ("bee", "owl") for i in range(10)]
    table = write_table(tmp_path / "t.csv", found, "file,class,who")
    pack(source, tmp_path / "out", PackOptions(columns=TableColumns(table=table, unit="who")))
    for seed in range(1, 6):
        resplit(tmp_path / "out", ResplitOptions(seed=seed))
        sides = {}
        for row in rows(tmp_path / "out").values():
            sides.setdefault(row[3], set()).add(row[1])
        assert len(sides) == 5
        assert all(len(side) == 1 for side in sides.values())
    with pytest.raises(RequestError, match=r"keep_together=…: 'p0' has samples of base and novel classes"):
        resplit(tmp_path / "out", ResplitOptions(split="base-novel", num_base=1))
    assert Catalogue.open(tmp_path / "out").version == 6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "nothing to change"),
        ({"table": "t.csv", "label_column": "x"}, "table=t.csv needs either key_column=… or path_column=…"),
        ({"table": "t.csv", "key_column": "k", "path_column": "p"}, "needs either"),
        ({"label_column": "x"}, "set it with table="),
        ({"split": "column"}, "split=column needs split_column="),
        ({"split": "base-novel"}, "needs num_base="),
        (
            {"keep_others": True, "split": "stratified"},
            "keep_others=True changes only the samples that a table names",
        ),
    ],
)
def test_resplit_refuses_options_that_contradict(options, text):
    with pytest.raises(RequestError, match=text):
        ResplitOptions(**options)


def test_resplit_refuses_a_table_of_other_samples(source, tmp_path):
    pack(source, tmp_path / "out", PackOptions())
    before = all_bytes(tmp_path / "out")
    table = write_table(tmp_path / "t.csv", [("elsewhere", "x")], "key,name")
    with pytest.raises(RequestError, match=r"names a sample of .* its keys are such as 'bee/0"):
        resplit(tmp_path / "out", ResplitOptions(table=table, key_column="key", label_column="name"))
    assert all_bytes(tmp_path / "out") == before
