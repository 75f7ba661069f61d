"""Columns of a table as its file stores them: CSV, TSV, Parquet, JSON (a list of objects) and JSON lines."""

import contextlib
import csv
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fsl_dist.data.names.readings import Names, printable, read_text
from fsl_dist.errors import RequestError

SUFFIXES = (".csv", ".tsv", ".parquet", ".json", ".jsonl")

# The longer marks first: that of UTF-32 starts with that of UTF-16.
_ENCODINGS = {
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_CELL_ENDS = {".csv": ",", ".tsv": "\t"}
# What Excel reads, and some programs write, before the head: the character between cells.
_SEPARATOR_LINE = re.compile('"?sep=([^"\r\n])"?[\r\n]*', re.IGNORECASE)
_DELIMITERS = {";": "';'", "\t": "a tab", "|": "'|'"}


def read_columns(path: Path, columns: Sequence[str]) -> dict[str, list[Any]]:
    """Read the selected columns, one value per row: text for CSV and TSV, typed values for other formats,
    None if missing.

    Text is UTF-8, or the encoding of a byte order mark. Blank lines are skipped, also before the header, and a first
    line `sep=;` sets the delimiter of CSV and TSV. Only the selected columns must be valid.

    Raises:
        RequestError: no such file, a missing or repeated column, no rows, an unreadable row or cell.
    """
    if not path.is_file():
        raise RequestError(f"table={printable(str(path))}: no such file")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise RequestError(
            f"table={printable(str(path))} must end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"
        )
    if not path.stat().st_size:
        raise _empty(path)
    rows = reader(path, list(dict.fromkeys(columns)))
    if not rows[columns[0]]:
        raise RequestError(f"table={printable(str(path))} has no rows")
    return rows


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, column by column; a column may be among both."""

    texts: dict[str, list[str]]
    """cells as they are written: paths and keys"""
    names: dict[str, list[str]]
    """the names in the cells (`readings.read_value`); empty if missing"""
    warnings: list[str]
    """warnings about how names were read"""


def read_table(path: Path, texts: Sequence[str], names: Sequence[str]) -> TableRows:
    """Read the columns `texts` as they are written and the columns `names` as names.

    RequestError as `read_columns`, and for a cell that names nothing (a list, an infinite number).
    """
    columns = read_columns(path, [*texts, *names])
    read, warnings = dict[str, list[str]](), list[str]()
    for column in dict.fromkeys(names):
        reading, values = Names(f"column '{column}'"), list[str]()
        for row, value in enumerate(columns[column], start=1):
            try:
                values.append(reading.read(value))
            except ValueError as error:
                raise RequestError(
                    f"table '{printable(str(path))}', row {row}: column '{column}' {error}"
                ) from None
        read[column] = values
        warnings += reading.find_doubts()
    return TableRows(
        {column: [_as_text(value) for value in columns[column]] for column in texts}, read, warnings
    )


def _as_text(value: object) -> str:
    if isinstance(value, str):
        return value
    return os.fsdecode(value) if isinstance(value, bytes) else "" if value is None else str(value)


def _places(path: Path, columns: Sequence[str], found: Sequence[str]) -> dict[str, int]:
    """Column → its position among those `found`; names are compared exactly first,
    then without invisible characters."""
    shown = printable(", ".join(found)) or "none"
    if any("\0" in name for name in found):
        raise RequestError(
            f"table '{printable(str(path))}' has NUL bytes in its head: it is UTF-16 without a byte order mark, or no "
            "text; save it as UTF-8"
        )
    places = {}
    for column in columns:
        matches = [place for place, name in enumerate(found) if name == column]
        matches = matches or [
            place for place, name in enumerate(found) if read_text(name) == read_text(column)
        ]
        if not matches:
            raise RequestError(
                f"table '{printable(str(path))}' has no column '{column}'; it has {shown}{_hint(path, found)}"
            )
        if len(matches) > 1:
            raise RequestError(
                f"table '{printable(str(path))}' has {len(matches)} columns '{column}'; rename all but one of them"
            )
        places[column] = matches[0]
    return places


def _hint(path: Path, found: Sequence[str]) -> str:
    """Advice for a header whose cells seem to be divided by another delimiter than this format's."""
    if path.suffix.lower() not in _CELL_ENDS or len(found) != 1:
        return ""
    own = _CELL_ENDS[path.suffix.lower()]
    for end, name in _DELIMITERS.items():
        if end != own and end in found[0]:
            way = "rename it to .tsv" if end == "\t" else "save it with commas"
            return f". Its cells seem to be divided by {name}: {way}"
    return (
        ". Its cells seem to be divided by ',': rename it to .csv" if own != "," and "," in found[0] else ""
    )


@contextlib.contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    """The file as text; bytes that are not UTF-8 become surrogates, so that only cells that are read must be sound."""
    with path.open("rb") as file:
        start = file.read(4)
    encoding = next((name for mark, name in _ENCODINGS.items() if start.startswith(mark)), "utf-8")
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    try:
        with path.open(newline="", encoding=encoding, errors=errors) as file:
            yield file
    except UnicodeError as error:
        raise RequestError(
            f"table '{printable(str(path))}' is not sound {encoding.upper()}: {error}"
        ) from error


def _refuse_bytes(path: Path, line: int, column: str, value: object) -> None:
    if isinstance(value, str) and not value.isascii() and (broken := _NOT_UTF8.search(value)):
        start = max(0, broken.start() - 20)
        raise RequestError(
            f"table '{printable(str(path))}', line {line}, column '{column}': "
            f"'{printable(value[start : broken.start() + 20])}' is "
            "not UTF-8 text (it may be Latin-1 or Windows-1252); save the table as UTF-8"
        )


def _empty(path: Path) -> RequestError:
    return RequestError(f"table '{printable(str(path))}' is empty; its first line must name the columns")


def _read_delimited(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    rows: dict[str, list[Any]] = {column: [] for column in columns}
    with _cells_of_any_length(), _open_text(path) as file:
        first = file.readline()
        separator = _SEPARATOR_LINE.fullmatch(first)
        end = separator[1] if separator else _CELL_ENDS[path.suffix.lower()]
        reader = csv.reader(itertools.chain([first], file), strict=True, delimiter=end)
        try:
            if separator:
                next(reader)
            head = next((row for row in reader if any(map(read_text, row))), None)
            if head is None:
                raise _empty(path)
            places = [(column, rows[column], place) for column, place in _places(path, columns, head).items()]
            for row in reader:
                if not row:
                    continue
                if len(row) != len(head):
                    raise RequestError(
                        f"table '{printable(str(path))}', line {reader.line_num}: {len(row)} cells, the head has "
                        f"{len(head)}"
                    )
                for column, values, place in places:
                    _refuse_bytes(path, reader.line_num, column, row[place])
                    values.append(row[place])
        except csv.Error as error:
            raise RequestError(
                f"table '{printable(str(path))}', line {reader.line_num}, is not a row of a CSV file: {error}"
            ) from error
    return rows


@contextlib.contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lift Python's limit of 131072 characters per cell in this block; the limit is process-wide."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _read_json(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    with _open_text(path) as file:
        try:
            objects = json.load(file)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"table '{printable(str(path))}' is not JSON: {error}") from error
    if not isinstance(objects, list):
        raise RequestError(
            f"table '{printable(str(path))}' is not a list of objects, one for each image (one object on each "
            "line: name it .jsonl)"
        )
    return _gather(path, columns, list(enumerate(objects, start=1)), "entry")


def _read_json_lines(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    objects = []
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                objects.append((number, json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise RequestError(
                    f"table '{printable(str(path))}', line {number}, is not JSON: {error}"
                ) from error
    return _gather(path, columns, objects, "line")


def _gather(
    path: Path, columns: list[str], objects: list[tuple[int, Any]], what: str
) -> dict[str, list[Any]]:
    names: dict[str, None] = {}
    for number, row in objects:
        if not isinstance(row, dict):
            raise RequestError(f"table '{printable(str(path))}', {what} {number}, is not an object")
        names |= dict.fromkeys(row)
    found = list(names)
    if not found:
        return {column: [] for column in columns}
    places = _places(path, columns, found)
    rows: dict[str, list[Any]] = {column: [] for column in columns}
    for number, row in objects:
        for column in columns:
            value = row.get(found[places[column]])
            _refuse_bytes(path, number, column, value)
            rows[column].append(value)
    return rows


def _read_parquet(path: Path, columns: list[str]) -> dict[str, list[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        places = _places(path, columns, names)
        table = pq.read_table(path, columns=[names[place] for place in places.values()])
        return {
            column: _as_values(path, column, table.column(names[place])) for column, place in places.items()
        }
    except (pa.ArrowException, OSError) as error:
        raise RequestError(
            f"table '{printable(str(path))}' cannot be read as Parquet: {str(error).splitlines()[0]}"
        ) from error


def _as_values(path: Path, column: str, values: Any) -> list[Any]:
    """Python values of an Arrow column; float32 as NumPy scalars, which keep the original digits."""
    import pyarrow as pa

    if isinstance(values.type, pa.BaseExtensionType):
        values = values.cast(values.type.storage_type)
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_floating(values.type):
        return list(values.to_numpy())
    if pa.types.is_temporal(values.type) and not pa.types.is_duration(values.type):
        if pa.types.is_timestamp(values.type) and values.type.tz:
            values = values.cast(pa.timestamp(values.type.unit, "UTC"))
        return values.cast(pa.string()).to_pylist()
    if pa.types.is_nested(values.type) or pa.types.is_duration(values.type):
        raise RequestError(
            f"table '{printable(str(path))}': column '{column}' contains values of type {values.type}, which are "
            "not names; give a column of text or numbers"
        )
    return values.to_pylist()


_READERS: dict[str, Callable[[Path, list[str]], dict[str, list[Any]]]] = {
    ".csv": _read_delimited,
    ".tsv": _read_delimited,
    ".parquet": _read_parquet,
    ".json": _read_json,
    ".jsonl": _read_json_lines,
}
