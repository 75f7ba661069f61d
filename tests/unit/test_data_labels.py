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
from fsl_dist.data.names.readings import Names, read_known, read_text, read_value

NFD = unicodedata.normalize("NFD", "é")

ENGLAND = "🏴" + "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng") + "\U000e007f"

# The value as a program holds it, its text in a CSV file, and the name that both have.
TYPED = {
    "whole number": (7, "7", "7"),
    "beyond 2^53": (2**53 + 1, "9007199254740993", "9007199254740993"),
    "whole, with a point": (1.0, "1.0", "1"),
    "negative zero": (-0.0, "-0.0", "0"),
    "large, with a point": (1e15, "1000000000000000.0", "1000000000000000"),
    "fraction": (1.5, "1.5", "1.5"),
    "small fraction": (1e-7, "1e-07", "0.0000001"),
    "fraction with an exponent": (1.5e-5, "1.5E-5", "0.000015"),
    "many digits, with a sign": (1e5, "1e+05", "100000"),
    "many digits, with a point": (1.5e10, "1.5E10", "15000000000"),
    "in scientific form": (0.0015, "1.500000e-03", "0.0015"),
    "zero with an exponent": (0.0, "0E-8", "0"),
    "zone": ("2024-05-01T06:20:30Z", "2024-05-01 08:20:30+02:00", "2024-05-01 06:20:30Z"),
    "zone in words": ("2024-05-01T06:20:30.500Z", "2024-05-01 06:20:30.5 UTC", "2024-05-01 06:20:30.5Z"),
    "zone over midnight": ("2024-05-01 00:20:30+0200", "2024-04-30 16:50:30-0530", "2024-04-30 22:20:30Z"),
    "midnight in UTC": ("2024-05-01 00:00:00+00:00", "2024-05-01T02:00:00+02", "2024-05-01 00:00:00Z"),
    "time of day": ("10:20:30", "10:20:30.000000", "10:20:30"),
    "time of day with a fraction": ("10:20:30.5", "10:20:30.500000", "10:20:30.5"),
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
    "emoji with a joiner and a selector": ("❤\ufe0f\u200d🔥", "❤\u200d🔥", "❤\u200d🔥"),
    "flag of tags": (ENGLAND, f"{ENGLAND}\ufe0f", ENGLAND),
    "Braille blank": ("barn\u2800owl\u2800", "barn owl", "barn owl"),
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
        (np.float32(1e-7), "0.0000001"),
        (Decimal("1E-7"), "0.0000001"),
        (Decimal("0.00000010"), "0.0000001"),
        ("0.00000010", "0.0000001"),
        (Decimal("1E+5"), "100000"),
        ("4e16", "4e16"),
        ("1e22", "1e22"),
        ("1e-1000", "1e-1000"),
        ("2024-13-01 00:00:00Z", "2024-13-01 00:00:00Z"),
        ("0001-01-01 00:00:00+02:00", "0001-01-01 00:00:00+02:00"),
        ("2024-05-01 10:20-11:30", "2024-05-01 10:20-11:30"),
        ("10:20", "10:20"),
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
        (float(2**53), r"beyond 2\^53, where whole numbers lose digits"),
        (np.float32(2**24), r"beyond 2\^24"),
        (1e22, r"is 1e\+22, .* beyond 2\^53"),
        ("1e+22", r"is 1e\+22, .* beyond 2\^53"),
        ("1.0E22", r"is 1.0E22, .* beyond 2\^53"),
        (b"\xff", "bytes that are not UTF-8"),
    ],
)
def test_what_names_nothing(value, reason):
    with pytest.raises(ValueError, match=reason):
        read_value(value)


# Unicode's Default_Ignorable_Code_Point, without the two joiners, as `\p{Default_Ignorable_Code_Point}` of Perl 5.36 lists it.
IGNORABLE = (
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200B),
    (0x200E, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
)  # fmt: skip


