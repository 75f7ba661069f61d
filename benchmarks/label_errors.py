"""Planted label errors: how many of them the list of likely label errors holds, and how much of the list they are.

    python benchmarks/label_errors.py digits
    python benchmarks/label_errors.py FOLDER --weights mobilenet_v2_imagenet.pth --image-size 128

FOLDER has a folder of images for each class; its images are packed, divided, and embedded by the frozen backbone.
`digits` are scikit-learn's, as pixels. Of the training images' labels, a share is changed: to a class drawn at
random, or to the class of the most similar mean. Prints one JSON object for each kind of change, over
all seeds: precision and recall of the list, the precision of as many first entries as were changed, and how often the
suggestion is the true class. The same figures follow for confident learning's own list (Eq. 1).
"""

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.evaluation.label_errors import find_suspects, least_odds, predict_out_of_sample
from fsl_dist.heads.fitting import Embedded
from fsl_dist.metrics.confident_learning import confident_joint


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """All 1,797 of scikit-learn's digits as 64 pixels."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    return scans.data.astype(np.float32), scans.target.astype(np.int64)


def embed_folder(
    folder: Path, weights: str, backbone: str, image_size: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Training images of a folder by a frozen backbone, and their labels."""
    import fsl_dist
    from fsl_dist.config import load_config
    from fsl_dist.training.launch import train_run

    with tempfile.TemporaryDirectory() as scratch:
        data = fsl_dist.pack(folder, Path(scratch) / "packed", progress=False)
        settings = [
            f"data.dataset={data.folder}", f"run.dir={scratch}/frozen", f"data.resize_size={image_size}",
            f"data.image_size={image_size}", "training.epochs=0", "training.patience=0", f"backbone.name={backbone}",
            f"backbone.weights={weights}",
        ]  # fmt: skip
        train_run(load_config(None, settings))
        ids = np.arange(len(data.split_ids("train")))
        with fsl_dist.open_run(Path(scratch) / "frozen") as run:
            return run.embed(ids), data.labels[ids].copy()


def plant(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], share: float, kind: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(labels with a share of them changed, positions of the changed ones); `kind`: random or similar."""
    rng, classes = np.random.default_rng(seed), np.unique(labels)
    changed = rng.choice(len(labels), max(1, round(share * len(labels))), replace=False)
    noisy = labels.copy()
    if kind == "random":
        places = np.searchsorted(classes, labels[changed])
        noisy[changed] = classes[(places + rng.integers(1, len(classes), len(changed))) % len(classes)]
        return noisy, changed
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    means = np.stack([unit[labels == label].mean(axis=0) for label in classes])
    distances = np.square(means[:, None] - means[None]).sum(axis=2)
    np.fill_diagonal(distances, np.inf)
    noisy[changed] = classes[distances.argmin(axis=1)[np.searchsorted(classes, labels[changed])]]
    return noisy, changed


def measure(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], share: float, kind: str, seed: int
) -> dict[str, float]:
    """One planting, found again."""
    noisy, changed = (
        (labels, np.zeros(0, dtype=np.int64)) if kind == "none" else plant(vectors, labels, share, kind, seed)
    )
    classes = np.unique(labels)
    started = time.perf_counter()
    found = predict_out_of_sample(Embedded(np.arange(len(labels)), vectors, noisy), classes, seed=seed)
    assert found is not None  # there is no time limit
    columns = np.searchsorted(classes, noisy)
    suspects = find_suspects(found.probabilities, columns)
    seconds = time.perf_counter() - started
    is_hit = np.isin(suspects.rows, changed)
    joint = confident_joint(found.probabilities, columns)
    counted = np.flatnonzero((joint.true >= 0) & (joint.true != columns))
    is_counted_hit = np.isin(counted, changed)
    is_fixed = classes[suspects.suggested[is_hit]] == labels[suspects.rows[is_hit]]
    return {
        "listed": len(suspects.rows) / len(labels),
        "precision": float(is_hit.mean()) if len(is_hit) else 0.0,
        "recall": float(is_hit.sum() / max(len(changed), 1)),
        "precision_of_first": float(is_hit[: len(changed)].mean()) if is_hit[: len(changed)].size else 0.0,
        "suggestion_is_right": float(is_fixed.mean()) if len(is_fixed) else 0.0,
        "confident_learning_precision": float(is_counted_hit.mean()) if len(is_counted_hit) else 0.0,
        "confident_learning_recall": float(is_counted_hit.sum() / max(len(changed), 1)),
        "confident_learning_noise": joint.noise,
        "out_of_sample_accuracy": float((classes[found.probabilities.argmax(axis=1)] == labels).mean()),
        "seconds": seconds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="digits, or a folder of class folders")
    parser.add_argument("--weights", default="", help="file of the backbone's weights")
    parser.add_argument("--backbone", default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--share", type=float, default=0.05, help="of the labels that are changed")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if asked.source == "digits":
        vectors, labels = load_digits()
    else:
        vectors, labels = embed_folder(Path(asked.source), asked.weights, asked.backbone, asked.image_size)
    result: dict[str, object] = {
        "source": Path(asked.source).name,
        "images": len(labels),
        "classes": len(np.unique(labels)),
        "share": asked.share,
        "seeds": asked.seeds,
        "odds": least_odds(len(np.unique(labels))),
        "machine": platform.machine(),
    }
    for kind in ("random", "similar", "none"):
        runs = [measure(vectors, labels, asked.share, kind, seed) for seed in range(asked.seeds)]
        result[kind] = {
            name: {
                "mean": round(float(np.mean([run[name] for run in runs])), 3),
                "std": round(float(np.std([run[name] for run in runs])), 3),
            }
            for name in runs[0]
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
