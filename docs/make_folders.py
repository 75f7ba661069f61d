"""Writes the table of folders in docs/explanation/architecture.md from the first sentence of each `__init__.py`.

.venv/bin/python docs/make_folders.py            writes the table
.venv/bin/python docs/make_folders.py --check    exit 1 where the page does not have that table
"""

import argparse
import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "explanation" / "architecture.md"
TABLE = re.compile(r"(?<=<!-- folders -->\n).*?(?=<!-- /folders -->)", re.DOTALL)


def make_table() -> str:
    """A Markdown table of all folders with code, packages in the order of their imports."""
    rows = ["| folder | what belongs there |", "| --- | --- |"]
    for package in ("cluster", "tune", "fsl_dist", "index", "benchmarks"):
        for path in sorted((ROOT / package).rglob("__init__.py"), key=lambda path: path.parent.parts):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
            if not text:
                sys.exit(f"{path.relative_to(ROOT)} does not say what belongs in its folder")
            rows.append(
                f"| `{path.parent.relative_to(ROOT)}/` | {' '.join(text.split(chr(10) * 2)[0].split())} |"
            )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write or check the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    old = PAGE.read_text(encoding="utf-8")
    new = TABLE.sub(lambda _: make_table(), old, count=1)
    if parser.parse_args().check:
        sys.exit(
            0
            if new == old and TABLE.search(old)
            else f"{PAGE.name} is stale: run python docs/make_folders.py"
        )
    PAGE.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
