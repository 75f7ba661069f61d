"""Does a model score the same on images that were stored at the size of training?

    python benchmarks/score_resized.py IMAGES OUT --seeds 3

IMAGES holds a folder a class and labels.csv with columns file, class and split (Grocery Store: 256 px). It is packed
as it is and with `--resize-shorter` of what `data.resize_size` is; the same small Conv4 is trained on both by cross
entropy and scored by 5 neighbours. Results in OUT are reused, so `--seeds 1`, then 2, then 3 is the work in pieces.
Prints a table.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.loader import Loader, Request, open_source

RESIZE, SIZE, EPOCHS = 72, 64, 6
STORED = {"as it is": (), f"--resize-shorter {RESIZE}": ("--resize-shorter", str(RESIZE))}


def run(*arguments: str) -> str:
    """One `fsl-dist` command; its standard output."""
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def score(dataset: Path, folder: Path, seed: int) -> dict[str, float]:
    """Train and evaluate one run, once."""
    result = folder.with_suffix(".json")
    if not result.exists():
        run(
            "train", f"run.dir={folder}", f"run.seed={seed}", f"data.dataset={dataset}", f"data.resize_size={RESIZE}",
            f"data.image_size={SIZE}", "backbone.name=conv4", "backbone.width=16", "method.kind=cross_entropy",
            "training.batch_size=96", f"training.epochs={EPOCHS}", "training.optimizer=adam", "training.lr=1e-3",
            "training.patience=0",
        )  # fmt: skip
        result.write_text(run("evaluate", str(folder), "--json"))
    return dict(json.loads(result.read_text())["metrics"])


def epoch_cost(dataset: Path) -> tuple[float, float]:
    """(CPU ms an image, kB an image) of a data epoch's reading and decoding: the best of three."""
    config = DataConfig(dataset=str(dataset), resize_size=RESIZE, image_size=SIZE)
    source, taken = open_source(config, seed=0), []
    ids = np.random.default_rng(0).permutation(source.catalogue.num_samples)
    for epoch in range(3):
        started = time.process_time()
        with Loader(
            source, (Request(batch, epoch) for batch in np.array_split(ids, len(ids) // 96))
        ) as loader:
            for _ in loader:
                pass
        taken.append((time.process_time() - started) / len(ids))
    source.close()
    return 1000 * min(taken), float(Catalogue.open(dataset).locate(ids).size.mean()) / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    options.out.mkdir(exist_ok=True)
    print("| stored | accuracy % | mean class recall % | kB an image | CPU ms an image |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, change in STORED.items():
        dataset = options.out / ("small" if change else "whole")
        if not dataset.exists():
            table = ("--table", str(options.images / "labels.csv"), "--split-column", "split")
            run("pack", str(options.images), str(dataset), *table, *change)
        scores = [
            score(dataset, options.out / f"{dataset.name}-{seed}", seed) for seed in range(options.seeds)
        ]
        cost_ms, size_kb = epoch_cost(dataset)
        cells = [
            f"{100 * statistics.mean(values):.1f} ± {100 * statistics.pstdev(values):.1f}"
            for values in ([found[key] for found in scores] for key in ("knn/acc@5", "knn/mcr@5"))
        ]
        print(f"| {name} | {' | '.join(cells)} | {size_kb:.1f} | {cost_ms:.2f} |", flush=True)


if __name__ == "__main__":
    main()
