"""CPU milliseconds per image of each augmentation, as the Markdown table of docs/reference/data_format.md.

    python -m benchmarks.bench_augmentation

Half a minute. One thread; the least of eight rounds over 96 images. Processor time, so other processes disturb little.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.photographs import write_photographs
from fsl_dist.data.augmentation.mixing import draw_mixing
from fsl_dist.data.augmentation.parameters import draw_augment, plain_augment
from fsl_dist.data.augmentation.pixel_stage import transform_pixels
from fsl_dist.data.augmentation.policies import OPERATIONS
from fsl_dist.data.config import DataConfig
from fsl_dist.data.decode import make_decoder

NUM, SIDES = 96, (96, 224)
IDS = np.arange(NUM)
STAGE = {
    "vertical_flip=true": DataConfig(vertical_flip=True),
    "rotation=30": DataConfig(rotation=30.0),
    "erasing=1": DataConfig(erasing=1.0),
    "randaugment=2": DataConfig(randaugment=2),
    "trivialaugment=true": DataConfig(trivialaugment=True),
}
CROPS = {"": (), ", crop_scale=[0.5,1]": (0.5, 1.0)}

Row = dict[int, Callable[[], object]]
"""What is measured, by the side of the crop"""


def list_rows(photographs: list[bytes], pool: ThreadPoolExecutor) -> dict[str, Row]:
    """Name → what to call for one batch of each side."""
    rows: dict[str, Row] = {}
    for side in SIDES:
        size = {"image_size": side, "resize_size": side * 8 // 7, "threads": 1}
        for decoder in ("dali", "torchvision"):
            for text, scale in CROPS.items():
                config = DataConfig(decoder=decoder, crop_scale=scale, **size)
                decode = make_decoder(config, max_batch=NUM).decode
                drawn = draw_augment(config, 0, 0, IDS)
                rows.setdefault(f"decode ({decoder}{text})", {})[side] = partial(decode, photographs, drawn)
        crops = torch.randint(0, 256, (NUM, side, side, 3), dtype=torch.uint8)
        for name, part in STAGE.items():
            config = replace(part, **size)
            drawn = draw_augment(config, 0, 0, IDS)
            rows.setdefault(f"`data.{name}`", {})[side] = partial(
                transform_pixels, crops, drawn, config, pool
            )
        for number, operation in enumerate(OPERATIONS[1:], start=1):
            config = DataConfig(randaugment=1, **size)
            amounts = np.full((NUM, 1), operation.randaugment, np.float32)
            drawn = replace(plain_augment(NUM), operations=np.full((NUM, 1), number), amounts=amounts)
            rows.setdefault(f"· {operation.name}", {})[side] = partial(
                transform_pixels, crops, drawn, config, pool
            )
        images = torch.rand(NUM, 3, side, side).contiguous(memory_format=torch.channels_last)
        for name, alphas in {"mixup": (0.2, 0.0), "cutmix": (0.0, 1.0)}.items():
            mixing = draw_mixing(IDS, seed=0, epoch=0, mixup=alphas[0], cutmix=alphas[1])
            rows.setdefault(f"`method.{name}={max(alphas):g}`", {})[side] = partial(mixing.apply, images, IDS)
    return rows


def measure_ms(call: Callable[[], object]) -> float:
    """Processor milliseconds per image."""
    call()
    rounds = []
    for _ in range(8):
        started = time.process_time()
        call()
        rounds.append(time.process_time() - started)
    return 1000 * min(rounds) / NUM


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:
        write_photographs(Path(folder), classes=4, per_class=NUM // 4)
        photographs = [path.read_bytes() for path in sorted(Path(folder).rglob("*.jpg"))]
        heads = " | ".join(f"{side} px, ms" for side in SIDES)
        print(f"| per image | {heads} |\n| --- |" + " ---: |" * len(SIDES))
        for name, row in list_rows(photographs, pool).items():
            times = " | ".join(f"{measure_ms(row[side]):.2f}" for side in SIDES)
            print(f"| {name} | {times} |", flush=True)


if __name__ == "__main__":
    main()
