"""Tables of images: encodings, cells, rows and columns that are read or refused in one line, and paths as people write them."""

import csv
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import encode_noise, write_images, write_table

from fsl_dist.data.ingest.listing import TableColumns, list_table
from fsl_dist.data.names.tables import read_columns, read_table
from fsl_dist.errors import RequestError

PLAIN = "file,class\nx/000.png,café\nx/001.png,owl\n"
EXPECTED = {"file": ["x/000.png", "x/001.png"], "class": ["café", "owl"]}

READ = {
    "UTF-8": PLAIN.encode(),
    "UTF-8 with a mark": PLAIN.encode("utf-8-sig"),
    "UTF-16 with a mark": PLAIN.encode("utf-16"),
    "UTF-16, other order": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "UTF-32 with a mark": PLAIN.encode("utf-32"),
    "line ends of Windows": PLAIN.replace("\n", "\r\n").encode(),
    "line ends of old Macs": PLAIN.replace("\n", "\r").encode(),
    "no line end": PLAIN.rstrip().encode(),
    "blank lines": PLAIN.replace("\n", "\n\n").encode(),
    "blank lines first": f"\n  \r\n,\n{PLAIN}".encode(),
    "a mark and blank lines first": f"\n\n{PLAIN}".encode("utf-8-sig"),
    "separator of Excel": f"sep=,\r\n{PLAIN}".encode(),
    "another separator of Excel": f"sep=;\r\n{PLAIN.replace(',', ';')}".encode("utf-16"),
    "a tab as the separator": f"sep=\t\n{PLAIN.replace(',', chr(9))}".encode(),
    "separator in quotes": f'"sep=|"\r{PLAIN.replace(",", "|")}'.encode("utf-8-sig"),
    "separator and blank lines": f"SEP=,\n\n{PLAIN}".encode(),
    "quotes": '"file","class"\n"x/000.png","café"\n"x/001.png","owl"\n'.encode(),
    "invisible head": "\u200bfile , class\xa0\nx/000.png,café\nx/001.png,owl\n".encode(),
    "long cell elsewhere": f"file,rle,class\nx/000.png,{'1 2 ' * 50_000},café\nx/001.png,,owl\n".encode(),
    "line breaks in a cell elsewhere": 'file,note,class\nx/000.png,"a\nb\r\n""c"", d",café\nx/001.png,,owl\n'.encode(),
    "Latin-1 elsewhere": b"file,note,class\nx/000.png,na\xefve,caf\xc3\xa9\nx/001.png,,owl\n",
    "NUL elsewhere": "file,note,class\nx/000.png,\0,café\nx/001.png,,owl\n".encode(),
    "a column twice elsewhere": "file,n,n,class\nx/000.png,1,2,café\nx/001.png,,,owl\n".encode(),
}


@pytest.mark.parametrize("case", READ)
def test_a_csv_file_is_read(tmp_path, case):
    (tmp_path / "t.csv").write_bytes(READ[case])
    limit = csv.field_size_limit()
    assert read_columns(tmp_path / "t.csv", ["file", "class"]) == EXPECTED
    assert csv.field_size_limit() == limit


def test_a_label_of_any_length_is_read(tmp_path):
    source = write_images(tmp_path / "src", {"x": 1})
    write_table(tmp_path / "t.csv", [("x/000.png", "long " * 100_000)], "file,class")
    found = list_table(source, TableColumns(table=str(tmp_path / "t.csv")))
    assert found.candidates[0].label == ("long " * 100_000).strip()


