"""The candidates of a fit as a table: for a terminal, a CSV file, a data frame."""

import csv
import io
from pathlib import Path

from index.base.files import write_atomic
from tune.fit.records import CandidateRecord, FitRecord, ScoreRecord

HEAD = ["candidate", "round", "val acc", "val MCR", "test acc", "test MCR", "images", "s"]
TABLE_FILE = "table.csv"


def table_rows(record: FitRecord) -> list[list[str]]:
    """Rows of text, the head first; the result's row is marked with *,
    those that are equal to the best within noise with =."""
    return [HEAD, *(_row(record, one) for one in record.candidates)]


def _row(record: FitRecord, one: CandidateRecord) -> list[str]:
    mark = "*" if one is record.final else "=" if one.name in record.equal else " "
    return [
        f"{mark} {one.name}",
        "final" if one.round == -1 else str(one.round),
        *(_percent(score, name) for score in (one.validation, one.test) for name in ("acc", "mcr")),
        f"{one.images_seen:,}",
        f"{one.seconds:.0f}",
    ]


def _percent(score: ScoreRecord | None, name: str) -> str:
    if score is None:
        return "–"
    low, high = getattr(score, f"{name}_interval")
    return f"{100 * getattr(score, name):.1f} ({100 * low:.0f}–{100 * high:.0f})"


def as_values(record: FitRecord) -> list[dict[str, object]]:
    """The candidates as plain values, a mapping for each."""
    rows = []
    for one in record.candidates:
        row: dict[str, object] = {"candidate": one.name, "round": one.round}
        for where, score in (("validation", one.validation), ("test", one.test)):
            for name in ("acc", "mcr"):
                low, high = getattr(score, f"{name}_interval") if score else (None, None)
                row[f"{where}_{name}"] = getattr(score, name) if score else None
                row[f"{where}_{name}_low"], row[f"{where}_{name}_high"] = low, high
        row |= {
            "images_seen": one.images_seen,
            "seconds": one.seconds,
            "run": one.run or "frozen",
            "is_chosen": one is record.final,
            "is_equal": one.name in record.equal,
        }
        rows.append(row)
    return rows


def write_csv(out: Path, record: FitRecord) -> None:
    """OUT/table.csv."""
    rows = as_values(record)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(out / TABLE_FILE, text.getvalue().encode())
