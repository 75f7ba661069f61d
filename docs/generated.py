"""What the scripts of this folder share: writing or comparing the pages of a folder, text in tables, the browser."""

import argparse
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parent


def escape_markup(text: str) -> str:
    """`text`, where Markdown must not read parts of it as links, emphasis or HTML; `code` stays."""
    return "".join(
        part if at % 2 else re.sub(r"([\[\]<*])", r"\\\1", part)
        for at, part in enumerate(re.split(r"(`[^`]*`)", text))
    )


def escape_cell(text: str) -> str:
    """`text` as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def write_or_check(pages: Mapping[str, str], folder: str, script: str) -> None:
    """Write `pages` (name → text) to `folder` of docs/; with `--check`, exit 1 where a file differs from its page.

    The folder has no other pages: those that the code no longer asks for are deleted, or reported.
    """
    parser = argparse.ArgumentParser(description=f"Generate docs/{folder}.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 where a page is out of date"
    )
    target = DOCS / folder
    extra = {path.name for path in target.glob("*.md")} - set(pages)
    if parser.parse_args().check:
        stale = sorted(extra) + [
            name
            for name, text in pages.items()
            if not (target / name).is_file() or (target / name).read_text("utf-8") != text
        ]
        sys.exit(
            f"docs/{folder} is out of date ({', '.join(stale)}): run python docs/{script}" if stale else 0
        )
    target.mkdir(parents=True, exist_ok=True)
    for name in extra:
        (target / name).unlink()
    for name, text in pages.items():
        (target / name).write_text(text, "utf-8")


def find_browser() -> str:
    """The path of Chromium or Chrome; ends the script where there is none."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium or Chrome is on the path (apt-get install chromium)")
    return browser
