"""Measure a machine's rates for one configuration: each part of a run separately, as training runs it."""

import dataclasses
import datetime
import importlib.metadata
import logging
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.planning.index_rates import ROUNDS, index_rates, time_rate
from cluster.planning.machine import processor_name
from cluster.planning.rates import Machine, Rate, Rates, Work
from cluster.planning.reduce_rate import measure_reduce
from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.loader import Loader
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.methods.mining.config import MiningConfig
from fsl_dist.training.config import WorkersConfig
from fsl_dist.training.launch import check_run
from fsl_dist.training.loop import Trainer
from fsl_dist.training.splits import split_run
from fsl_dist.training.step import PlannedStep, planned_steps, step_requests
from fsl_dist.training.trained import resolve_weights
from index.base.scratch import scratch_folder
from index.runtime import flushing_denormals

log = logging.getLogger(__name__)

_IMAGES = 1000  # loaded a round
_READ, _READ_BATCH = 4_096, 256  # number of images read, and per batch
_PREPARED = 2_000  # images whose embeddings a method is prepared with


@flushing_denormals(torch.set_flush_denormal)
def measure_rates(config: RunConfig) -> Rates:
    """Measure this machine, for `config` and its data set, in one process; takes about a minute with a small network.

    Images, network, loss and optimizer are the run's; the index contains random vectors of its dimension. Writes only
    temporary files. Raises the errors of `fsl-dist train` for this configuration.
    """
    config = resolve_weights(config)
    check_run(config)
    with scratch_folder("fsl-rates-") as folder:
        log.info("building the network")
        trainer = _build_trainer(config, Path(folder) / "run")
        kmeans = _prepare(trainer)
        log.info("loading images")
        load = time_rate(lambda number: len(load_steps(trainer, number, _IMAGES)[1]))
        log.info("training steps")
        train, step_images = _train_rate(trainer)
        log.info("embedding")
        images = trainer.source.fetch(trainer.splits.train.ids[: config.evaluation.batch_size], None)
        trainer.embedder.embed_images(images)
        embed = time_rate(lambda number: len(trainer.embedder.embed_images(images)))
        log.info("reading")
        image_bytes, read = _read_rate(trainer)
        log.info("building and searching an index")
        index = index_rates(config.index, trainer.network.embedding_dim, Path(folder) / "index")
        gradient_bytes = sum(
            p.numel() * p.element_size() for p in trainer.network.parameters() if p.requires_grad
        )
        log.info("averaging gradients")
        reduce = measure_reduce(gradient_bytes, trainer.device.type)
        trainer.source.close()
    return Rates(
        date=datetime.date.today().isoformat(),
        machine=_machine(trainer),
        work=Work(
            backbone=config.backbone.name,
            image_size=config.data.image_size,
            precision="bf16" if trainer.use_bf16 else "float32",
            embedding_dim=trainer.network.embedding_dim,
            gradient_bytes=gradient_bytes,
            image_bytes=round(image_bytes, 1),
            classes=split_run(trainer.catalogue, config).train.num_classes,
            step_images=step_images,
            vectors=index.pop("vectors"),
            index_kind=config.index.kind,
        ),
        load=load,
        train=train,
        embed=embed,
        kmeans=kmeans,
        read=read,
        reduce=reduce,
        **index,
    )


def _build_trainer(config: RunConfig, run: Path) -> Trainer:
    """One process's trainer. Neighbours in the batch replace those of mining:
    the same number of images, the same loss."""
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, dir=str(run)),
        workers=WorkersConfig(launch="process", gpu=config.workers.gpu),
        mining=MiningConfig(),
    )
    has_gpu = torch.cuda.is_available() and config.workers.gpu == "auto"
    splits = None
    traits = config.method.traits
    if traits.prepares_from_all_images:
        # Their preparation uses all training images; some are enough here.
        splits = split_run(Catalogue.open(config.data.dataset, config.data.version or None), config)
        needed = config.episode.n_way if traits.is_episodic else 2
        # If images of a small class repeat, the selection can be used unchanged.
        of_episode = 1 if config.episode.small_classes == "replace" else config.episode.images_per_class
        least = of_episode if traits.is_episodic else 2
        splits = dataclasses.replace(splits, train=take_classes(splits.train, needed, least))
    device = torch.device("cuda:0" if has_gpu else "cpu")
    return Trainer(config, group=WorkerGroup(), device=device, owner=None, splits=splits)


