"""The main workflow end to end on real images: what is the sum of two handwritten digits?

Pack images into shards. Train the same network with neighbours in the batch, with neighbours in the whole data set
and by cross entropy, at the same number of images seen; build the neighbour index over the training images; score by
kNN. A class, the sum, consists of up to ten pairs of digits that look completely different: a batch contains few
images of each, the whole data set contains all.
"""

import csv
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import click
import numpy as np

import fsl_dist
from cluster.commands.output import align_columns
from fsl_dist.seeding import generator
from fsl_dist.training.ray.session import ray_session
from index.base.scratch import scratch_folder

SEED = 0
TRAIN_PAIRS, TEST_PAIRS = 2000, 1500
DIGITS_FOR_TRAINING = 90
"""number of scans of each digit for training pairs; test pairs are made of the others"""
IMAGES_SEEN = 12_000

# 16 px, so that Conv4's four poolings end at one position; a mirrored digit is another sign.
SETTINGS = {
    "data.resize": "exact",
    "data.resize_size": 16,
    "data.image_size": 16,
    "data.channels": 1,
    "data.mean": [0.3],
    "data.std": [0.35],
    "data.random_crop": False,
    "data.flip": False,
    "data.rotation": 10,
    "backbone.name": "conv4",
    "backbone.width": 32,
    "backbone.batch_norm": "ghost",
    "backbone.batch_norm_group": 32,
    "training.batch_size": 64,
    "training.lr": 3e-3,
    "training.weight_decay": 0.01,
    "training.patience": 0,
    "training.checkpoint_steps": 100,
    "index.metric": "cosine",
    "run.seed": SEED,
}
DEEP_KNN = {"method.kind": "deep_knn", "backbone.embedding_dim": 32}


def run_demo(
    folder: Path | None,
    workers: int,
    *,
    show: Callable[[str], None] | None,
    images_seen: int = IMAGES_SEEN,
) -> tuple[dict, str]:
    """Run the demo in `folder` (None: a temporary one); returns its result and the text a person reads.

    images_seen: training images that each of the three trained networks sees, repeats counted.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(scratch_folder("fsl-demo-")) / "demo"
            folder.mkdir()
        rows = _run_in(folder, workers, images_seen, show)
    seconds = round(time.perf_counter() - started, 1)
    result = {
        "dataset": "sums of two of scikit-learn's digits",
        "train_images": TRAIN_PAIRS,
        "workers": workers,
        **rows,
        "seconds": seconds,
    }
    return result, _describe(rows, workers, images_seen, seconds)


def _run_in(
    folder: Path, workers: int, images_seen: int, show: Callable[[str], None] | None
) -> dict[str, dict]:
    _say("1/4 packing the images into WebDataset shards and a catalogue")
    images = folder / "images"
    _write_pairs(images)
    table = images / "labels.csv"
    data = fsl_dist.pack(images, folder / "sums", table=table, split_column="split", seed=SEED)

    _say(
        f"2/4 training on {workers} Ray Train workers: neighbours in the batch, in the whole data set, cross entropy"
    )
    runs = {}
    with ray_session(workers):
        for name, settings in _settings_of_runs(workers, images_seen).items():
            runs[name] = fsl_dist.train(
                data=data, dir=folder / name, settings=settings, progress=show or False
            )
            summary = runs[name].summary
            assert summary is not None
            _say(
                f"    {name}: {summary.images_seen} images seen in {summary.steps} steps, {summary.seconds:.0f} s"
            )

    _say("3/4 building the neighbour index over all training images")
    runs["dataset"].build_index(folder / "index", progress=False)

    _say("4/4 scoring by the 5 nearest training images")
    return {
        name: {key: value for key, value in run.evaluate().items() if isinstance(value, float)}
        for name, run in runs.items()
    }


def _settings_of_runs(workers: int, images_seen: int) -> dict[str, dict[str, object]]:
    trained = {
        **SETTINGS,
        "workers.num": workers,
        "workers.launch": "ray",
        "training.epochs": 1000,
        "training.images": images_seen,
    }
    return {
        "start": {**SETTINGS, **DEEP_KNN, "training.epochs": 0},
        "batch": {**trained, **DEEP_KNN, "mining.source": "batch"},
        "dataset": {**trained, **DEEP_KNN, "mining.source": "dataset"},
        "cross_entropy": {**trained, "method.kind": "cross_entropy"},
    }


def _write_pairs(folder: Path) -> None:
    """PNG files of two of scikit-learn's digits side by side, and a table of their sums and splits."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    folder.mkdir(parents=True)
    rows = []
    rng = generator(SEED, "demo")
    scans = [rng.permutation(np.flatnonzero(digits.target == digit)) for digit in range(10)]
    for split, num, part in (
        ("train", TRAIN_PAIRS, slice(0, DIGITS_FOR_TRAINING)),
        ("test", TEST_PAIRS, slice(DIGITS_FOR_TRAINING, None)),
    ):
        for number in range(num):
            pair = rng.integers(10, size=2)
            picture = np.zeros((16, 16))
            for place, digit in enumerate(pair.tolist()):
                scan = digits.images[rng.choice(scans[digit][part])]
                picture[4:12, 8 * place : 8 * place + 8] = scan
            path = folder / f"{split}-{number:04d}.png"
            # The scans have 17 grey levels, 0 to 16.
            Image.fromarray((picture * (255 / 16)).astype(np.uint8)).save(path)
            rows.append([path.name, f"{pair.sum():02d}", split])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "class", "split"], *rows])


def _describe(rows: dict[str, dict], workers: int, images_seen: int, seconds: float) -> str:
    names = {
        "start": "untrained network",
        "batch": "deep kNN, neighbours in the batch",
        "dataset": "deep kNN, neighbours in the whole data set",
        "cross_entropy": "cross entropy, neighbours by its features",
    }
    table = [["sums of two handwritten digits, 2,000 training images", "accuracy %", "mean class recall %"]]
    for name, row in rows.items():
        table.append([names[name], f"{row['knn/acc@5'] * 100:.1f}", f"{row['knn/mcr@5'] * 100:.1f}"])
    return (
        f"\n{align_columns(table)}\n\n"
        f"Same network, same {images_seen} images seen, {workers} workers, {seconds:.0f} s. Accuracy: the 5 nearest\n"
        "training images vote on each of 1,500 others, made of digits that were not used in training.\n\n"
        "Next, on your own folder of class folders:\n"
        "    fsl-dist pack MY_IMAGES data/mine\n"
        "    fsl-dist train --config own-images data.dataset=data/mine run.dir=runs/mine\n"
        "    fsl-dist evaluate runs/mine"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
