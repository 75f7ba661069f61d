"""Decisions of a curator in an append-only table, which `resplit(keep_others=True)` reads."""

import csv
import io
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from fsl_dist.errors import DataError, RequestError
from fsl_dist.viewing.curating import Kind

Decision = Literal["accept", "keep", "correct", "leave_out"]
COLUMNS = ("key", "label", "was", "decision", "list", "time")
"""of the table; an empty label leaves the image out"""


@dataclass(frozen=True, slots=True)
class Correction:
    """One decision."""

    key: str
    """of the image"""
    label: str
    """its class from now on; empty: the image is left out"""
    was: str
    """its class before"""
    decision: Decision
    list: Kind
    """the list in which it was found"""


class Corrections:
    """An append-only CSV file. The last row of an image counts.

    A row is written with one call and is on the disk when `append` returns, so that a killed process loses nothing
    that it has confirmed.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the table at the first decision. Raises RequestError if another file is there."""
        self.path = path
        self.last: dict[str, Correction] = {}
        """the last decision on each image, by its key"""
        if path.exists():
            self._read()

    def append(self, correction: Correction) -> None:
        """Write a decision."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        row = [correction.key, correction.label, correction.was, correction.decision, correction.list, _now()]
        with self.path.open("ab") as file:
            end = file.tell()
            head = _encode(list(COLUMNS)) if end == 0 else b"" if self._ends_a_line(end) else b"\n"
            file.write(head + _encode(row))
            file.flush()
            os.fsync(file.fileno())
        self.last[correction.key] = correction

    def _ends_a_line(self, size: int) -> bool:
        """Whether the file ends with a line break; after a full disk it may not."""
        with self.path.open("rb") as file:
            file.seek(size - 1)
            return file.read() == b"\n"

    def _read(self) -> None:
        try:
            text = self.path.read_bytes().decode("utf-8", "surrogateescape")
        except OSError as error:
            raise DataError(f"{self.path} cannot be read: {error.strerror}") from error
        rows = list(csv.reader(io.StringIO(text, newline="")))
        if rows and tuple(rows[0]) != COLUMNS:
            raise RequestError(
                f"{self.path} is not a table of corrections: its first line is not {','.join(COLUMNS)} "
                "(choose another file)"
            )
        for row in rows[1:]:
            if len(row) == len(COLUMNS):
                key, label, was, decision, kind, _ = row
                self.last[key] = Correction(key, label, was, decision, kind)  # type: ignore[arg-type]


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _encode(row: list[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(row)
    return text.getvalue().encode("utf-8", "surrogateescape")
