"""What a sweep's evaluation grid costs compared with one evaluation of the same run.

    python benchmarks/bench_evaluation_grid.py sweeps/pcn-omniglot/trials/0000 --rounds 3

5 K_p, 4 shifts of the temperature and 3 numbers of novel prototypes: 60 combinations. Each evaluation starts from the
checkpoint alone, images embedded again; one and all are timed in turn. Prints a Markdown table, then one JSON object;
`--out` writes both.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from fsl_dist.config import load_config
from fsl_dist.evaluation.report import evaluate_settings
from fsl_dist.metrics.config import EvaluationConfig
from fsl_dist.training.trained import open_trained

K_P, DELTA_TAU, NOVEL_CLUSTERS = (1, 3, 5, 7, 9), (-0.5, 0.0, 1.0, 3.0), (1, 2, 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="a trained run of method pcn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    options = parser.parse_args()
    one = load_config(options.run / "config.yaml", []).evaluation
    grid = [replace(one, k_p=K_P, delta_tau=DELTA_TAU, novel_clusters=number) for number in NOVEL_CLUSTERS]
    one = replace(one, k_p=(5,), delta_tau=(0.0,))
    seconds: dict[str, list[float]] = {"one evaluation": [], "60 combinations": []}
    for _ in range(options.rounds):
        seconds["one evaluation"].append(_time(options.run, [one]))
        seconds["60 combinations"].append(_time(options.run, grid))
    single, whole = (statistics.median(values) for values in seconds.values())
    lines = [
        f"median of {options.rounds} rounds, {os.cpu_count()} cores",
        "",
        "| evaluation | s | of one |",
        "| --- | ---: | ---: |",
        f"| one | {single:.1f} | 1.00 |",
        f"| 5 K_p x 4 shifts of the temperature x 3 numbers of novel prototypes | {whole:.1f} | {whole / single:.2f} |",
    ]
    result = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "seconds": seconds,
    }
    text = "\n".join(lines)
    print(text)
    print(json.dumps(result))
    if options.out:
        options.out.with_suffix(".md").write_text(text + "\n", "utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _time(run: Path, settings: Sequence[EvaluationConfig]) -> float:
    """Seconds of an evaluation of a copy of the run, without anything that earlier ones have left in it."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "run"
        shutil.copytree(run, copy, ignore=shutil.ignore_patterns("evaluation", "index", "tensorboard"))
        started = time.perf_counter()
        evaluate_settings(open_trained(copy), settings)
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
