"""Writes docs/benchmarks/index.md and docs/benchmarks/practice.md from the JSON of the benchmarks, so that the pages say what was measured.

.venv/bin/python -m benchmarks.suite stream --out benchmarks/results    measures, and writes stream.json
.venv/bin/python -m benchmarks.page                    writes the pages
.venv/bin/python -m benchmarks.page --check            exit 1 where a page is not what would be written
"""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.practice.page import render_practice
from benchmarks.suite.report import Report, from_json, to_markdown
from benchmarks.suite.run import BENCHMARKS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "index.md"
RESULTS = ROOT / "benchmarks" / "results"
PRACTICE_PAGE = ROOT / "docs" / "benchmarks" / "practice.md"
PRACTICE_RESULTS = RESULTS / "practice"
GPU_RESULTS = ROOT / "benchmarks" / "gpu" / "results"
HEAD = """# Benchmarks

Written by `python -m benchmarks.page` from `benchmarks/results/*.json`; measure again rather than edit.

Each section is one run of the command in its title with `--out benchmarks/results`. What is compared does the same work on the
same data in one process tree, in turn, round after round, every other round backwards, after one round that does not count.
Figures are medians over the rounds; a ratio is the median of the rounds' ratios. CPU time is that of the process, its threads and
its child processes. Times belong to the machine that is named; ratios carry over better. `make bench-smoke` runs all of them small
and fails where a ratio became worse than its recorded bound by more than 30 % in two runs in succession.
"""
NO_GPU = """## On a GPU

`python -m benchmarks.gpu.check` measures decoding, training, mining and parity on a machine with a GPU
([how](../../benchmarks/gpu/README.md)). It has not been run on one yet.
"""


def read_reports(folder: Path) -> list[Report]:
    """Reports in `folder`: the benchmarks in their order, others behind them by name; none where there is no folder."""
    reports = [
        from_json(json.loads(path.read_text(encoding="utf-8"))) for path in sorted(folder.glob("*.json"))
    ]
    order = {name: position for position, name in enumerate(BENCHMARKS)}
    return sorted(reports, key=lambda report: order.get(report.benchmark, len(order)))


def render_page() -> str:
    """The whole page."""
    gpu = [to_markdown(report) for report in read_reports(GPU_RESULTS)]
    return "\n".join([HEAD, *map(to_markdown, read_reports(RESULTS)), *(gpu or [NO_GPU])]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    is_check = parser.parse_args().check
    for page, text in ((PAGE, render_page()), (PRACTICE_PAGE, render_practice(PRACTICE_RESULTS))):
        if not is_check:
            page.write_text(text, encoding="utf-8")
        elif page.read_text(encoding="utf-8") != text:
            sys.exit(f"{page.name} is not what the results say: run python -m benchmarks.page")


if __name__ == "__main__":
    main()
