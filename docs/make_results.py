"""Put what `fsl-dist reproduce` and `fsl-dist sweep report` wrote into docs/benchmarks/results.md.

    python docs/make_results.py runs/reproduce sweeps

Each block between `<!-- begin NAME -->` and `<!-- end NAME -->` becomes the text of OUT/NAME.md, or of the sweep's OUT/NAME/report.md,
its headings one level lower and its pictures in docs/figures; blocks without such a file stay.
"""

import argparse
import re
import shutil
from pathlib import Path

PAGE = Path(__file__).parent / "benchmarks" / "results.md"
FIGURES = Path(__file__).parent / "benchmarks" / "figures"


def main() -> None:
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
        print(f"{block[1]} is in none of the folders; its block stays")
        return block[0]

    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", refresh, text, flags=re.S), "utf-8")


def _mark(name: str, text: str) -> str:
    return f"<!-- begin {name} -->\n{text.strip()}\n<!-- end {name} -->"


if __name__ == "__main__":
    main()
