"""`python -m benchmarks.suite start`: time to the first step on Ray, compared with an empty TorchTrainer."""

import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.suite.report import BenchOptions, Report, Table, Target
from benchmarks.suite.train_setup import BenchData, describe_data, make_data
from fsl_dist.training.runlog import read_metrics
from index.base.scratch import scratch_folder

_WAIT_S = 180.0

# As the first page of Ray Train's manual has it; the loop writes down when it began, and ends.
_NOTHING = """
import sys, time
import ray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def loop(config):
    with open(config["started"], "w") as file:
        file.write(str(time.time()))

if __name__ == "__main__":
    folder, num_workers = sys.argv[1], int(sys.argv[2])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        loop,
        train_loop_config={"started": folder + "/started"},
        scaling_config=ScalingConfig(num_workers=num_workers),
        run_config=RunConfig(storage_path=folder + "/ray"),
    ).fit()
"""


def measure(options: BenchOptions) -> Report:
    """Seconds from the start of the process to the first step's line in metrics.jsonl, and to the empty loop's."""
    data, folder = make_data(options), options.folder
    tables, targets = [], []
    for num in (1,) if options.is_smoke else (1, 2):
        rows, extra = [], []
        for pair in range(options.rounds):
            place = folder / f"start-{num}-{pair}"
            place.mkdir()
            times = {}
            for name in ("nothing", "train") if pair % 2 == 0 else ("train", "nothing"):
                times[name] = (
                    _start_nothing(place, num) if name == "nothing" else _start_training(data, place, num)
                )
            rows.append((f"pair {pair + 1}", round(times["nothing"], 1), round(times["train"], 1)))
            extra.append(times["train"] - times["nothing"])
        workers = f"{num} worker{'s' if num > 1 else ''}"
        tables.append(
            Table(
                f"Seconds from the start of the process, {workers}",
                ("", "empty train loop begins", "first training step done"),
                tuple(rows),
            )
        )
        targets.append(
            Target(
                f"first step after an empty TorchTrainer, {workers}, s", extra, at_most=5.0, is_guarded=False
            )
        )
    return Report(
        benchmark="start",
        title="Compares the start of `fsl-dist train` on its own Ray instance with that of a script that starts"
        " Ray and a TorchTrainer with an empty train loop. The time runs from the command to the end of "
        "the first training step, or to the first line of the loop.",
        config=describe_data(options),
        tables=tables,
        targets=targets,
        is_smoke=options.is_smoke,
    )


def _environment() -> dict[str, str]:
    return {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}


def _start_nothing(place: Path, num_workers: int) -> float:
    script = place / "nothing.py"
    script.write_text(_NOTHING)
    with scratch_folder("fsl-ray-") as scratch:
        started = time.time()
        subprocess.run(
            [sys.executable, str(script), str(place), str(num_workers)],
            check=True, capture_output=True, timeout=_WAIT_S, env={**_environment(), "RAY_TMPDIR": str(scratch)},
        )  # fmt: skip
    return float((place / "started").read_text()) - started


def _start_training(data: BenchData, place: Path, num_workers: int) -> float:
    """One epoch of one episode a worker with Conv4, PN: there is nothing to embed before the first step."""
    run = place / "run"
    config = data.config(
        "conv4", "pcn", run,
        [f"workers.num={num_workers}", "workers.launch=ray", "method.clusters=1", "method.memory=0.0",
         f"episode.per_epoch={2 * num_workers}", "training.epochs=1"],
    )  # fmt: skip
    from fsl_dist.config import render_config

    settings = place / "run.yaml"
    settings.write_text(render_config(config))
    started = time.time()
    command = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "train", "--config", str(settings)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=_environment(),
    )  # fmt: skip
    took = 0.0
    while command.poll() is None:
        if not took and (run / "metrics.jsonl").is_file() and read_metrics(run):
            took = time.time() - started
        time.sleep(0.02)
    assert command.stderr is not None
    if command.returncode != 0 or not took:
        raise RuntimeError(f"fsl-dist train ended with {command.returncode}: {command.stderr.read()[-500:]}")
    return took
