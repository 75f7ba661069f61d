"""Every head on the frozen features of a folder of images: validation and test scores, calibration, seconds, as a
Markdown table.

    python -m benchmarks.heads FOLDER WEIGHTS --image-size 96

FOLDER: one folder of images for each class, which `pack` divides into train, val and test. WEIGHTS: a file of
torchvision's MobileNetV2. Heads are fitted to train and calibrated on val. Test is shown for all heads here, and
chooses nothing.
"""

import argparse
import tempfile
from pathlib import Path

import fsl_dist
from fsl_dist.evaluation.run_head import embed_part
from fsl_dist.heads import candidate_heads, fit_head, score_head, score_heads
from fsl_dist.heads.choosing import choose


def main() -> None:
    """Parse the arguments, embed the images, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--image-size", type=int, default=96, help="pixels")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        data = fsl_dist.pack(options.folder, Path(scratch) / "packed", progress=False)
        settings = [
            f"data.resize_size={options.image_size}", f"data.image_size={options.image_size}", "data.resize=exact",
            "backbone.name=mobilenet_v2", f"backbone.weights={options.weights.resolve()}", "training.epochs=0",
            "training.patience=0", "method.kind=deep_knn", "method.normalise=true",
        ]  # fmt: skip
        with fsl_dist.train(
            None, data=data, dir=Path(scratch) / "frozen", settings=settings, progress=False
        ) as run:
            train, val, test = (
                embed_part(run.trained, name, data.select(name)) for name in ("train", "val", "test")
            )
    classes = data.select("train").labels
    found = score_heads(candidate_heads(train), train, val, classes)
    print(f"{len(train.labels)} training, {len(val.labels)} validation, {len(test.labels)} test images\n")
    print("| head | val acc | val MCR (95 %) | test acc | test MCR | ECE before, after | s |")
    print("| --- |" + " ---: |" * 6)
    for one in found:
        score, low_high = one.score, tuple(100 * end for end in one.score.mcr_interval)
        tested = score_head(fit_head(one.config, train, classes), test)
        print(
            f"| `{one.config.name}` | {100 * score.acc:.1f} | {100 * score.mcr:.1f} "
            f"({low_high[0]:.0f}–{low_high[1]:.0f}) | "
            f"{100 * tested.acc:.1f} | {100 * tested.mcr:.1f} | {100 * one.ece_before:.1f}, {100 * score.ece:.1f} "
            f"| {one.seconds:.2f} |"
        )
    choice = choose(found)
    print(f"\nchosen by MCR: `{choice.config.name}`; equal to it within noise: {len(choice.equal)}")


if __name__ == "__main__":
    main()
