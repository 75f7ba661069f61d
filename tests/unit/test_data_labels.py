"""Names of classes, groups and units: one reading, whatever kind of source they come from."""

import io
import json
import math
import os
import tarfile
import unicodedata
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import encode_noise, write_images
from hypothesis import given
from hypothesis import strategies as st

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.ingest.adopt import AdoptOptions, adopt
from fsl_dist.data.ingest.division import number_names
from fsl_dist.data.ingest.listing import TableColumns, list_folder, list_table
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import append, pack
from fsl_dist.data.ingest.shards.wds_samples import SampleKeys
from fsl_dist.data.names.readings import Names, read_text, read_value
from fsl_dist.errors import RequestError

NFD = unicodedata.normalize("NFD", "é")

# The value as a program holds it, its text in a CSV file, and the name that both have.
TYPED = {
    "whole number": (7, "7", "7"),
    "beyond 2^53": (2**53 + 1, "9007199254740993", "9007199254740993"),
    "whole, with a point": (1.0, "1.0", "1"),
    "negative zero": (-0.0, "-0.0", "0"),
    "large, with a point": (1e15, "1000000000000000.0", "1000000000000000"),
    "fraction": (1.5, "1.5", "1.5"),
    "small fraction": (1e-7, "1e-07", "1e-07"),
    "truth": (True, "True", "true"),
    "untruth": (False, "false", "false"),
    "missing": (None, "", ""),
    "not a number": (math.nan, "", ""),
    "text": ("owl", "owl", "owl"),
    "text of digits": ("007", "007", "007"),
    "text of a power": ("1e3", "1e3", "1e3"),
    "text of a missing value": ("nan", "nan", "nan"),
    "blank": (" \t", " \t", ""),
    "byte order mark": ("\ufeffowl", "\ufeffowl", "owl"),
    "zero width": ("o\u200bw\u2060l", "o\u200bw\u2060l", "owl"),
    "white space at the ends": ("\xa0owl\r\n", "\xa0owl\r\n", "owl"),
    "white space inside": ("barn\xa0owl", "barn\xa0owl", "barn owl"),
    "line break": ("barn\r\nowl", "barn\r\nowl", "barn owl"),
    "other form of Unicode": (f"caf{NFD}", f"caf{NFD}", "café"),
    "joiner that is seen": ("می\u200cخواهم", "می\u200cخواهم", "می\u200cخواهم"),
    "joiner that is not": ("o\u200dwl\u200c", "o\u200dwl\u200c", "owl"),
    "emoji of several": ("👩\u200d👧", "👩\u200d👧", "👩\u200d👧"),
    "control character": ("o\x07l", "o\x07l", r"o\x07l"),
}


@pytest.mark.parametrize("case", TYPED)
def test_a_value_and_its_text_have_one_name(case):
    value, text, name = TYPED[case]
    assert read_value(value) == read_value(text) == name
    if isinstance(value, str):
        assert read_value(value.encode()) == name
    assert read_value(name) == name


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float32(0.1), "0.1"),
        (np.float32(3), "3"),
        (np.int8(-3), "-3"),
        (np.bool_(True), "true"),
        (np.float64("nan"), ""),
        (Decimal("1.00"), "1"),
        (Decimal("1.50"), "1.50"),
        (Decimal("9007199254740993"), "9007199254740993"),
        ("2024-05-01 00:00:00", "2024-05-01"),
        ("2024-05-01T00:00:00.000000000", "2024-05-01"),
        ("2024-05-01 10:20:30.500000", "2024-05-01 10:20:30.5"),
        ("2024-05-01", "2024-05-01"),
        ("01", "01"),
        ("1.", "1."),
        ("1.10", "1.10"),
        ("01.0", "01.0"),
        (os.fsdecode(b"na\xefve"), r"na\xefve"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_other_values(value, name):
    assert read_value(value) == name


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([1], "is a list, neither text nor a number"),
        ({"a": 1}, "is a dict"),
        (math.inf, "is infinite"),
        (float(2**53), r"beyond 2\^53, where whole numbers are rounded"),
        (np.float32(2**24), r"beyond 2\^24"),
        (b"\xff", "bytes that are not UTF-8"),
    ],
)
def test_what_names_nothing(value, reason):
    with pytest.raises(ValueError, match=reason):
        read_value(value)


