"""Puts the output of `fsl-dist reproduce` and `fsl-dist sweep report` into docs/benchmarks/results_*.md.

    python docs/make_results.py runs/reproduce sweeps

Each block between `<!-- begin NAME -->` and `<!-- end NAME -->` becomes the text of OUT/NAME.md, or of the sweep's
OUT/NAME/report.md, its headings one level lower and its pictures in docs/benchmarks/figures. Blocks without such a
file do not change.
"""

import argparse
import re
import shutil
import textwrap
from pathlib import Path

PAGES = Path(__file__).parent / "benchmarks"
FIGURES = PAGES / "figures"


def main() -> None:
    """Refresh the blocks of all pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, nargs="+")
    folders = parser.parse_args().out

    def refresh(block: re.Match[str]) -> str:
        for folder in folders:
            table, sweep = folder / f"{block[1]}.md", folder / block[1] / "report.md"
            if table.is_file():
                return _mark(block[1], table.read_text("utf-8"))
            if sweep.is_file():
                for picture in sweep.parent.glob("pictures/*.png"):
                    shutil.copyfile(picture, FIGURES / f"{block[1]}-{picture.name}")
                text = sweep.read_text("utf-8").replace("](pictures/", f"](figures/{block[1]}-")
                return _mark(block[1], re.sub(r"^#", "##", text, flags=re.M))
        print(f"{block[1]} is in none of the folders; its block does not change")
        return block[0]

    for page in sorted(PAGES.glob("results_*.md")):
        text = page.read_text("utf-8")
        page.write_text(
            re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", refresh, text, flags=re.S), "utf-8"
        )


def _mark(name: str, text: str) -> str:
    """The block, its paragraphs and list items wrapped; tables, headings, pictures and code as they are."""
    lines = []
    is_code = False
    for line in text.strip().split("\n"):
        is_code ^= line.startswith("```")
        if is_code or line.startswith(("|", "#", "!", "    ", "```")):
            lines.append(line)
        else:
            hanging = "  " if line.startswith("- ") else ""
            lines += textwrap.wrap(
                line, 118, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
            ) or [""]
    return "\n".join([f"<!-- begin {name} -->", *lines, f"<!-- end {name} -->"])


if __name__ == "__main__":
    main()