def take_classes(selection: Selection, needed: int, least: int) -> Selection:
    """Whole classes from all over the selection: `needed` or more, until they have enough images; huge ones are cut
    to `least` or more."""
    order = np.random.default_rng(0).permutation(np.flatnonzero(selection.counts >= least))
    if not len(order):
        raise RequestError(
            f"no class has the {least} training images that episode.k_shot and episode.n_query need; the largest has "
            f"{selection.counts.max()} (smaller ones, or episode.small_classes=replace)"
        )
    enough = np.searchsorted(np.cumsum(selection.counts[order]), _PREPARED) + 1
    chosen = order[: max(needed, int(enough))]
    most = max(least, 10 * _PREPARED // max(1, len(chosen)))
    ids = [selection.of_class(int(position))[:most] for position in chosen]
    labels = np.repeat(selection.labels[chosen], [len(part) for part in ids])
    return Selection.from_labels(np.concatenate(ids), labels)


def _prepare(trainer: Trainer) -> Rate | None:
    """Prepare the method if necessary; return the rate of PCN's k-means."""
    method, index = trainer.method, trainer.train_index
    if not method.prepares_at(0, 0):
        return None
    log.info("preparing the method")
    index.move_to("rates")
    traits = trainer.config.method.traits
    if traits.prototypes is None or not traits.prepares_from_all_images:
        method.prepare(0, 0, index, trainer.group)
        return None
    index.open()  # embeds; only k-means is timed

    def fit(number: int) -> int:
        method.prepare(0, 0, index, trainer.group)
        return len(trainer.splits.train)

    return time_rate(fit, rounds=1)


def load_steps(
    trainer: Trainer, epoch: int, num_images: int
) -> tuple[list[tuple[PlannedStep, list[torch.Tensor]]], NDArray[np.int64]]:
    """Steps of an epoch with their images, about `num_images`, and the ids that were loaded for them."""
    size = sum(len(batch.ids) for batch in trainer.method.batches(epoch, 0))
    steps = range(min(trainer.method.num_steps(), max(1, round(num_images / size))))
    requests = list(
        step_requests(
            trainer.method,
            epoch,
            steps,
            group=trainer.group,
            is_ghost=trainer.is_ghost,
            ghost_group=trainer.config.backbone.batch_norm_group,
            chunk_size=trainer.config.training.chunk_size,
        )
    )
    with Loader(trainer.source, requests, trainer.config.data.prefetch) as loader:
        planned = [(plan, list(images)) for plan, images in planned_steps(loader)]
    return planned, np.concatenate([request.ids for request in requests])


def _train_rate(trainer: Trainer) -> tuple[Rate, int]:
    """Images per second through whole steps with loaded images, and images per step."""
    planned, images = load_steps(trainer, 0, 1)[0][0]
    num_images = sum(len(batch.ids) for batch in planned.batches)
    trainer.network.train()

    def step(number: int) -> int:
        trainer.take_step(planned, iter(images))
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return num_images

    started = time.perf_counter()
    step(0)  # compiles, chooses algorithms, fills caches
    takes_s = time.perf_counter() - started
    # About a second per round, so that a step of milliseconds is not affected by a short disturbance.
    repeats = max(1, min(50, round(1 / takes_s)))
    rate = time_rate(
        lambda number: sum(step(number) for _ in range(repeats)), rounds=ROUNDS if takes_s < 10 else 1
    )
    return rate, num_images


def _read_rate(trainer: Trainer) -> tuple[float, Rate]:
    """Mean bytes of an image, and 10⁶ bytes/s read in batches of random images,
    without the page cache if it can be dropped."""
    catalogue, ids = trainer.catalogue, trainer.splits.train.ids
    if trainer.config.data.features:
        size = 4.0 * trainer.source.sample_shape[0]
        return size, time_rate(lambda number: len(trainer.source.read(ids)) * size / 1e6)
    rng = np.random.default_rng(0)
    size = float(catalogue.locate(ids).size.mean())

    def read(number: int) -> float:
        chosen = rng.choice(ids, min(_READ, len(ids)), replace=False)
        for start in range(0, len(chosen), _READ_BATCH):
            trainer.source.read(chosen[start : start + _READ_BATCH])
        return float(catalogue.locate(chosen).size.sum()) / 1e6

    # Shards at an object store are in no file here, and in no page cache.
    for path in filter(Path.is_file, (catalogue.folder / shard.name for shard in catalogue.shards)):
        with path.open("rb") as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size, time_rate(
        read,
        rounds=1,
        source="measured, after a request to drop the files from the page cache; CPU time included",
    )


def _machine(trainer: Trainer) -> Machine:
    names = ("fsl-dist", "torch", "torchvision")
    versions = {name: importlib.metadata.version(name) for name in names} | {
        "python": platform.python_version()
    }
    is_gpu = trainer.device.type == "cuda"
    return Machine(
        device="cuda" if is_gpu else "cpu",
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        cpu=processor_name(),
        gpu=torch.cuda.get_device_name(0) if is_gpu else "",
        versions=versions,
    )
