"""What chunks save and cost: peak memory and seconds per step of small and large episodes, plain and in chunks.

    python benchmarks/bench_chunks.py [--plain] [key=value …]

Every row trains prototypical networks on a synthetic data set (200 classes of 20 images of 84 px), by the real
training loop in a process of its own with one thread. Peak memory is ru_maxrss of that process, with some 700 MiB
for the imported libraries. An episode has 10 support and 10 query images per class. Each row takes
two steps, of which the second is timed. `--plain` adds the 200-way episode without chunks, whose activations are 20
times those of the 10-way one; `key=value` replaces the network and the size of its images, ResNet18 at 64 px. Prints
a table and JSON.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

ROWS = {
    "10-way, plain": ["episode.n_way=10"],
    "10-way, chunks of 100": ["episode.n_way=10", "training.chunk_size=100"],
    "200-way, chunks of 200": [
        "episode.n_way=200",
        "training.chunk_size=200",
        "backbone.batch_norm_group=200",
    ],
    "200-way, plain": ["episode.n_way=200"],
}
SETTINGS = [
    "method.kind=pcn",
    "method.clusters=1",
    "method.memory=0.0",
    "evaluation.delta_tau=[0]",
    "episode.k_shot=10",
    "episode.n_query=10",
    "episode.per_step=1",
    "episode.per_epoch=2",
    "training.epochs=1",
    "training.patience=0",
    "workers.gpu=never",
    "data.threads=1",
]
RESNET18 = [
    "backbone.name=resnet18",
    "data.resize=exact",
    "data.resize_size=64",
    "data.image_size=64",
]


def pack_synthetic(folder: Path) -> Path:
    """200 classes × 20 JPEGs of 84 px, all in train: each class a coarse random pattern, each image that and noise."""
    import numpy as np
    from PIL import Image

    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    rng = np.random.default_rng(0)
    rows = ["file,class,split"]
    for label in range(200):
        pattern = rng.integers(0, 200, (6, 6, 3))
        for member in range(20):
            path = folder / "images" / f"{label:03d}" / f"{member:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = (pattern + rng.integers(0, 55, pattern.shape)).astype(np.uint8)
            Image.fromarray(coarse).resize((84, 84), Image.Resampling.BICUBIC).save(path)
            rows.append(f"{path.relative_to(folder / 'images')},{label:03d},train")
    table = folder / "labels.csv"
    table.write_text("\n".join(rows) + "\n")
    pack(
        folder / "images",
        folder / "packed",
        PackOptions(columns=TableColumns(table=str(table), split="split")),
    )
    return folder / "packed"


def run_here(settings: list[str]) -> dict[str, float]:
    """Train in this process: its peak memory, and the second step's figures."""
    from fsl_dist.config import load_config
    from fsl_dist.training.launch import train_run
    from fsl_dist.training.runlog import read_metrics

    config = load_config(None, settings)
    train_run(config)
    last = read_metrics(Path(config.run.dir))[-1]
    return {
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "step_s": last["time/step_s"],
        "data_wait_s": last["time/data_wait_s"],
        "loss": last["train/loss"],
    }


def run_apart(settings: list[str]) -> dict[str, float]:
    """`run_here` in a fresh process, whose peak is its own."""
    command = [sys.executable, __file__, "--here", *settings]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="*", help="key=value")
    parser.add_argument("--plain", action="store_true", help="the 200-way episode without chunks, too")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(run_here(options.settings)))
        return
    settings = [*SETTINGS, *(options.settings or RESNET18)]
    measured: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        dataset = pack_synthetic(Path(folder))
        for number, (name, extra) in enumerate(ROWS.items()):
            if name == "200-way, plain" and not options.plain:
                continue
            places = [f"data.dataset={dataset}", f"run.dir={Path(folder) / str(number)}"]
            measured[name] = run_apart([*settings, *places, *extra])
    small = measured["10-way, plain"]["peak_mib"]
    print("| episode | peak MiB | of 10-way plain | s a step | of it waiting for images |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, row in measured.items():
        print(
            f"| {name} | {row['peak_mib']:.0f} | {row['peak_mib'] / small:.2f} | {row['step_s']:.1f} "
            f"| {row['data_wait_s']:.1f} |"
        )
    report = {
        "benchmark": "chunks",
        "settings": settings,
        "measured": measured,
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
