"""`python -m benchmarks.suite mining`: deep kNN mined in the whole data set beside mined in the batch, and what near anchors save.

Runs of the real `Trainer`, each from the same weights over as many images as there are to train on, taken in turn. Mining
in the whole data set embeds them all once, builds and publishes an index and finds everyone's neighbours before its first
step. Making the trainers is not timed.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.suite.interleave import interleave
from benchmarks.suite.report import BenchOptions, Report, Table, Target, timing_table
from fsl_dist.config import RunConfig, load_config
from fsl_dist.distributed import WorkerGroup
from fsl_dist.methods.neighbour_table import NeighbourTable, mine_part
from fsl_dist.samplers.near_order import near_order
from fsl_dist.samplers.neighbourhood import anchors_of_step, anchors_per_step
from fsl_dist.training.loop import Trainer
from fsl_dist.training.runlog import read_metrics
from index.runtime import flushing_denormals

Ints = NDArray[np.int64]
K_SAME, M_OTHER = 5, 5
BATCH_SIZE, LARGER_BATCH_SIZE = 96, 224
SETTINGS = (
    "method.kind=deep_knn",
    f"method.k_same={K_SAME}",
    f"method.m_other={M_OTHER}",
    f"training.batch_size={BATCH_SIZE}",
    "training.optimizer=sgd",
    "training.lr=0.01",
    "training.epochs=1000",
    "training.patience=0",
    "backbone.name=resnet18",
    "data.resize=exact",
)
_TRAINED_EPOCHS = 4
"""passes' worth of images after which neighbourhoods are looked at again; an untrained network's are hubs"""


@flushing_denormals(torch.set_flush_denormal)
def measure(options: BenchOptions) -> Report:
    """The whole benchmark; `dataset`: packed photographs with at least two classes, 1,000 images or so."""
    size = 32 if options.is_smoke else 64
    num = 288 if options.is_smoke else 720
    dataset = options.dataset or _pack_patterns(options.folder, num, size)
    config = load_config(
        None,
        [
            *SETTINGS,
            "workers.launch=process",
            f"data.dataset={dataset}",
            f"data.resize_size={size}",
            f"data.image_size={size}",
        ],
    )
    num_images = len(_build(config, options.folder / "count", "batch").splits.train)
    config = dataclasses.replace(config, training=dataclasses.replace(config.training, images=num_images))

    trainers: dict[Literal["batch", "dataset"], list[Trainer]] = {"batch": [], "dataset": []}
    for turn in range(options.rounds + 1):
        for source, made in trainers.items():
            made.append(_build(config, options.folder / f"{source}-{turn}", source))
    runs = [trainer.run for trainer in trainers["dataset"]]
    measured = interleave(
        {f"mining.source={source}": _train_each(made) for source, made in trainers.items()},
        unit="image",
        rounds=options.rounds,
    )
    ratios = measured.ratios("mining.source=dataset", "mining.source=batch")

    parts, step_to_decode, forward_share = _take_apart(config, options.folder / "apart")
    sharing, saved = _compare_sharing(config, options.folder, runs[-1], num_images)
    return Report(
        benchmark="mining",
        title=(
            f"ResNet18 at {size} px, {num_images} training images from packed shards: as many images seen with deep kNN's "
            "neighbours mined in the batch, and with all images embedded, indexed and searched once before the first step."
        ),
        config={
            "images": num_images,
            "image_size": size,
            "batch_size": BATCH_SIZE,
            "k_same": K_SAME,
            "m_other": M_OTHER,
            "torch_threads": torch.get_num_threads(),
            "decode_threads": config.data.threads,
            "rounds": options.rounds,
        },
        tables=[
            timing_table("Training, as many images seen", measured, base="mining.source=batch"),
            parts,
            sharing,
        ],
        targets=[
            Target("mining: data set ÷ batch, wall, equal images seen", ratios, at_most=1.4),
            Target(
                "mining: training step ÷ decode", [step_to_decode], at_least=5, is_guarded=False,
                remark="an image's share; the target above is for steps this much dearer than their decode",
            ),
            Target(
                "mining: embedding ÷ training step, an image", forward_share, is_guarded=False,
                remark="what one refresh an epoch costs at least",
            ),
            Target(
                "mining: images per triplet, near ÷ shuffled anchors", [saved], at_most=0.5,
                remark=f"trained embedding; steps of about as many images: batch_size {LARGER_BATCH_SIZE} near, "
                f"{BATCH_SIZE} shuffled",
            ),
            *_beside(config, options),
        ],
        notes=[] if torch.cuda.device_count() > 1 else [
            "Mining beside training on a GPU of its own (target 1.15) was not run: it takes two GPUs.",
        ],
        is_smoke=options.is_smoke,
    )  # fmt: skip


def _build(config: RunConfig, run: Path, source: Literal["batch", "dataset"]) -> Trainer:
    """A trainer of a new run, or of the one in `run` as far as it is; with its decoder up."""
    mining = dataclasses.replace(config.mining, source=source)
    config = dataclasses.replace(config, mining=mining, run=dataclasses.replace(config.run, dir=str(run)))
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(config, group=WorkerGroup(), device=device, owner=None)
    trainer.source.fetch(trainer.splits.train.ids[:1], None)
    return trainer


def _train_each(trainers: list[Trainer]) -> Callable[[], float]:
    """A contender: each call trains the next one; returns the images it saw."""

    def run() -> float:
        return float(trainers.pop(0).train().images_seen)

    return run


def _take_apart(config: RunConfig, folder: Path) -> tuple[Table, float, list[float]]:
    """What a refresh is made of; a training step's time over its decode's, and an embedding's over the step's, an image."""
    seconds: dict[str, list[float]] = {}

    def clock(name: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        seconds.setdefault(name, []).append(time.perf_counter() - started)

    num_images = 0
    for turn in range(3):
        trainer = _build(config, folder / str(turn), "dataset")
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
        f"A refresh, in parts ({num_images} images; medians of 3)",
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


def _compare_sharing(config: RunConfig, folder: Path, run: Path, num_images: int) -> tuple[Table, float]:
    """Images per triplet of both orders of anchors, untrained and trained on; and near ÷ shuffled at like steps, trained."""
    longer = dataclasses.replace(config.training, images=_TRAINED_EPOCHS * num_images)
    _build(dataclasses.replace(config, training=longer), run, "dataset").train()
    rows: list[tuple[str | float, ...]] = []
    for name, place in (("untrained", folder / "untrained"), ("trained", run)):
        trainer = _build(config, place, "dataset")
        trainer.train_index.move_to("sharing")
        index, selection = trainer.train_index.open(), trainer.splits.train
        every = index.vectors(0, len(selection))
        found = index.neighbours(every, selection.sample_labels, selection.ids, K_SAME, M_OTHER)
        place_of = np.full(selection.ids.max() + 2, -1, dtype=np.int64)
        place_of[selection.ids] = np.arange(len(selection))
        same, other = place_of[found.same_ids], place_of[found.other_ids]
        for order, batch_size in (
            ("shuffled", BATCH_SIZE),
            ("near", BATCH_SIZE),
            ("shuffled", LARGER_BATCH_SIZE),
            ("near", LARGER_BATCH_SIZE),
        ):
            per_step = anchors_per_step(batch_size, K_SAME, M_OTHER)
            a_step, per_triplet = _count_images(same, other, order == "near", per_step)
            rows.append((f"{order}, {name}", batch_size, per_step, a_step, per_triplet))
    table = Table(
        f"Images decoded for triplets (“trained”: {longer.images} images seen)",
        ("anchors, embedding", "batch_size", "anchors a step", "images a step", "images per triplet"),
        tuple(rows),
    )
    shuffled, near = rows[4][-1], rows[7][-1]
    assert isinstance(shuffled, float)
    assert isinstance(near, float)
    return table, near / shuffled


def _count_images(same: Ints, other: Ints, is_near: bool, per_step: int) -> tuple[float, float]:
    """Mean images of a step, and images per triplet, over an epoch; same, other: int64 [N, K], [N, M] rows, −1 = none."""
    num = len(same)
    neighbours = np.concatenate([same, other], axis=1)
    hoods = np.concatenate([np.arange(num)[:, None], neighbours], axis=1)
    starts = range(0, num, per_step)
    if is_near:
        order = near_order(neighbours, per_step, seed=0, epoch=0)
        steps = [order[start : start + per_step] for start in starts]
    else:
        steps = [anchors_of_step(num, per_step, seed=0, epoch=0, step=step) for step in range(len(starts))]
    images = sum(int((np.unique(hoods[anchors]) >= 0).sum()) for anchors in steps)
    triplets = int(((same >= 0).sum(axis=1) * (other >= 0).sum(axis=1)).sum())
    return images / len(steps), images / triplets


def _beside(config: RunConfig, options: BenchOptions) -> list[Target]:
    """With two GPUs: a refresh by an actor with a GPU of its own while training goes on; else nothing.

    Both runs train on Ray over twice the images; the second pass counts, in which the one made the table of the third
    meanwhile. Ray's start and the first table, which training has to wait for, are left out.
    """
    if torch.cuda.device_count() < 2:
        return []
    from fsl_dist.training.launch import train_run
    from fsl_dist.training.ray.session import ray_session

    steps = config.training.images // (anchors_per_step(BATCH_SIZE, K_SAME, M_OTHER) * (1 + K_SAME + M_OTHER))
    modes = {
        "batch": ["mining.source=batch"],
        "beside": [
            "mining.source=dataset", "mining.run=beside", "mining.gpus=1",
            f"mining.refresh_steps={steps}", f"mining.refresh_lag={steps - 1}",
        ],
    }  # fmt: skip
    taken: dict[str, list[float]] = {mode: [] for mode in modes}
    with ray_session(4):
        for turn in range(options.rounds):
            for mode, extra in modes.items():
                run = options.folder / f"ray-{mode}-{turn}"
                settings = [
                    *SETTINGS, f"data.dataset={config.data.dataset}", f"data.resize_size={config.data.image_size}",
                    f"data.image_size={config.data.image_size}", f"training.images={2 * config.training.images}",
                    "workers.launch=ray", f"run.dir={run}", *extra,
                ]  # fmt: skip
                train_run(load_config(None, settings))
                lines = [line for line in read_metrics(run) if "train/loss" in line]
                second = [line for line in lines if line["train/images_seen"] > config.training.images]
                seconds = sum(line["time/step_s"] + line.get("time/prepare_s", 0.0) for line in second)
                images = second[-1]["train/images_seen"] - config.training.images
                taken[mode].append(seconds / images)
    ratios = [one / other for one, other in zip(taken["beside"], taken["batch"], strict=True)]
    return [
        Target("mining: beside on a GPU of its own ÷ batch, wall", ratios, at_most=1.15, is_guarded=False)
    ]


def _pack_patterns(folder: Path, num: int, size: int) -> Path:
    """A packed data set of `num` JPEGs of `size` px, all for training, in a long tail of classes of one to three looks."""
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