@given(st.text(st.one_of(st.characters(), st.sampled_from("a \u200b\u200d\u0301\ufeff\udcef\u0645"))))
def test_reading_a_name_again_changes_nothing(text):
    name = read_text(text)
    assert read_text(name) == name == name.strip()
    name.encode()
    assert read_value(read_value(text)) == read_value(text)
    assert unicodedata.is_normalized("NFC", name)


def test_doubts_name_what_was_read_as_one_and_words_for_none():
    names = Names("column 'class'")
    for value in ("owl", "owl", "owl\u200b", 1, "1.0", 1.0, "NaN", "", None, math.nan):
        names.read(value)
    names.read_folder(os.fsdecode(b"na\xefve"))
    assert names.find_doubts() == [
        "column 'class': '1', '1.0' are one name, '1'",
        "column 'class': 'owl', 'owl\\u200b' are one name, 'owl'",
        "column 'class': 1 names are not UTF-8 on the disk, such as 'na\\xefve'; they keep these escapes",
        "column 'class': 'NaN' is taken as a name; where it means none, leave the value empty",
    ]


def test_known_names_keep_their_numbers_however_they_were_read():
    names, numbers = number_names(["1", "true", "café", "owl", ""], ["True", "1.0", f"caf{NFD}"])
    assert names == ["True", "1.0", f"caf{NFD}", "owl"]
    assert numbers.tolist() == [1, 0, 2, 3, -1]
    assert number_names(["1", "1.0"], ["1.0", "1"])[1].tolist() == [1, 0]
    # folders, which are text, after a table
    assert number_names(["1.0", "True", "01"], ["1", "true"])[0] == ["1", "true", "01"]
    assert number_names(["1", "1.0"])[0] == ["1", "1.0"]


def write_frame(path, frame):
    """`frame` as the kind of file that `path` says."""
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=path.suffix == ".jsonl")
    return path


KINDS = (".csv", ".tsv", ".parquet", ".json", ".jsonl")

