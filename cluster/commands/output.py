"""What a command says: results on stdout, everything else on stderr."""

import json
import logging
import sys

import click

from index.base.object_cache import told


def emit(result: dict, as_json: bool, text: str) -> None:
    """Print a command's result: exactly one JSON object with `--json`, else `text`."""
    click.echo(told(json.dumps(result, allow_nan=False) if as_json else text))


class _Told(logging.Formatter):
    """Names places at object stores by their addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return told(super().format(record))


def configure_logging() -> None:
    """Send the project's log lines to stderr, once, for the whole process."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Told("%(message)s"))
        root.addHandler(handler)
    for room in ("cluster", "tune", "fsl_dist", "index"):
        logging.getLogger(room).setLevel(logging.INFO)


def align_columns(rows: list[list[str]]) -> str:
    """Rows of cells as a table: the first row is the head, numbers stand to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])
