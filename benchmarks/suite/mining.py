"""`python -m benchmarks.suite mining`: deep kNN with neighbours in the whole data set, next to neighbours in the batch.

First a step with neighbours in the memory, of up to a million synthetic rows (`mining_steps`). Then runs of the real
`Trainer`, each from the same weights over as many images as there are to train on, taken in turn: neighbours in the
batch, in the memory, and decoded. The last two embed all images before their first step. Making the trainers is not
timed.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.interleave import interleave
from benchmarks.suite.mining_steps import BATCH_SIZE, CASES, SMOKE_CASES, measure_steps
from benchmarks.suite.report import BenchOptions, Report, Table, Target, timing_table
from fsl_dist.config import load_config
from fsl_dist.distributed import WorkerGroup
from fsl_dist.methods.mining.neighbour_table import NeighbourTable, mine_part
from fsl_dist.training.loop import Trainer
from fsl_dist.training.runlog import read_metrics
from index.runtime import flushing_denormals

K_SAME, M_OTHER = 5, 5
SETTINGS = (
    "method.kind=deep_knn",
    f"training.batch_size={BATCH_SIZE}",
    "training.optimizer=sgd",
    "training.lr=0.01",
    "training.epochs=1000",
    "training.patience=0",
    "backbone.name=resnet18",
    "data.resize=exact",
)
DECODED = (
    "mining.source=dataset",
    "mining.neighbours=decoded",
    f"method.k_same={K_SAME}",
    f"method.m_other={M_OTHER}",
)
FORMS = {
    "in the batch": ("mining.source=batch",),
    "in the memory": ("mining.source=dataset",),
    # One pass, as the memory has: decoded steps are smaller, so a second epoch starts before as many images are seen.
    "decoded": (*DECODED, "mining.refresh_steps=0"),
}
"""where neighbours are, and the settings that find them there"""


@flushing_denormals(torch.set_flush_denormal)
def measure(options: BenchOptions) -> Report:
    """The whole benchmark; `dataset`: packed photographs with at least two classes, 1,000 images or so."""
    size = 32 if options.is_smoke else 64
    num = 288 if options.is_smoke else 720
    dataset = options.dataset or _pack_patterns(options.folder, num, size)
    settings: tuple[str, ...] = (
        *SETTINGS,
        "workers.launch=process",
        f"data.dataset={dataset}",
        f"data.resize_size={size}",
        f"data.image_size={size}",
    )
    first = _build(settings, options.folder / "count")
    num_images, threads = len(first.splits.train), first.config.data.threads
    settings = (*settings, f"training.images={num_images}")
    runs = {
        form: [
            _build((*settings, *more), options.folder / f"{form}-{turn}")
            for turn in range(options.rounds + 1)
        ]
        for form, more in FORMS.items()
    }
    measured = interleave(
        {form: _train_each(trainers) for form, trainers in runs.items()}, unit="image", rounds=options.rounds
    )
    parts, step_to_decode, forward_share = _take_apart((*settings, *DECODED), options.folder / "apart")
    steps = measure_steps(SMOKE_CASES if options.is_smoke else CASES, options)
    return Report(
        benchmark="mining",
        title=(
            "Deep kNN with neighbours in a memory of all embeddings next to neighbours in the batch, a step each, with "
            f"synthetic rows; and runs of ResNet18 at {size} px over as many images as there are, {num_images}."
        ),
        config={
            "images": num_images,
            "image_size": size,
            "batch_size": BATCH_SIZE,
            "decoded": f"K {K_SAME}, M {M_OTHER}",
            "torch_threads": torch.get_num_threads(),
            "decode_threads": threads,
            "rounds": options.rounds,
        },
        tables=[
            *steps.tables,
            timing_table("Training, as many images seen", measured, base="in the batch"),
            parts,
        ],
        targets=[
            *steps.targets,
            Target(
                "mining: memory ÷ batch, wall, equal images seen", measured.ratios("in the memory", "in the batch"),
                at_most=1.4, remark="one pass over all images is part of it",
            ),
            Target(
                "mining: decoded ÷ batch, wall, equal images seen", measured.ratios("decoded", "in the batch"), at_most=1.4,
                remark="one pass over all images is part of it",
            ),
            Target(
                "mining: training step ÷ decode", [step_to_decode], at_least=5, is_guarded=False,
                remark="an image's share; the targets above are for steps this much slower than their decode",
            ),
            Target(
                "mining: embedding ÷ training step, an image", forward_share, is_guarded=False,
                remark="what one pass an epoch costs at least",
            ),
            *_beside(settings, num_images, options),
        ],
        notes=[] if torch.cuda.device_count() > 1 else [
            "Passes concurrent with training on a GPU of their own (target 1.15) were not run: they take two GPUs.",
        ],
        is_smoke=options.is_smoke,
    )  # fmt: skip


def _build(settings: tuple[str, ...], run: Path) -> Trainer:
    """A trainer of a new run in the folder `run`, with its decoder up."""
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    config = load_config(None, [*settings, f"run.dir={run}"])
    trainer = Trainer(config, group=WorkerGroup(), device=device, owner=None)
    trainer.source.fetch(trainer.splits.train.ids[:1], None)
    return trainer


def _train_each(trainers: list[Trainer]) -> Callable[[], float]:
    """A contender: each call trains the next one; returns the images it saw."""

    def run() -> float:
        return float(trainers.pop(0).train().images_seen)

    return run


def _take_apart(settings: tuple[str, ...], folder: Path) -> tuple[Table, float, list[float]]:
    """What a pass is made of; a training step's time over its decode's, and an embedding's over the step's, an
    image."""
    seconds: dict[str, list[float]] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    num_images = 0
    for turn in range(3):
        trainer = _build(settings, folder / str(turn))
        selection, index = trainer.splits.train, trainer.train_index
        num_images = len(selection)
        batches = np.array_split(selection.ids, -(-num_images // BATCH_SIZE))
        clock("decode, and nothing else", lambda: [trainer.source.fetch(ids, 0) for ids in batches])  # noqa: B023
        clock("embedding pass: decode and forward", lambda: trainer.embedder.embed(selection.ids))  # noqa: B023
        index.move_to("apart")
        clock("embedding pass + index written and published", index.open)
        rows = slice(0, num_images)
        place = folder / f"table-{turn}"
        clock(
            "neighbours searched, table written",
            lambda: mine_part(place, 0, index.open(), selection, rows, K_SAME, M_OTHER),  # noqa: B023
        )
        clock("table opened", lambda: NeighbourTable.open(place, K_SAME, 0))  # noqa: B023
        trainer.train()
        lines = [line for line in read_metrics(trainer.run) if "train/loss" in line]
        # The first step has the neighbourhood's first batch to wait for, and the libraries' warm-up.
        steps = sum(line["time/step_s"] for line in lines[1:])
        scale = num_images / (lines[-1]["train/images_seen"] - lines[0]["train/images_seen"])
        seconds.setdefault("training steps, for as many images", []).append(steps * scale)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    step = medians["training steps, for as many images"]
    table = Table(
        f"A pass for decoded neighbours, in parts ({num_images} images; medians of 3)",
        ("", "s", "ms/image", "of the training steps"),
        tuple((name, value, 1000 * value / num_images, value / step) for name, value in medians.items()),
    )
    shares = [
        one / other
        for one, other in zip(
            seconds["embedding pass: decode and forward"],
            seconds["training steps, for as many images"],
            strict=True,
        )
    ]
    return table, step / medians["decode, and nothing else"], shares


def _beside(settings: tuple[str, ...], num_images: int, options: BenchOptions) -> list[Target]:
    """With two GPUs: a refresh by an actor with a GPU of its own while training continues; else nothing.

    Both runs train on Ray over twice the images; the second pass counts, in which the one made the table of the third
    meanwhile. Ray's start and the first table, which training has to wait for, are left out.
    """
    if torch.cuda.device_count() < 2:
        return []
    from fsl_dist.training.launch import train_run
    from fsl_dist.training.ray.session import ray_session

    steps = -(-num_images // BATCH_SIZE)
    modes = {
        "batch": FORMS["in the batch"],
        "beside": (
            *DECODED, "mining.run=beside", "mining.gpus=1",
            f"mining.refresh_steps={steps}", f"mining.refresh_lag={steps - 1}",
        ),
    }  # fmt: skip
    taken: dict[str, list[float]] = {mode: [] for mode in modes}
    with ray_session(4):
        for turn in range(options.rounds):
            for mode, more in modes.items():
                run = options.folder / f"ray-{mode}-{turn}"
                longer = (f"training.images={2 * num_images}", "workers.launch=ray", f"run.dir={run}")
                train_run(load_config(None, [*settings, *more, *longer]))
                lines = [line for line in read_metrics(run) if "train/loss" in line]
                second = [line for line in lines if line["train/images_seen"] > num_images]
                seconds = sum(line["time/step_s"] + line.get("time/prepare_s", 0.0) for line in second)
                images = second[-1]["train/images_seen"] - num_images
                taken[mode].append(seconds / images)
    ratios = [one / other for one, other in zip(taken["beside"], taken["batch"], strict=True)]
    return [
        Target(
            "mining: mining.run=beside on a GPU of its own ÷ batch, wall",
            ratios,
            at_most=1.15,
            is_guarded=False,
        )
    ]


def _pack_patterns(folder: Path, num: int, size: int) -> Path:
    """A packed data set of `num` JPEGs of `size` px, all for training, in a long tail of classes of one to three
    looks."""
    from PIL import Image

    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    rng = np.random.default_rng(0)
    shares = 1 / np.arange(1, 41)
    counts = np.maximum(np.floor(num * shares / shares.sum()), 6).astype(int)
    counts[0] += num - counts.sum()
    rows = ["file,class,split"]
    for label, count in enumerate(counts):
        looks = rng.uniform(0, 255, (rng.integers(1, 4), 6, 6, 3))
        for image in range(count):
            coarse = looks[rng.integers(len(looks))] + rng.normal(0, 40, (6, 6, 3))
            picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
            noisy = np.asarray(picture) + rng.normal(0, 12, (size, size, 3))
            path = folder / "images" / f"{label}" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, quality=90)
            rows.append(f"{label}/{image}.jpg,{label},train")
    labels = folder / "images" / "labels.csv"
    labels.write_text("\n".join(rows) + "\n", encoding="utf-8")
    columns = TableColumns(table=str(labels), path="file", label="class", split="split")
    pack(folder / "images", folder / "packed", PackOptions(columns=columns))
    return folder / "packed"