# One column for each kind of value; the second is missing in every one of them.
COLUMNS = {
    "whole numbers": (pd.array([1, None, 2], dtype="Int64"), ["1", "", "2"]),
    "whole numbers with a point": ([1.0, math.nan, 20.0], ["1", "", "20"]),
    "fractions": ([0.1, math.nan, 2.25], ["0.1", "", "2.25"]),
    "text": (["01", None, " 1"], ["01", "", "1"]),
    "truth": (pd.array([True, None, False], dtype="boolean"), ["true", "", "false"]),
    "categories": (pd.Categorical(["b", None, "a"]), ["b", "", "a"]),
    "invisible": (["a\u200b", "\ufeff", f"{NFD}\xa0"], ["a", "", "é"]),
    "words": (["nan", None, "NA"], ["nan", "", "NA"]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", COLUMNS)
def test_every_kind_of_table_holds_the_same_names(tmp_path, kind, column):
    source = write_images(tmp_path / "src", {"x": 3})
    values, names = COLUMNS[column]
    frame = pd.DataFrame({"file": [f"x/{i:03d}.png" for i in range(3)], "class": "c", "value": values})
    table = write_frame(tmp_path / f"t{kind}", frame)
    columns = TableColumns(table=str(table), group="value", blind_group="value", unit="value")
    candidates = list_table(source, columns).candidates
    assert [sample.group for sample in candidates] == names
    assert [sample.unit for sample in candidates] == [sample.blind_group for sample in candidates] == names
    listing = list_table(source, TableColumns(table=str(table), label="value"))
    assert [sample.label for sample in listing.candidates] == [name for name in names if name]
    assert [(bad.path, bad.reason) for bad in listing.bad] == [("x/001.png", "has no label")]


PARQUET = {
    "dates": (pa.array([0, None, 19000], pa.date32()), ["1970-01-01", "", "2022-01-08"]),
    "times": (
        pa.array([0, None, 1_500_000], pa.timestamp("us")),
        ["1970-01-01", "", "1970-01-01 00:00:01.5"],
    ),
    "nanoseconds": (
        pa.array([0, None, 10**9], pa.timestamp("ns")),
        ["1970-01-01", "", "1970-01-01 00:00:01"],
    ),
    "decimals": (pa.array([Decimal("1.00"), None, Decimal("1.50")], pa.decimal128(5, 2)), ["1", "", "1.50"]),
    "bytes of text": (pa.array([b"a", None, "é".encode()]), ["a", "", "é"]),
    "dictionary of numbers": (pa.array([3, None, 4]).dictionary_encode(), ["3", "", "4"]),
    "dictionary with floats": (pa.array([3.0, math.nan, 4.0]).dictionary_encode(), ["3", "", "4"]),
    "large text": (pa.array(["a", None, "b"], pa.large_string()), ["a", "", "b"]),
    "unsigned": (pa.array([2**64 - 1, None, 0], pa.uint64()), ["18446744073709551615", "", "0"]),
    "single precision": (pa.array(np.array([0.1, math.nan, 3], np.float32)), ["0.1", "", "3"]),
    "half precision": (pa.array(np.array([0.5, math.nan, 2], np.float16)), ["0.5", "", "2"]),
}


@pytest.mark.parametrize("case", PARQUET)
def test_types_that_only_parquet_has(tmp_path, case):
    source = write_images(tmp_path / "src", {"x": 3})
    values, names = PARQUET[case]
    files = [f"x/{i:03d}.png" for i in range(3)]
    pq.write_table(pa.table({"file": files, "class": ["c"] * 3, "g": values}), tmp_path / "t.parquet")
    found = list_table(source, TableColumns(table=str(tmp_path / "t.parquet"), group="g")).candidates
    assert [sample.group for sample in found] == names


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (pa.array([[1], [2]]), "column 'class' holds values of type list<"),
        (pa.array([{"a": 1}, {"a": 2}]), "column 'class' holds values of type struct<"),
        (pa.array([1, 2], pa.duration("s")), "holds values of type duration"),
        (pa.array([b"a", b"\xff"]), "row 2: column 'class' is bytes that are not UTF-8 text"),
        (
            pa.array([1.0, 1e17]),
            r"row 2: column 'class' is 1e\+17, a number with a decimal point beyond 2\^53",
        ),
        (pa.array([math.inf, 1.0]), "row 1: column 'class' is infinite"),
    ],
)
def test_columns_that_name_nothing_are_refused(tmp_path, values, text):
    source = write_images(tmp_path / "src", {"x": 2})
    files = ["x/000.png", "x/001.png"]
    pq.write_table(pa.table({"file": files, "class": values}), tmp_path / "t.parquet")
    with pytest.raises(RequestError, match=text):
        list_table(source, TableColumns(table=str(tmp_path / "t.parquet")))


def test_folders_are_read_as_text_and_spellings_are_reported(tmp_path):
    names = [
        "café",
        f"caf{NFD}",
        "owl",
        "owl\u200b",
        " ant ",
        "1.0",
        "1",
        "True",
        "nan",
        os.fsdecode(b"na\xefve"),
    ]
    for number, name in enumerate(names):
        folder = os.path.join(os.fsencode(tmp_path / "src"), os.fsencode(name))
        os.makedirs(folder)
        with open(folder + b"/0.png", "wb") as file:
            file.write(encode_noise(number))
    listing = list_folder(tmp_path / "src")
    assert len(listing.candidates) == len(names)
    assert {sample.label for sample in listing.candidates} == {
        *("café", "owl", "ant", "1.0", "1", "True", "nan", r"na\xefve")
    }
    merged, other, escaped, words = listing.warnings
    assert merged.endswith("are one name, 'café'")
    assert other.endswith("are one name, 'owl'")
    assert escaped.startswith("class folders: 1 names are not UTF-8 on the disk")
    assert words.startswith("class folders: 'nan' is taken as a name")


