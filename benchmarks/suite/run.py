"""The benchmarks by name, and running one of them. Light to import: the command line reads the names."""

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.suite.report import Report

BENCHMARKS = ("stream", "episodes", "train", "workers", "start", "mining", "evaluate", "index")
"""`benchmarks.suite.NAME` has `measure(options: BenchOptions) -> Report`"""
TIMES_ONLY = ("start",)
"""benchmarks without a ratio that would hold on another machine; `make bench-smoke` leaves them out"""


def run_benchmark(
    name: str,
    *,
    is_smoke: bool,
    rounds: int,
    dataset: Path | None,
    out: Path | None,
    vectors: Sequence[tuple[str, int]] = (),
) -> "Report":
    """Run one benchmark; `out`: an existing folder that gets NAME.json and NAME.md."""
    from benchmarks.suite.report import BenchOptions, to_json, to_markdown
    from index.base.files import write_atomic
    from index.base.scratch import scratch_folder

    module = importlib.import_module(f"benchmarks.suite.{name}")
    with scratch_folder(f"fsl-bench-{name}-") as folder:
        report: Report = module.measure(BenchOptions(folder, is_smoke, rounds, dataset, vectors))
    if out is not None:
        text = json.dumps(to_json(report), indent=1, ensure_ascii=False) + "\n"
        write_atomic(out / f"{name}.json", text.encode())
        write_atomic(out / f"{name}.md", to_markdown(report).encode())
    return report
