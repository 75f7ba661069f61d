"""Folders of splits: which are read so, which are classes, which are asked about."""

import os
import shutil

import pytest
from commands import cli_of
from dataset_files import all_bytes, write_images, write_table

import fsl_dist
from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.ingest.inspection import describe, summarise
from fsl_dist.errors import RequestError


def write(root, *folders, count=2):
    """Class folders, or split folders with classes in them, with `count` images each."""
    return write_images(root, dict.fromkeys(folders, count), size=(4, 4))


def pack(source, out, **options):
    return fsl_dist.pack(source, out, processes=1, progress=False, **options)


def found(data):
    """(split, class) of every sample → how many."""
    counts: dict[tuple[str, str], int] = {}
    for label, split in zip(data.labels.tolist(), data.splits.tolist(), strict=True):
        pair = SPLITS[split], data.class_names[label]
        counts[pair] = counts.get(pair, 0) + 1
    return counts


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["train", "valid", "test"], ["train", "val", "test"]),
        (["train", "validation"], ["train", "val"]),
        (["train", "dev", "test"], ["train", "val", "test"]),
        (["Train", "VAL", "Test"], ["train", "val", "test"]),
        (["training", "testing"], ["train", "test"]),
        (["Training", "Validation", "Testing"], ["train", "val", "test"]),
        (["train", "test", "novel"], ["train", "test", "novel"]),
        (["train", "eval"], ["train", "test"]),
        (["training_set", "test_set"], ["train", "test"]),
        (["seg_train", "seg_test"], ["train", "test"]),
        (["Train_Data", "Valid_Data", "Test_Data"], ["train", "val", "test"]),
        (["img-train", "img-val"], ["train", "val"]),
        (["trainset", "testset"], ["train", "test"]),
        (["TrainImages", "TestImages"], ["train", "test"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["x.train 1", "x.dev 1"], ["train", "val"]),
        (["train", "test_images"], ["train", "test"]),  # the same classes in both
    ],
)
def test_folders_named_like_splits_are_the_splits(tmp_path, folders, expected):
    source = write(
        tmp_path / "src", *(f"{folder}/{name}" for folder in folders for name in ("cat", "dog/deep"))
    )
    data = pack(source, tmp_path / "out")
    assert found(data) == {(split, name): 2 for split in expected for name in ("cat", "dog")}
    assert data.options["split"] == "folders"
    assert data.report.bad_samples == data.report.warnings == ()
    read_as = data.report.notes[0]
    assert read_as.startswith(f"'{source}' was read as splits, train")
    assert read_as.endswith("split_folders=False reads all of them as classes")
    for folder, split in zip(folders, expected, strict=True):
        assert split in read_as
        assert folder in read_as
    assert any("holds out data.holdout_fraction of train" in note for note in data.report.notes) == (
        "val" not in expected
    )
    summary = summarise(Catalogue.open(tmp_path / "out"))
    assert summary.split_rule == "folders"
    assert "split       folders" in describe(summary)
    # Read as classes, the folders are classes of these names, divided by the rule that is asked for.
    data = pack(source, tmp_path / "classes", split_folders=False, split="classes", fractions=(0.5, 0.0, 0.5))
    assert data.class_names == sorted(folders)
    assert data.options["split"] == "classes"
    (note,) = data.report.notes
    assert note.startswith(f"'{source}' was read as class folders, also {', '.join(sorted(folders))}")


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        (["cat", "dog"], ["cat", "dog"]),
        (["train", "bus", "car"], ["bus", "car", "train"]),  # a train is also a vehicle
        (["train/deep", "bus"], ["bus", "train"]),
        (["test", "dev"], ["dev", "test"]),
        (["valid", "invalid"], ["invalid", "valid"]),
        (["trains/cat", "tests/cat"], ["tests", "trains"]),
        (["strain_a/cat", "latest_a/cat"], ["latest_a", "strain_a"]),
        (["bullet_train", "blood_test", "cat"], ["blood_test", "bullet_train", "cat"]),
    ],
)
def test_other_folders_stay_classes(tmp_path, folders, classes):
    data = pack(write(tmp_path / "src", *folders), tmp_path / "out")
    assert data.class_names == classes
    assert data.options["split"] == "stratified"
    named = [name for name in classes if name in ("train", "test", "dev", "valid")]
    assert data.report.notes == (
        (f"'{tmp_path / 'src'}' was read as class folders, also {', '.join(named)}",) if named else ()
    )


