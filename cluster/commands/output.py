"""The output of commands: results on stdout, everything else on stderr."""

import json
import logging
import sys
from collections.abc import Callable

import click

from index.base.object_cache import with_addresses


def emit(result: dict, as_json: bool, text: str) -> None:
    """Print a command's result: exactly one JSON object with `--json`, otherwise `text`."""
    click.echo(with_addresses(json.dumps(result, allow_nan=False) if as_json else text))


class _InOurWords(logging.Formatter):
    """Formats the library's log lines in terms of the command line, with the addresses of objects."""

    def __init__(self, in_options: Callable[[str], str]) -> None:
        super().__init__("%(message)s")
        self._in_options = in_options

    def format(self, record: logging.LogRecord) -> str:
        text = with_addresses(self._in_options(super().format(record)))
        # A line of progress may be on the terminal's row; it is wiped first.
        return f"\r\x1b[2K{text}" if sys.stderr.isatty() else text


def configure_logging(in_options: Callable[[str], str]) -> None:
    """Send the project's log lines to stderr, once, for the whole process; `in_options` rewrites each."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_InOurWords(in_options))
        root.addHandler(handler)
    for package in ("cluster", "tune", "fsl_dist", "index"):
        logging.getLogger(package).setLevel(logging.INFO)


def align_columns(rows: list[list[str]]) -> str:
    """Format rows of cells as a table: the first row is the header, numbers are right-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def line(row: list[str]) -> str:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "  ".join(cells).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def align_left(rows: list[list[str]]) -> str:
    """Rows of texts as a table: the first row is the head; the last column is as wide as its text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
