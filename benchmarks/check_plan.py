"""How well `fsl-dist plan` predicts: epochs of one and two workers and a mining refresh, predicted and measured.

    RAY_worker_niceness=0 python benchmarks/check_plan.py DATASET [key=value …]

DATASET is a packed data set, Omniglot in docs/explanation/scaling.md; `key=value` changes the shipped omniglot/pcn.
Every process has one thread. A round measures the rates (`fsl-dist bench rates`), then trains PCN for two epochs with
one worker and with two and takes the second epoch, then lets deep kNN mine once, with one worker and with two.
Counted is what steps and refreshes take, without start-up. Other work on the machine shifts rates and runs alike if
it is steady: read the ratios. Prints a table and JSON.
"""

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

CONFIG = Path("omniglot/pcn")
SETTINGS = ["data.threads=1", "workers.gpu=never", "episode.per_epoch=60", "training.epochs=2"]
MINING = [
    "method.k_same=5",
    "method.m_other=5",
    "mining.source=dataset",
    "mining.neighbours=decoded",
    "training.epochs=1",
    "training.images=500",
]


def train(path: Path, settings: list[str], run: Path, workers: int) -> dict[str, float]:
    """Train once; seconds of the last epoch's steps and of its refresh."""
    from fsl_dist.config import load_config
    from fsl_dist.training.launch import train_run
    from fsl_dist.training.runlog import read_metrics

    config = load_config(path, [*settings, f"run.dir={run}", f"workers.num={workers}"])
    train_run(config)
    lines = [line for line in read_metrics(run) if "train/loss" in line]
    last = [line for line in lines if line["epoch"] == lines[-1]["epoch"]]
    return {
        "steps_s": sum(line["time/step_s"] for line in last),
        "refresh_s": sum(line.get("time/prepare_s", 0.0) for line in last),
    }


def predict(path: Path, settings: list[str], rates: Path, processes: int) -> dict[str, float]:
    """What the plan says of the same."""
    from cluster.commands.plan import count_images
    from cluster.planning.fleet import Fleet
    from cluster.planning.plan import plan_run
    from cluster.planning.rates import read_rates
    from fsl_dist.config import load_config

    config = load_config(path, settings)
    images, classes = count_images(config, None, None)
    fleet = Fleet(processes_per_worker=processes)
    planned = plan_run(config, read_rates(rates), fleet, num_images=images, classes=classes, place=str(rates))
    figures = planned.figures
    return {"steps_s": figures["steps"] * figures["step_s"], "refresh_s": figures["refresh_s"]}


def main() -> None:
    from cluster.planning.machine_rates import measure_rates
    from cluster.planning.rates import render_rates
    from fsl_dist.config import load_config, read_config
    from fsl_dist.training.ray.session import ray_session
    from index.base.settings import dump, to_yaml

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    given = {setting.partition("=")[0] for setting in options.settings}
    pcn = [setting for setting in SETTINGS if setting.partition("=")[0] not in given]
    pcn += [f"data.dataset={options.dataset}", *options.settings]
    mining = [setting for setting in pcn if not setting.startswith(("training.epochs", "training.images"))]
    mining += MINING
    rows: dict[str, list[tuple[float, float]]] = {}
    measured_rates, loads = [], []
    with tempfile.TemporaryDirectory() as folder, ray_session(2):
        # The same run with another method: its settings are not those of PCN.
        document = read_config(CONFIG)[0]
        knn = Path(folder) / "deep-knn.yaml"
        knn.write_text(to_yaml({**document, "method": {"kind": "deep_knn"}}))
        for number in range(options.rounds):
            loads.append(os.getloadavg()[0])
            rates = measure_rates(load_config(CONFIG, pcn))
            measured_rates.append(dump(rates))
            path = Path(folder) / f"rates-{number}.yaml"
            path.write_text(render_rates(rates))
            for workers in (1, 2):
                named = f"{workers} worker{'s' if workers > 1 else ''}"
                done = train(CONFIG, pcn, Path(folder) / f"pcn-{number}-{workers}", workers)
                said = predict(CONFIG, pcn, path, workers)
                rows.setdefault(f"PCN, {named}: steps", []).append((said["steps_s"], done["steps_s"]))
                rows.setdefault(f"PCN, {named}: refresh", []).append((said["refresh_s"], done["refresh_s"]))
                rows.setdefault(f"PCN, {named}: epoch", []).append((sum(said.values()), sum(done.values())))
                done = train(knn, mining, Path(folder) / f"mining-{number}-{workers}", workers)
                said = predict(knn, mining, path, workers)
                rows.setdefault(f"deep kNN, {named}: mining refresh", []).append(
                    (said["refresh_s"], done["refresh_s"])
                )
            loads.append(os.getloadavg()[0])
    print("| | predicted, s | measured, s | measured / predicted |")
    print("| --- | ---: | ---: | ---: |")
    for name, pairs in rows.items():
        said, took = (statistics.median(pair[side] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1] / pair[0] for pair in pairs)
        print(f"| {name} | {said:.1f} | {took:.1f} | {ratio:.2f} |")
    for side, name in enumerate(("predicted", "measured")):
        one, two = (
            statistics.median(pair[side] for pair in rows[f"PCN, {named}: epoch"])
            for named in ("1 worker", "2 workers")
        )
        print(f"\n2 workers against 1, {name}: {one / two:.2f} times as fast", end="")
    report = {
        "benchmark": "check_plan",
        "settings": pcn,
        "rounds": options.rounds,
        "rows": rows,
        "rates": measured_rates,
        "load": loads,
        "machine": dataclasses.asdict(rates.machine),
    }
    print("\n\n" + json.dumps(report))


if __name__ == "__main__":
    main()