@pytest.mark.parametrize(
    "folders",
    [
        ["train_images", "test_images"],  # no class folders
        ["train_a/cat", "train_b/cat", "test_a/cat"],  # two of one split
        ["train_a/cat", "test_b/dog"],  # neither alike nor of the same classes
        ["seg_train/seg_train/cat", "seg_test/seg_test/cat"],
        ["train_set/cat", "test_set/cat", "extra/cat"],
    ],
)
def test_longer_names_of_splits_that_are_read_as_classes_are_named(tmp_path, folders):
    source = write(tmp_path / "src", *folders)
    data = pack(source, tmp_path / "out")
    tops = sorted({folder.split("/")[0] for folder in folders})
    assert data.class_names == tops
    named = ", ".join(name for name in tops if name != "extra")
    assert data.report.notes[0] == (
        f"'{source}' was read as class folders, also {named}; split_folders=True reads them as splits"
    )


def test_longer_names_are_splits_of_classes_apart_and_where_it_is_said(tmp_path):
    source = write(tmp_path / "src", "mini_train/cat", "mini_test/dog")
    (source / "train_logs").mkdir()  # no images
    data = pack(source, tmp_path / "out")
    assert found(data) == {("train", "cat"): 2, ("test", "dog"): 2}
    source = write(tmp_path / "said", "train_a/cat", "test_b/dog")
    data = pack(source, tmp_path / "said_out", split_folders=True)
    assert found(data) == {("train", "cat"): 2, ("test", "dog"): 2}
    assert "train (train_a/), test (test_b/)" in data.report.notes[0]


ASKED = {
    "next to others": (["train/cat", "val/cat", "extra/cat"], "train, val next to other folders with images (extra)"),
    "two of one split": (["train/cat", "val/cat", "valid/cat"], "val, valid are all named like the split val"),
    "two of one name": (["train/cat", "Train/dog", "test/cat"], "Train, train are all named like the split train"),
    "no class folders": (["train", "test"], "'train' has no class folders with images: name the classes with table=…"),
    "no classes in train": (["train", "test/cat"], "'train' has no class folders with images"),
    "no train": (["val/cat", "test/cat"], "test, val but no train: split_folders=True reads them as splits"),
}  # fmt: skip


@pytest.mark.parametrize("case", ASKED)
def test_what_can_be_read_either_way_is_asked_in_one_line(tmp_path, case):
    folders, text = ASKED[case]
    source = write(tmp_path / "src", *folders)
    with pytest.raises(RequestError) as error:
        pack(source, tmp_path / "out")
    assert text in str(error.value)
    assert "split_folders=False reads all of them as classes" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    data = pack(source, tmp_path / "out", split_folders=False)
    assert data.class_names == sorted({folder.split("/")[0] for folder in folders})


def test_what_stands_next_to_split_folders_without_images_is_no_hindrance(tmp_path):
    source = write(tmp_path / "src", "train/cat", "test/cat", ".cache/cat")
    (source / "annotations").mkdir()
    (source / "annotations/a.xml").write_text("<a/>")
    (source / "val").mkdir()
    (source / "labels.csv").write_text("file,class\n")
    data = pack(source, tmp_path / "out")
    assert found(data) == {("train", "cat"): 2, ("test", "cat"): 2}
    assert f"'{source / 'val'}' has no images" in data.report.notes
    assert data.report.notes[0].startswith(f"'{source}' was read as splits, train, test, each")
    assert "holds out data.holdout_fraction of train" in data.report.notes[1]
    assert data.report.num_ignored == 1


