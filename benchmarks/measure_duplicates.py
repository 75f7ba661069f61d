"""What counts as a near-duplicate, measured: pairs in a folder of images, and changed images that are found again.

    python benchmarks/measure_duplicates.py FOLDER --sample 300

Reads every .jpg and .png below FOLDER (class = first folder). Prints one JSON object: milliseconds per image;
pairs by the bits in which their hashes differ (all; of two classes; with thumbnails that correlate); pairs with equal
pixels among the near ones. The share of changed images that are near under each rule follows.
"""

import argparse
import io
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from fsl_dist.data.fingerprints import Fingerprints, fingerprint
from fsl_dist.data.ingest.near_pairs import NEAR, NEAR_BY_NAME, Bounds, find_near
from fsl_dist.data.pixels import open_upright

EVERY_HASH = Bounds(distance=10, correlation=-1.0)


def reencode(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return open_upright(buffer.getvalue())


def crop(image: Image.Image, share: float) -> Image.Image:
    left, top = (round((1 - share) / 2 * side) for side in image.size)
    return image.crop((left, top, image.width - left, image.height - top))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "jpeg 75": lambda image: reencode(image, 75),
    "jpeg 30": lambda image: reencode(image, 30),
    "half size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR),
    "64 pixels": lambda image: image.resize((64, 64), Image.Resampling.LANCZOS),
    "brightness 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
    "brightness 1.1": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
    "brightness 1.2": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "contrast 1.3": lambda image: ImageEnhance.Contrast(image).enhance(1.3),
    "crop 98": lambda image: crop(image, 0.98),
    "crop 95": lambda image: crop(image, 0.95),
    "grey": lambda image: image.convert("L"),
    "mirrored": ImageOps.mirror,
}


def count_pairs(files: list[Path], prints: Fingerprints, classes: np.ndarray) -> dict[str, object]:
    """Pairs by bits that differ, and what the thumbnails leave of them."""
    start = time.perf_counter()
    blocks = list(find_near(prints, EVERY_HASH))
    seconds = time.perf_counter() - start
    rows, others, distances = (
        np.concatenate([getattr(block, name) for block in blocks]) for name in ("rows", "others", "distances")
    )
    is_across = classes[rows] != classes[others]
    correlations = prints.correlate(rows, others)
    counts = {}
    for bits in range(0, EVERY_HASH.distance + 1, 2):
        within = distances <= bits
        counts[str(bits)] = {
            "pairs": int(within.sum()),
            "of two classes": int((within & is_across).sum()),
            "correlation 0.99": int((within & (correlations >= 0.99)).sum()),
            "correlation 0.95": int((within & (correlations >= 0.95)).sum()),
        }
    near = np.flatnonzero((distances <= NEAR.distance) & (correlations >= NEAR.correlation))
    same = sum(
        open_upright(files[one].read_bytes()).tobytes() == open_upright(files[other].read_bytes()).tobytes()
        for one, other in zip(rows[near], others[near], strict=True)
    )
    return {"search_s": seconds, "pairs": counts, "near pairs with equal pixels": same}


def find_changed(files: list[Path], change: Callable[[Image.Image], Image.Image]) -> dict[str, float]:
    """Share of images that are near what `change` makes of them."""
    found = {"phash": 0, "name": 0, "phash with 4 bits": 0}
    rules = (NEAR, NEAR_BY_NAME, Bounds(distance=4, correlation=NEAR.correlation))
    for file in files:
        image = open_upright(file.read_bytes())
        prints = Fingerprints([fingerprint(image), fingerprint(change(image))], [(0, 0), (1, 0)])
        for name, bounds in zip(found, rules, strict=True):
            found[name] += sum(len(block.rows) for block in find_near(prints, bounds))
    return {name: count / len(files) for name, count in found.items()}


def main() -> None:
    """Measure one folder."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int, default=300)
    options = parser.parse_args()
    files = sorted(path for path in options.folder.rglob("*") if path.suffix in (".jpg", ".png"))
    classes = np.array([path.relative_to(options.folder).parts[0] for path in files])
    decoding_s, printing_s, encoded = 0.0, 0.0, []
    fingerprint(open_upright(files[0].read_bytes()))  # imports
    for path in files:
        times = [time.thread_time()]
        image = open_upright(path.read_bytes())
        times.append(time.thread_time())
        encoded.append(fingerprint(image))
        times.append(time.thread_time())
        decoding_s += times[1] - times[0]
        printing_s += times[2] - times[1]
    prints = Fingerprints(encoded, [(number, 0) for number in range(len(files))])
    chosen = np.random.default_rng(2).choice(len(files), min(options.sample, len(files)), replace=False)
    sample = [files[number] for number in chosen]
    result = {
        "images": len(files),
        "decoding_ms": 1e3 * decoding_s / len(files),
        "fingerprint_ms": 1e3 * printing_s / len(files),
        **count_pairs(files, prints, classes),
        "changed": {name: find_changed(sample, change) for name, change in CHANGES.items()},
        "machine": f"{platform.machine()}, Python {platform.python_version()}, NumPy {np.__version__}",
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
