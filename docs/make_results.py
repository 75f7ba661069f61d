"""Put the tables that `fsl-dist reproduce` wrote into docs/results.md.

    python docs/make_results.py runs/reproduce

Each block between `<!-- begin NAME -->` and `<!-- end NAME -->` becomes the text of OUT/NAME.md; blocks without such a file stay.
"""

import argparse
import re
from pathlib import Path

PAGE = Path(__file__).with_name("results.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out

    def refresh(block: re.Match[str]) -> str:
        source = out / f"{block[1]}.md"
        if not source.is_file():
            print(f"{source} is not there; its block stays")
            return block[0]
        return f"<!-- begin {block[1]} -->\n{source.read_text('utf-8').strip()}\n<!-- end {block[1]} -->"

    text = PAGE.read_text("utf-8")
    PAGE.write_text(re.sub(r"<!-- begin (\S+) -->\n.*?<!-- end \1 -->", refresh, text, flags=re.S), "utf-8")


if __name__ == "__main__":
    main()
