"""What a sweep saves: its trials by `fsl-dist sweep run` against the same trials as `fsl-dist train`, one after
another.

    python benchmarks/bench_sweep.py --config sweeps/deep-knn-ham10000-features \
        scheduler.kind=none trials=11 training.patience=30

The commands are the ones a user types, in processes of their own, timed from outside. Separate trials are timed
twice: training alone, and with the `fsl-dist evaluate` that the sweep also does. Prints a Markdown table, then one
JSON object; `--out` writes both.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from fsl_dist.config import render_config
from tune.records import SweepFolder
from tune.sweep_file import load_stored

PROGRAM = Path(sys.executable).with_name("fsl-dist")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True, help="SWEEP.yaml")
    parser.add_argument("--at-most", type=int, default=0, help="separate trials that are run; 0: all")
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="as `fsl-dist sweep run` takes them"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sweep = Path(folder) / "sweep"
        sweep_s, summary = _run(
            ["sweep", "run", "--config", str(options.config), "--json", *options.overrides, f"dir={sweep}"]
        )
        config = load_stored(sweep)
        trials = [
            trial
            for trial in SweepFolder(sweep).trials()
            if trial.result and trial.result.state == "finished"
        ]
        work = {
            trial.number: trial.result.train_s + trial.result.evaluate_s for trial in trials if trial.result
        }
        training, evaluating = {}, {}
        for trial in trials[: options.at_most or len(trials)]:
            run = Path(folder) / f"alone-{trial.number}"
            path = Path(folder) / "run.yaml"
            path.write_text(render_config(config.trial_config(trial.point, str(run))), "utf-8")
            training[trial.number], _ = _run(["train", "--config", str(path), "--json"])
            evaluating[trial.number], _ = _run(["evaluate", str(run), "--json"])  # once, not over the grid
    scale = sum(work.values()) / sum(work[number] for number in training)
    alone_s, both_s = scale * sum(training.values()), scale * sum((*training.values(), *evaluating.values()))
    seconds = sorted(work.values())
    lines = [
        f"{len(trials)} trials of {seconds[0]:.1f} to {seconds[-1]:.1f} s inside training and evaluation, "
        f"{os.cpu_count()} cores, utilisation {summary['utilisation']:.2f}; {len(training)} of them run alone",
        "",
        "| the same trials | s | of the sweep |",
        "| --- | ---: | ---: |",
        f"| `fsl-dist sweep run`, evaluation grid included | {sweep_s:.0f} | 1.00 |",
        f"| `fsl-dist train`, one after another | {alone_s:.0f} | {alone_s / sweep_s:.2f} |",
        f"| `fsl-dist train` and `fsl-dist evaluate` | {both_s:.0f} | {both_s / sweep_s:.2f} |",
    ]
    result = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "ray": version("ray")},
        "sweep": summary,
        "sweep_s": sweep_s,
        "work_s": work,
        "train_alone_s": training,
        "evaluate_alone_s": evaluating,
    }
    text = "\n".join(lines)
    print(text)
    print(json.dumps(result))
    if options.out:
        options.out.with_suffix(".md").write_text(text + "\n", "utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def _run(arguments: list[str]) -> tuple[float, dict]:
    """Seconds and the JSON object of one command."""
    started = time.perf_counter()
    done = subprocess.run([str(PROGRAM), *arguments], stdout=subprocess.PIPE, check=True)
    return time.perf_counter() - started, json.loads(done.stdout)


if __name__ == "__main__":
    main()
