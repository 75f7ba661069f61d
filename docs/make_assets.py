"""Remakes the pictures of the documentation in docs/assets from a run on scikit-learn's digits (`make docs-assets`).

    python docs/make_assets.py [RUNS]

evidence.png and report.png are photographs of what `explain` and `report` write, by Chromium. RUNS is a folder
with results of `fsl-dist reproduce` and `fsl-dist sweep`, from which docs/make_results.py refreshes the tables and
figures of docs/benchmarks. Without it they stay, since making them takes hours.
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from generated import find_browser
from PIL import Image
from sklearn.datasets import load_digits

import fsl_dist
from fsl_dist.seeding import generator

ASSETS = Path(__file__).parent / "assets"
LARGEST_BYTES = 150_000
TRAIN, VAL, TEST = 60, 20, 20
"""images of each digit"""
SIDE = 32
"""pixels that the scans, 8 by 8, are enlarged to"""
SETTINGS = {
    "data.resize": "exact",
    "data.resize_size": SIDE,
    "data.image_size": SIDE,
    "data.channels": 1,
    "data.mean": [0.3],
    "data.std": [0.35],
    "data.random_crop": False,
    "data.flip": False,
    "data.rotation": 10,
    "method.kind": "deep_knn",
    "backbone.name": "conv4",
    "backbone.width": 32,
    "backbone.map_head": 32,
    "training.epochs": 8,
    "training.lr": 3e-3,
    "workers.launch": "process",
}


def write_digits(folder: Path) -> None:
    """Write FOLDER/SPLIT/DIGIT/*.png: the same images at every call."""
    scans = load_digits()
    for digit in range(10):
        members = generator(0, "digits", digit).permutation(np.flatnonzero(scans.target == digit))
        parts = np.split(members[: TRAIN + VAL + TEST], [TRAIN, TRAIN + VAL])
        for split, part in zip(("train", "val", "test"), parts, strict=True):
            target = folder / split / str(digit)
            target.mkdir(parents=True)
            for member in part.tolist():
                scan = Image.fromarray((scans.images[member] * (255 / 16)).astype(np.uint8))
                scan.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(target / f"{member}.png")


def photograph(page: Path, out: Path, width: int, height: int) -> None:
    """Write what Chromium draws of the upper part of a page, `width` by `height` pixels."""
    with tempfile.TemporaryDirectory() as profile:
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--virtual-time-budget=3000",
        ]
        window = [f"--window-size={width},{height}", f"--screenshot={out}", f"--user-data-dir={profile}"]
        subprocess.run(
            [find_browser(), *flags, *window, page.as_uri()], check=True, capture_output=True, timeout=120
        )


def shrink(picture: Path) -> None:
    """Store a PNG with a palette, in fewer colours until it is small enough; fail where it is not."""
    with Image.open(picture) as opened:
        image = opened.convert("RGB")
    for colours in (256, 128, 64, 32):
        image.quantize(colours).save(picture, optimize=True)
        if picture.stat().st_size <= LARGEST_BYTES:
            return
    sys.exit(f"{picture} has {picture.stat().st_size} bytes, more than {LARGEST_BYTES}")


def main() -> None:
    """Train, explain, report; then the results, where they are given."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="*")
    runs = [path.resolve() for path in parser.parse_args().runs]
    # The pages show paths as they were given.
    with tempfile.TemporaryDirectory(prefix="fsl-dist-assets-") as folder, contextlib.chdir(folder):
        write_digits(Path("images"))
        data = fsl_dist.pack("images", "data/digits", split_folders=True)
        run = fsl_dist.train(data=data, dir="runs/digits", settings=SETTINGS)
        asked = [min(Path("images/test", digit).iterdir()) for digit in ("3", "8")]
        run.explain(asked, out="why", k=5)
        photograph(Path("why/index.html").resolve(), ASSETS / "evidence.png", 1000, 1180)
        photograph(run.report("report", seconds=30).resolve(), ASSETS / "report.png", 1000, 900)
    for name in ("evidence", "report"):
        shrink(ASSETS / f"{name}.png")
    if runs:
        subprocess.run(
            [sys.executable, str(Path(__file__).parent / "make_results.py"), *map(str, runs)], check=True
        )


if __name__ == "__main__":
    main()