@pytest.mark.parametrize(("first", "last"), IGNORABLE)
def test_characters_that_are_not_displayed_make_no_other_name(first, last):
    for code in {first, (first + last) // 2, last}:
        assert read_text(f"{chr(code)}c{chr(code)}at{chr(code)}") == "cat"
        assert read_text(f"가{chr(code)}") == "가"
        assert read_text(chr(code)) == ""
    for beside in (chr(first - 1), chr(last + 1)):
        ignored = any(low <= ord(beside) <= high for low, high in IGNORABLE)
        assert (beside in read_text(f"\u0939{beside}\u0939")) != (ignored or beside.isspace())


@given(
    st.text(
        st.one_of(
            st.characters(),
            st.sampled_from(
                "aK \u200b\u200d\u0301\ufeff\udcef\u0645\u2800\u3000\u212a\ufe0f\u3164🏴\U000e0067\U000e007f"
            ),
        )
    )
)
def test_reading_a_name_again_changes_nothing(text):
    name = read_text(text)
    assert read_text(name) == name == name.strip()
    name.encode()
    assert read_known(read_known(text)) == read_known(text)
    assert unicodedata.is_normalized("NFC", name)


@given(st.floats(allow_nan=False, max_value=2**53 - 1, min_value=1 - 2**53))
def test_a_number_has_one_name_however_it_is_written(number):
    name = read_value(number)
    assert float(name) == number
    assert "e" not in name
    assert name == read_value(str(number)) == read_value(str(number).upper()) == read_value(name)
    if abs(number) < 1e-6:  # larger decimals keep zeros at their ends
        assert name == read_value(Decimal(str(number)))


def test_doubts_name_what_was_read_as_one_and_words_for_none():
    names = Names("column 'class'")
    for value in ("owl", "owl", "owl\u200b", 1, "1.0", 1.0, "NaN", "", None, math.nan):
        names.read(value)
    names.read_folder(os.fsdecode(b"na\xefve"))
    for value in ("A\0B", "1e22", "a\nb"):
        names.read(value)
    assert names.find_doubts() == [
        "column 'class': '1', '1.0' are one name, '1'",
        "column 'class': 'owl', 'owl\\u200b' are one name, 'owl'",
        "column 'class': 1 names are not UTF-8 on disk, such as 'na\\xefve'; they keep these escapes",
        "column 'class': 1 names contain control characters, such as 'A\\x00B'; they keep these escapes",
        "column 'class': '1e22' is read as text; to use a number, write all its digits",
        "column 'class': 'NaN' is read as a name; if it means none, leave the value empty",
    ]


def test_known_names_keep_their_numbers_however_they_were_read():
    names, numbers = number_names(["1", "true", "café", "owl", ""], ["True", "1.0", f"caf{NFD}"])
    assert names == ["True", "1.0", f"caf{NFD}", "owl"]
    assert numbers.tolist() == [1, 0, 2, 3, -1]
    assert number_names(["1", "1.0"], ["1.0", "1"])[1].tolist() == [1, 0]
    # folders, which are text, after a table
    assert number_names(["1.0", "True", "01"], ["1", "true"])[0] == ["1", "true", "01"]
    assert number_names(["1e+22", "cat", "0.0000001"], ["1e+22", "cat\ufe0f", "1e-07"])[1].tolist() == [
        0,
        1,
        2,
    ]
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
    "small fractions": ([1e-7, math.nan, 1.5e-5], ["0.0000001", "", "0.000015"]),
    "text with a zone": (
        ["2024-05-01T08:20:30+0200", None, "2024-05-01 06:20:30+00:00"],
        ["2024-05-01 06:20:30Z", "", "2024-05-01 06:20:30Z"],
    ),
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
    assert escaped.startswith("class folders: 1 names are not UTF-8 on disk")
    assert words.startswith("class folders: 'nan' is read as a name")


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