def test_images_without_a_class_are_named_in_one_line_for_each_folder(tmp_path):
    source = write(tmp_path / "src", "train/cat", "train/dog")
    write(source, "test", "train", count=3)
    write(source, "", count=1)
    data = pack(source, tmp_path / "out")
    assert found(data) == {("train", "cat"): 2, ("train", "dog"): 2}
    text = "its 3 images are in no class folder: they have no label"
    assert [(bad.path, bad.reason) for bad in data.report.bad_samples] == [("test", text), ("train", text)]
    assert f"'{source}': 1 images next to the folders were skipped" in data.report.notes


def test_links_to_split_folders_are_not_followed_and_not_lost(tmp_path):
    source = write(tmp_path / "src", "test/cat")
    write(tmp_path / "elsewhere", "cat")
    os.symlink(tmp_path / "elsewhere", source / "train")
    with pytest.raises(
        RequestError,
        match="'train' is a link to a folder, which is not followed: replace the link by the folder",
    ):
        pack(source, tmp_path / "out")
    (source / "train").unlink()
    (source / "train").mkdir()
    os.symlink(tmp_path / "elsewhere/cat", source / "train/cat")
    with pytest.raises(RequestError, match="'train/cat' is a link to a folder, which is not followed"):
        pack(source, tmp_path / "out")
    (source / "train/cat").unlink()
    (source / "train").rmdir()
    os.symlink(tmp_path / "elsewhere", source / "train")
    (source / "train").unlink()
    shutil.copytree(tmp_path / "elsewhere", source / "train")
    os.symlink(tmp_path / "elsewhere", source / "val")
    data = pack(source, tmp_path / "out")
    assert [(bad.path, bad.reason) for bad in data.report.bad_samples] == [
        ("val", "a link to a folder is not followed")
    ]
    assert any("'val' is a link to a folder" in note for note in data.report.notes)


def test_a_class_that_train_lacks_is_warned_of(tmp_path):
    source = write(tmp_path / "src", "train/cat", "val/dog", "test/cat", "test/owl", "novel/yak")
    data = pack(source, tmp_path / "out")
    assert data.report.warnings == ("of the classes in val and test, train has no images of 'dog', 'owl'",)
    # What an append adds to train counts.
    more = write(tmp_path / "more", "train/dog", "train/owl", "test/dog", count=3)
    data = pack(more, tmp_path / "out", append=True)
    assert data.report.warnings == ()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "stratified"}, "give its splits and split=stratified divides again; leave one out"),
        ({"split": "base-novel", "num_base": 1}, "split=base-novel and num_base=1 divides again"),
        ({"fractions": (0.5, 0.2, 0.3)}, "give its splits and fractions=0.5,0.2,0.3 divides again"),
        (
            {"split_folders": True, "table": "t.csv"},
            "split_folders=True reads folders and table=t.csv names the images",
        ),
        ({"split_column": "s"}, "select columns of a table"),
        ({"keep_together": "s"}, "select columns of a table"),
    ],
)
def test_options_that_divide_again_are_refused(tmp_path, options, text):
    source = write(tmp_path / "src", "train/cat", "test/cat")
    with pytest.raises(RequestError) as error:
        pack(source, tmp_path / "out", **options)
    assert text in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_table_names_images_in_split_folders_as_ever(tmp_path):
    source = write(tmp_path / "src", "train/cat", "test/cat")
    rows = [(f"{side}/cat/{i:03d}.png", f"c{i}") for side in ("train", "test") for i in range(2)]
    data = pack(source, tmp_path / "out", table=write_table(tmp_path / "t.csv", rows, "file,class"))
    assert data.class_names == ["c0", "c1"]
    assert data.options["split"] == "stratified"


