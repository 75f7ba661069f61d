"""The time saved by mining concurrently with training: the same run with mining.run=inline and with
mining.run=`beside`.

    python benchmarks/bench_mining_beside.py DATASET [key=value …]

DATASET is a packed data set; `key=value` changes the runs' settings. Every process has one thread. The three runs are
one worker that mines inline, the same with a concurrent actor, and two workers that mine inline. The last ones use
the second core in another way. All take the same steps with the same tables; inline runs have the same
`mining.refresh_lag`. The time of the steps and between them is counted, without Ray's start. Prints a table and JSON.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

MODES = {
    "inline, 1 worker": ["workers.num=1"],
    "beside, 1 worker + 1 actor": ["workers.num=1", "mining.run=beside"],
    "inline, 2 workers": ["workers.num=2"],
}


def run_once(settings: list[str], run: Path) -> dict[str, float]:
    """Train once; seconds of the steps, between them, and of waiting for tables after the first."""
    from fsl_dist.config import load_config
    from fsl_dist.training.launch import train_run
    from fsl_dist.training.runlog import read_metrics

    train_run(load_config(None, [*settings, f"run.dir={run}"]))
    lines = [line for line in read_metrics(run) if "train/loss" in line]
    prepared = [line["time/prepare_s"] for line in lines if "time/prepare_s" in line]
    steps_s, prepare_s = sum(line["time/step_s"] for line in lines), sum(prepared)
    return {
        "total_s": steps_s + prepare_s,
        "steps_s": steps_s,
        "prepare_s": prepare_s,
        "first_refresh_s": prepared[0],
        "loss": lines[-1]["train/loss"],
        "num_steps": float(len(lines)),
    }


def main() -> None:
    from fsl_dist.training.ray.session import ray_session

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lag", type=int, default=20, help="mining.refresh_lag")
    options = parser.parse_args()
    settings = [
        f"data.dataset={options.dataset}",
        "data.threads=1",
        "method.kind=deep_knn",
        "method.k_same=5",
        "method.m_other=5",
        "mining.source=dataset",
        "mining.neighbours=decoded",
        f"mining.refresh_lag={options.lag}",
        "training.optimizer=sgd",
        "training.patience=0",
        "workers.launch=ray",
        *options.settings,
    ]
    measured: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    with ray_session(2), tempfile.TemporaryDirectory() as folder:
        for turn in range(options.rounds):
            for number, (mode, extra) in enumerate(MODES.items()):
                measured[mode].append(run_once([*settings, *extra], Path(folder) / f"{turn}-{number}"))
    names = ("total_s", "steps_s", "prepare_s", "first_refresh_s", "loss")
    inline = statistics.median(result["total_s"] for result in measured["inline, 1 worker"])
    print(f"| run | {' | '.join(names)} | of inline |\n| --- |{' ---: |' * (len(names) + 1)}")
    for mode, results in measured.items():
        medians = [statistics.median(result[name] for result in results) for name in names]
        print(f"| {mode} | {' | '.join(f'{value:.2f}' for value in medians)} | {medians[0] / inline:.2f} |")
    report = {
        "benchmark": "mining_beside",
        "settings": settings,
        "measured": measured,
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
