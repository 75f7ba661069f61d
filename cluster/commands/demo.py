"""The main job end to end on real images: scikit-learn's handwritten digits, few of them labelled.

Pack class images into shards, train deep kNN with both minings at the same number of images seen, build the
neighbour index over the training images, score by kNN: what a run on one's own folder does, in minutes.
"""

import csv
import tempfile
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

SEED = 0
TRAIN_IMAGES_A_CLASS = 20
IMAGES_SEEN = 12_000

# 16 px, so that Conv4's four poolings end at one position; digits are neither mirrored nor cropped.
SETTINGS = [
    "data.resize_size=16",
    "data.resize=exact",
    "data.image_size=16",
    "data.channels=1",
    "data.mean=[0.5]",
    "data.std=[0.5]",
    "data.random_crop=false",
    "data.flip=false",
    "backbone.name=conv4",
    "backbone.width=32",
    "backbone.batch_norm=ghost",
    "backbone.batch_norm_group=48",
    "method.kind=deep_knn",
    "training.batch_size=96",
    "training.optimizer=adam",
    "training.lr=1e-3",
    "training.patience=0",
    "training.checkpoint_steps=100",
    f"run.seed={SEED}",
]


def run_demo(
    folder: Path | None,
    workers: int,
    *,
    show: Callable[[str], None] | None,
    images_seen: int = IMAGES_SEEN,
) -> tuple[dict, str]:
    """Run the demo in `folder` (None: a temporary one); returns its result and the text a person reads.

    images_seen: training images that each of the two trained networks sees, repeats counted.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fsl-dist-demo-")))
        rows = _run_in(folder, workers, images_seen, show)
    seconds = round(time.perf_counter() - started, 1)
    result = {
        "dataset": "scikit-learn digits",
        "train_images": TRAIN_IMAGES_A_CLASS * 10,
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
    _write_digits(images)
    table = images / "labels.csv"
    data = fsl_dist.pack(images, folder / "digits", table=table, split_column="split", seed=SEED)

    _say(
        f"2/4 training deep kNN on {workers} Ray Train workers: neighbours in the batch, then in the whole data set"
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


def _settings_of_runs(workers: int, images_seen: int) -> dict[str, list[str]]:
    trained = [
        f"workers.num={workers}",
        "workers.launch=ray",
        "training.epochs=1000",
        f"training.images={images_seen}",
    ]
    return {
        "untrained": [*SETTINGS, "training.epochs=0"],
        "batch": [*SETTINGS, "mining.source=batch", *trained],
        "dataset": [*SETTINGS, "mining.source=dataset", *trained],
    }


def _write_digits(folder: Path) -> None:
    """1,797 digits as PNG files in class folders, and a table that marks 20 of each class as train."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = []
    for label in range(10):
        members = np.flatnonzero(digits.target == label)
        order = generator(SEED, "demo", label).permutation(len(members))
        for position, member in enumerate(members[order]):
            path = folder / str(label) / f"{member:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            # The scans hold ink in 17 steps, 0 to 16.
            Image.fromarray((digits.images[member] * (255 / 16)).astype(np.uint8)).save(path)
            split = "train" if position < TRAIN_IMAGES_A_CLASS else "test"
            rows.append([path.relative_to(folder).as_posix(), str(label), split])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "class", "split"], *rows])


def _describe(rows: dict[str, dict], workers: int, images_seen: int, seconds: float) -> str:
    names = {
        "untrained": "untrained network",
        "batch": "deep kNN, neighbours mined in the batch",
        "dataset": "deep kNN, neighbours mined in the whole data set",
    }
    table = [["handwritten digits, 20 training images a class", "accuracy %", "mean class recall %"]]
    for name, row in rows.items():
        table.append([names[name], f"{row['knn/acc@5'] * 100:.1f}", f"{row['knn/mcr@5'] * 100:.1f}"])
    return (
        f"\n{align_columns(table)}\n\n"
        f"Same network, same {images_seen} images seen, {workers} workers, {seconds:.0f} s. Accuracy: the 5 nearest\n"
        "training images vote on each of the 1,597 others.\n\n"
        "Next, on your own folder of class folders:\n"
        "    fsl-dist pack MY_IMAGES data/mine\n"
        "    fsl-dist train --config own-images data.dataset=data/mine run.dir=runs/mine\n"
        "    fsl-dist evaluate runs/mine"
    )


def _say(line: str) -> None:
    click.echo(line, err=True)