def test_append_follows_what_the_data_set_was_made_of(tmp_path):
    splits = write(tmp_path / "splits", "train/cat", "test/cat")
    classes = write(tmp_path / "classes", "cat", "dog", count=4)
    pack(splits, tmp_path / "of_splits")
    pack(classes, tmp_path / "of_classes")
    with pytest.raises(RequestError, match=r"has no folder that is named like a split .*append=True"):
        pack(classes, tmp_path / "of_splits", append=True)
    with pytest.raises(RequestError, match=r"divides by the data set's own rule \(stratified\)"):
        pack(splits, tmp_path / "of_classes", append=True)
    with pytest.raises(RequestError, match="split_folders=False gives no splits"):
        pack(splits, tmp_path / "of_splits", append=True, split_folders=False)
    data = pack(splits, tmp_path / "of_classes", append=True, split_folders=False)
    assert data.class_names == ["cat", "dog", "test", "train"]
    # One split is enough where it is known that folders are splits.
    more = write(tmp_path / "more", "Validation/cat", "Validation/owl", count=3)
    data = pack(more, tmp_path / "of_splits", append=True)
    assert found(data) == {
        ("train", "cat"): 2,
        ("test", "cat"): 2,
        ("val", "cat"): 3,
        ("val", "owl"): 3,
    }
    assert data.options["split"] == "folders"
    # A table that names splits serves as well, and split folders serve a data set that was made of such a table.
    rows = [(f"cat/{i:03d}.png", "cat", "test") for i in range(4)]
    table = write_table(tmp_path / "t.csv", rows, "file,class,side")
    data = pack(classes, tmp_path / "of_splits", append=True, table=table, split_column="side")
    assert found(data)["test", "cat"] == 6
    pack(classes, tmp_path / "of_table", table=table, split_column="side")
    assert found(pack(splits, tmp_path / "of_table", append=True)) == {
        ("train", "cat"): 2,
        ("test", "cat"): 6,
    }


def test_a_folder_above_split_folders_is_pointed_out(tmp_path):
    write(tmp_path / "src", "photos/train/cat", "photos/test/cat")
    data = pack(tmp_path / "src", tmp_path / "out")
    assert data.report.notes == (
        "folders named like splits in the class folders (photos) were read like any other; if these are splits with "
        f"class folders, pack '{tmp_path / 'src/photos'}'",
    )
    data = pack(tmp_path / "src/photos/train/..", tmp_path / "splits")
    assert data.split_names == ["train", "test"]
    data = pack(write(tmp_path / "one", "train/cat", "train/dog"), tmp_path / "single")
    assert data.report.notes[1] == (
        f"'train' is the only class; if its folders (cat, dog) are the classes, pack '{tmp_path / 'one/train'}'"
    )


def test_the_bytes_do_not_depend_on_processes(tmp_path):
    source = write(tmp_path / "src", "train/cat", "train/dog", "val/cat", "test/dog", count=20)
    fsl_dist.pack(source, tmp_path / "one", processes=1, progress=False)
    fsl_dist.pack(source, tmp_path / "two", processes=2, progress=False)
    assert all_bytes(tmp_path / "one") == all_bytes(tmp_path / "two")


def test_a_data_set_of_splits_at_a_store_is_that_on_disk(tmp_path, s3):
    source = write(tmp_path / "src", "train/cat", "val/cat", "test/dog")
    on_disk = pack(source, tmp_path / "disk")
    assert pack(source, f"{s3}/splits").fingerprint == on_disk.fingerprint
    more = write(tmp_path / "more", "test/owl")
    assert found(pack(more, f"{s3}/splits", append=True)) == {**found(on_disk), ("test", "owl"): 2}


def test_the_command_speaks_of_its_own_options(tmp_path, monkeypatch, capfd, caplog):
    source = write(tmp_path / "src", "train/cat", "test/cat", "test")
    run = cli_of(monkeypatch, capfd)
    code, out, _ = run("pack", source, tmp_path / "out")
    assert code == 1  # images without a class were left out
    assert "was read as splits, train, test" in caplog.text
    assert "train 2, test 2" in out
    assert run("pack", source, tmp_path / "allowed", "--allow-bad")[0] == 0
    assert run("pack", source, tmp_path / "classes", "--no-split-folders")[0] == 0
    assert Catalogue.open(tmp_path / "classes").class_names == ["test", "train"]
    code, _, err = run("pack", source, tmp_path / "no", "--split", "stratified")
    assert code == 2
    assert "--no-split-folders reads the folders as classes" in err
    assert len(err.strip().splitlines()) == 1