def test_members_of_shards_are_read_like_cells(tmp_path):
    cases = {name: case for name, case in TYPED.items() if name not in ("missing", "not a number", "blank")}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:

        def add(name, data):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        for number, (value, text, _) in enumerate(cases.values()):
            image = encode_noise(number, "JPEG")
            add(f"json/{number}.jpg", image)
            add(f"json/{number}.json", json.dumps({"label": value, "who": value, "none": None}).encode())
            if "\x07" not in text:  # a .cls with control characters is a binary number
                add(f"cls/{number}.jpg", image)
                add(f"cls/{number}.cls", text.encode())
    adopt(str(tmp_path / "a.tar"), tmp_path / "out", AdoptOptions(keys=SampleKeys(unit="who", group="none")))
    catalogue = Catalogue.open(tmp_path / "out")
    assert catalogue.group_names == []
    names = [name for _, _, name in cases.values()]
    for key, label, unit in zip(
        catalogue.keys(range(len(catalogue))), catalogue.labels, catalogue.units, strict=True
    ):
        kind, number = key.split("/")
        assert catalogue.class_names[label] == names[int(number)]
        assert unit == -1 if kind == "cls" else catalogue.unit_names[unit] == names[int(number)]


@pytest.mark.parametrize(
    "order", [(".csv", ".parquet", ".json"), (".parquet", ".jsonl", ".csv"), (".json", ".tsv", ".parquet")]
)
def test_appended_tables_of_other_kinds_keep_classes_and_units(tmp_path, order):
    source = write_images(tmp_path / "src", {"x": 90})
    for part, kind in enumerate(order):
        rows = np.arange(90)[part::3]
        patients = np.where(
            rows % 10 == 9, math.nan, rows // 3 % 7
        )  # with a missing one, so pandas takes floats
        frame = pd.DataFrame(
            {
                "file": [f"x/{i:03d}.png" for i in rows],
                "class": [float(i % 2) for i in rows],
                "patient": patients if part != 1 else pd.array(patients, dtype="Int64"),
            }
        )
        columns = TableColumns(table=str(write_frame(tmp_path / f"t{part}{kind}", frame)), unit="patient")
        options = PackOptions(columns=columns, processes=1)
        (append if part else pack)(source, tmp_path / "out", options)
    catalogue = Catalogue.open(tmp_path / "out")
    assert (len(catalogue), catalogue.class_names) == (90, ["0", "1"])
    assert sorted(catalogue.unit_names) == [str(i) for i in range(7)]
    sides = {unit: {SPLITS[s] for s in catalogue.splits[catalogue.units == unit]} for unit in range(7)}
    assert all(len(found) == 1 for found in sides.values())
    assert len(set.union(*sides.values())) > 1
    assert (catalogue.units == -1).sum() == 9


def test_a_missing_unit_is_a_unit_of_its_own(tmp_path):
    source = write_images(tmp_path / "src", {"x": 40})
    frame = pd.DataFrame(
        {"file": [f"x/{i:03d}.png" for i in range(40)], "class": "c", "who": [None] * 38 + ["a", "a"]}
    )
    columns = TableColumns(table=str(write_frame(tmp_path / "t.csv", frame)), unit="who")
    report = pack(source, tmp_path / "out", PackOptions(columns=columns, processes=1))
    assert report.split_counts["train"] in range(26, 31)
    assert set(report.split_counts) == {"train", "val", "test"}
