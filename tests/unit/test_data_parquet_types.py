"""Names of classes and groups in the column types that only Parquet has: read as their text would be, or refused by name."""

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dataset_files import write_images

from fsl_dist.data.ingest.listing import TableColumns, list_table
from fsl_dist.errors import RequestError

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
    "times of a zone": (
        pa.array([0, None, 1_500_000], pa.timestamp("us", "Asia/Kolkata")),
        ["1970-01-01 00:00:00Z", "", "1970-01-01 00:00:01.5Z"],
    ),
    "times of an offset": (
        pa.array([0, None, 1], pa.timestamp("s", "+02:00")),
        ["1970-01-01 00:00:00Z", "", "1970-01-01 00:00:01Z"],
    ),
    "times of day": (pa.array([0, None, 1_500_000], pa.time64("us")), ["00:00:00", "", "00:00:01.5"]),
    "small decimals": (
        pa.array([Decimal("1E-7"), None, Decimal("2.5E-7")], pa.decimal128(12, 8)),
        ["0.0000001", "", "0.00000025"],
    ),
    "small single precision": (
        pa.array(np.array([1e-7, math.nan, 0.3], np.float32)),
        ["0.0000001", "", "0.3"],
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
        (pa.array([[1], [2]]), "column 'class' contains values of type list<"),
        (pa.array([{"a": 1}, {"a": 2}]), "column 'class' contains values of type struct<"),
        (pa.array([1, 2], pa.duration("s")), "contains values of type duration"),
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
