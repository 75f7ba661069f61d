"""`own-images` on a long-tailed folder of photographs, against frozen features and plain fine-tuning in PyTorch.

    python -m benchmarks.recipe FOLDER WEIGHTS --out OUT --seeds 3

FOLDER: one folder of images for each class. WEIGHTS: a file of torchvision's MobileNetV2. All rows start from the
same weights and see the same 96 px. The plain row is the recipe that a user would otherwise write: cross entropy with
label smoothing, AdamW with a faster head, warm-up and cosine, random resized crops, flips and colours, and clipped
gradients. Prints a table, and writes it to OUT/recipe.json; what is there already is not run again.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.transforms import v2

import fsl_dist
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.metrics.knn import knn_metrics

SIZE = 96
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Parse the arguments, run all rows of all seeds, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0, help="to run seeds in several processes")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    packed = options.out / "packed"
    data = fsl_dist.open_data(packed) if packed.exists() else fsl_dist.pack(options.folder, packed)
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, run in rows_of(options, data, seed).items():
            place = options.out / f"{name.replace(' ', '-').replace(',', '')}-{seed}.json"
            if not place.exists():
                started = time.perf_counter()
                found = run()
                found.setdefault("seconds", time.perf_counter() - started)
                place.write_text(json.dumps(found))
                print(name, seed, {key: round(value, 3) for key, value in found.items()}, flush=True)
    print(describe(options.out))


def rows_of(
    options: argparse.Namespace, data: Catalogue, seed: int
) -> dict[str, Callable[[], dict[str, float]]]:
    """What is compared, by name."""

    def product(name: str, *settings: str, epochs: int) -> dict[str, float]:
        run = fsl_dist.train(
            "own-images",
            data=data,
            dir=options.out / f"{name}-{seed}",
            settings=[
                f"data.image_size={SIZE}",
                f"data.threads={options.threads}",
                "backbone.name=mobilenet_v2",
                "backbone.pretrained=false",
                f"backbone.weights={options.weights}",
                f"training.epochs={epochs}",
                f"run.seed={seed}",
                *settings,
            ],
            progress=False,
        )
        assert run.summary is not None
        scores = run.evaluate()
        run.close()
        found = {key: value for key, value in scores.items() if isinstance(value, float)}
        return {**found, "seconds": run.summary.seconds, "images": float(run.summary.images_seen)}

    classifier = ("mining.source=batch", "method.kind=cross_entropy")
    return {
        "frozen": lambda: product("frozen", epochs=0),
        "deep kNN, 6 epochs": lambda: product("six", epochs=6),
        "deep kNN in the batch, 6 epochs": lambda: product("six-batch", "mining.source=batch", epochs=6),
        "deep kNN, 24 epochs": lambda: product("deep-knn", epochs=24),
        "cross entropy, 24 epochs": lambda: product("cross-entropy", *classifier, epochs=24),
        "plain PyTorch, 24 epochs": lambda: fine_tune(options.folder, data, options.weights, 24, seed),
    }


def fine_tune(folder: Path, data: Catalogue, weights: Path, epochs: int, seed: int) -> dict[str, float]:
    """Plain fine-tuning on the train split, scored on test by its softmax and by cosine kNN (K_p 5)."""
    torch.manual_seed(seed)
    train, test = (_read_split(folder, data, split) for split in ("train", "test"))
    network = models.mobilenet_v2()
    network.load_state_dict(torch.load(weights, weights_only=True))
    network.classifier = nn.Linear(network.last_channel, len(data.class_names))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.01
    groups = [
        {"params": network.features.parameters(), "lr": 3e-4},
        {"params": network.classifier.parameters(), "lr": 3e-3},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    batch_size = 48
    steps = epochs * (len(train[1]) // batch_size)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=max(steps // 10, 1))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], [max(steps // 10, 1)])
    augment = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, (0.5, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.2, 0.2, 0.2),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    started = time.perf_counter()
    network.train()
    for _ in range(steps):
        chosen = torch.randint(len(train[1]), (batch_size,))
        images = torch.stack([augment(train[0][place]) for place in chosen.tolist()])
        logits = network.classifier(network.features(images).mean((2, 3)))
        loss = functional.cross_entropy(logits, train[1][chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    seconds = time.perf_counter() - started
    gallery, queries = _embed(network, train[0]), _embed(network, test[0])
    with torch.no_grad():
        softmax = network.classifier(queries).argmax(1)
    near = functional.normalize(queries) @ functional.normalize(gallery).T
    values, places = near.topk(5, 1)
    votes = torch.zeros(len(queries), len(data.class_names)).scatter_add_(1, train[1][places], values)
    labels, counts = np.unique(train[1].numpy(), return_counts=True)
    found = {"seconds": seconds, "images": float(steps * batch_size)}
    for name, predicted in (("softmax", softmax), ("knn", votes.argmax(1))):
        scores = knn_metrics(predicted.numpy(), test[1].numpy(), class_labels=labels, class_counts=counts)
        found |= {f"{name}/{key}{'@5' if name == 'knn' else ''}": value for key, value in scores.items()}
    return found


def _read_split(folder: Path, data: Catalogue, split: str) -> tuple[list[Image.Image], Tensor]:
    """The images of a split at 128 px, and their labels int64 [n]."""
    ids = data.select(split).ids
    images = []
    for key in data.keys(ids):
        path = next(folder.glob(f"{key}.*"))
        images.append(Image.open(path).convert("RGB").resize((128, 128), Image.Resampling.BILINEAR))
    return images, torch.from_numpy(np.asarray(data.labels)[ids].astype(np.int64))


@torch.no_grad()
def _embed(network: models.MobileNetV2, images: list[Image.Image]) -> Tensor:
    """float32 [n, 1280]: pooled features without augmentation."""
    network.eval()
    plain = v2.Compose(
        [
            v2.Resize((SIZE, SIZE)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    parts = [torch.stack([plain(image) for image in images[i : i + 64]]) for i in range(0, len(images), 64)]
    return torch.cat([network.features(part).mean((2, 3)) for part in parts])


def describe(out: Path) -> str:
    """A Markdown table of what has been run: mean ± standard deviation over the seeds (ddof 0), percent."""
    found: dict[str, list[dict[str, float]]] = {}
    for path in sorted(out.glob("*-[0-9].json")):
        found.setdefault(path.stem.rpartition("-")[0], []).append(json.loads(path.read_text()))
    lines = [
        "| row | seeds | images | seconds | kNN Acc | kNN MCR | softmax Acc | softmax MCR |",
        "| --- |" + " ---: |" * 7,
    ]
    for name, runs in found.items():

        def cell(key: str, scale: float = 100.0, runs: list[dict[str, float]] = runs) -> str:
            values: NDArray[np.float64] = np.array([run[key] for run in runs if key in run]) * scale
            return f"{values.mean():.1f} ± {values.std():.1f}" if len(values) else "–"

        lines.append(
            f"| {name} | {len(runs)} | {runs[0]['images']:.0f} | {cell('seconds', 1.0)} | {cell('knn/acc@5')} | "
            f"{cell('knn/mcr@5')} | {cell('softmax/acc')} | {cell('softmax/mcr')} |"
        )
    (out / "recipe.json").write_text(json.dumps(found, indent=1))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