REFUSED = {
    "Latin-1": (".csv", PLAIN.encode("latin-1"), r"line 2, column 'class': 'caf\\xe9' is not UTF-8 text"),
    "Windows-1252": (
        ".csv",
        b"file,class\nx/\x93a\x94.png,owl\n",
        r"line 2, column 'file': 'x/\\x93a\\x94.png' is not UTF-8 text",
    ),
    "UTF-16 without a mark": (
        ".csv",
        PLAIN.encode("utf-16-le"),
        "NUL bytes in its head: it is UTF-16 without",
    ),
    "UTF-16, cut": (".csv", PLAIN.encode("utf-16")[:-1], "is not sound UTF-16"),
    "empty": (".csv", b"", "'.*t.csv' is empty; its first line must name the columns"),
    "a mark alone": (".csv", b"\xef\xbb\xbf", "is empty"),
    "a mark of UTF-16 alone": (".tsv", b"\xff\xfe", "is empty"),
    "blank lines alone": (".csv", b"\n \r\n\n", "is empty"),
    "a separator alone": (".csv", b"sep=;\n", "is empty"),
    "empty JSON": (".json", b"", "is empty"),
    "empty JSON lines": (".jsonl", b"", "is empty"),
    "empty Parquet": (".parquet", b"", "is empty"),
    "too many cells after a separator": (".csv", b"sep=;\n\nfile;class\na;b;c\n", "line 4: 3 cells"),
    "head alone": (".csv", b"file,class\n", "has no rows"),
    "too many cells": (".csv", b"file,class\na,b\na,b,c\n", "line 3: 3 cells, the head has 2"),
    "too few cells": (".csv", b"file,class\na,b\n\na\n", "line 4: 1 cells, the head has 2"),
    "open quote": (
        ".csv",
        b'file,class\na,"b\nc,d\n',
        "line 3, is not a row of a CSV file: unexpected end of data",
    ),
    "text after a quote": (".csv", b'file,class\na,"b"c\n', "line 2, is not a row of a CSV file"),
    "semicolons": (
        ".csv",
        b"file;class\na;b\n",
        "has no column 'file'; it has file;class. .* divided by ';': save it with commas",
    ),
    "tabs": (".csv", b"file\tclass\na\tb\n", "divided by a tab: rename it to .tsv"),
    "commas": (".tsv", b"file,class\na,b\n", "divided by ',': rename it to .csv"),
    "a column twice": (".csv", b"file,class,class\na,b,c\n", "has 2 columns 'class'; rename all but one"),
    "another kind": (".xlsx", b"PK", "must end in .csv, .tsv, .parquet, .json or .jsonl"),
    "no Parquet": (".parquet", b"PAR1", "cannot be read as Parquet"),
    "no JSON": (".json", b"[{", "is not JSON"),
    "an object": (".json", b'{"file": "a"}', "is not a list of objects"),
    "a list of lists": (".json", b"[[1]]", "entry 1, is not an object"),
    "no JSON line": (".jsonl", b'{"file": "a", "class": 1}\n{', "line 2, is not JSON"),
    "a line of Latin-1": (
        ".jsonl",
        b'{"file": "a", "class": "caf\xe9"}\n',
        r"line 1, column 'class': 'caf\\xe9' is not UTF-8",
    ),
    "no object": (".json", b"[]", "has no rows"),
    "a key that no object has": (".jsonl", b'{"file": "a"}\n', "has no column 'class'; it has file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, case):
    ending, content, text = REFUSED[case]
    (tmp_path / f"t{ending}").write_bytes(content)
    with pytest.raises(RequestError, match=text) as raised:
        read_columns(tmp_path / f"t{ending}", ["file", "class"])
    assert "\n" not in str(raised.value)


def test_nul_in_a_name_is_reported(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"file,class\nx/000.png,A\0B\nx/001.png,A\n")
    rows = read_table(tmp_path / "t.csv", ["file"], ["class"])
    assert rows.names == {"class": ["A\\x00B", "A"]}
    assert rows.warnings == [
        "column 'class': 1 names contain control characters, such as 'A\\x00B'; they keep these escapes"
    ]


def test_a_parquet_column_that_is_there_twice_is_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"])] * 3, names=["file", "class", "class"])
    pq.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(RequestError, match="has 2 columns 'class'"):
        read_columns(tmp_path / "t.parquet", ["file", "class"])


NFD = unicodedata.normalize("NFD", "é")

# Path in the table → the file that it names.
SPELLINGS = {
    "plain": ("x/000.png", "x/000.png"),
    "dot": ("./x/000.png", "x/000.png"),
    "detour": ("x/../x/./000.png", "x/000.png"),
    "two slashes": ("x//000.png", "x/000.png"),
    "backslashes": (".\\x\\000.png", "x/000.png"),
    "white space": (" x/000.png\t", "x/000.png"),
    "invisible": ("\ufeffx/000.png\u200b", "x/000.png"),
    "escapes of a URL": ("x/a%20b%C3%A9.png", "x/a bé.png"),
    "form D for C": (f"x/a b{NFD}.png", "x/a bé.png"),
    "form C for D": ("y é/0.png", f"y {NFD}/0.png"),
    "a percent sign": ("x/5%20.png", "x/5%20.png"),
    "a backslash": ("x/b\\c.png", "x/b\\c.png"),
    "white space at the end": ("x/end .png ", "x/end .png "),
}


@pytest.fixture
def spelled(tmp_path):
    """A source with each file that `SPELLINGS` names."""
    for number, path in enumerate(sorted({path for _, path in SPELLINGS.values()})):
        file = tmp_path / "src" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_noise(number))
    return tmp_path / "src"


@pytest.mark.parametrize("case", SPELLINGS)
def test_paths_as_people_write_them(spelled, tmp_path, case):
    written, path = SPELLINGS[case]
    write_table(tmp_path / "t.csv", [(written, "c", written)], "file,class,mask")
    (found,) = list_table(spelled, TableColumns(table=str(tmp_path / "t.csv"), mask="mask")).candidates
    assert found.key_path == path
    assert Path(found.file).read_bytes() == Path(found.mask).read_bytes() == (spelled / path).read_bytes()


def test_an_absolute_path_has_the_key_of_its_place_in_the_source(spelled, tmp_path):
    rows = [(path, "c") for path in (str(spelled / "x/000.png"), "C:\\x\\000.png", "/x/000.png", "x/001.png")]
    write_table(tmp_path / "t.csv", rows, "file,class")
    listing = list_table(spelled, TableColumns(table=str(tmp_path / "t.csv")))
    assert [found.key for found in listing.candidates] == ["x/000"]
    assert [bad.reason for bad in listing.bad] == ["no such file", "leaves the source folder", "no such file"]


def test_a_file_that_is_listed_twice_is_taken_once_and_named(spelled, tmp_path):
    rows = [("x/000.png", "owl"), (".\\x\\000.png", "owl"), ("./x/000.png", "bee")]
    write_table(tmp_path / "t.csv", rows, "file,class")
    listing = list_table(spelled, TableColumns(table=str(tmp_path / "t.csv")))
    assert [found.label for found in listing.candidates] == ["owl"]
    assert [(bad.path, bad.reason) for bad in listing.bad] == [
        (".\\x\\000.png", "duplicate key 'x/000', taken by x/000.png"),
        ("./x/000.png", "duplicate key 'x/000', taken by x/000.png as 'owl', here 'bee'"),
    ]


def test_half_a_character_in_json_names_no_file(spelled, tmp_path):
    (tmp_path / "t.jsonl").write_text(
        '{"file": "x/000.png", "class": "\\ud83d"}\n{"file": "x/\\ud83d.png", "class": "c"}\n'
    )
    listing = list_table(spelled, TableColumns(table=str(tmp_path / "t.jsonl")))
    assert [found.label for found in listing.candidates] == [r"\ud83d"]
    assert [(bad.path, bad.reason) for bad in listing.bad] == [(r"x/\ud83d.png", "no such file")]
