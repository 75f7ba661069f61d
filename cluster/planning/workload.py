"""The work of a configuration for its training processes, computed without a data set: steps, images, refreshes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsl_dist.config import RunConfig
from fsl_dist.methods.method import EpochPlan

SELECTION_BYTES = 34
"""bytes per image while a process selects its training images, class by class:
ids, labels, and an index of the classes"""


@dataclass(frozen=True, slots=True)
class Workload:
    """One epoch's work, dealt to `processes` training processes."""

    processes: int
    steps: int
    """optimizer steps"""
    step_images: int
    """images per step, over all processes; an upper bound if images may repeat"""
    share: int
    """images per step of the busiest process"""
    busy: int
    """number of processes with at least one image of a step"""
    loads: int
    """number of times that an image is read and decoded per step: 2 if the gradient is cached in chunks"""
    is_global: bool
    """whether the embeddings of a step are gathered on every process"""
    refresh: Literal["none", "prototypes", "mining"]
    """work that is repeated between steps, on all training images"""
    refreshes: float
    """per epoch"""


def count_workload(config: RunConfig, num_images: int, processes: int) -> Workload:
    """Compute the work of one epoch over `num_images` training images."""
    epoch = config.method.count_epoch(
        EpochPlan(
            num_images=num_images,
            num_workers=processes,
            batch_size=config.training.batch_size,
            episode=config.episode,
            mining=config.mining,
        )
    )
    steps, units, size, is_global = epoch.steps, epoch.batches, epoch.images, epoch.is_global
    whole = units * size
    if is_global:
        share, busy = _cut(config, size, processes)
        share *= units
    else:
        share, busy = -(-units // processes) * size, min(units, processes)
    chunk = config.training.chunk_size
    refresh, refreshes = _refreshes(config, steps)
    return Workload(
        processes=processes,
        steps=steps,
        step_images=whole,
        share=share,
        busy=busy,
        # Each batch, or part of one, is forwarded separately; it is cached if it is larger than a chunk.
        loads=2 if 0 < chunk < (share // units if is_global else size) else 1,
        is_global=is_global,
        refresh=refresh,
        refreshes=refreshes,
    )


def _cut(config: RunConfig, size: int, processes: int) -> tuple[int, int]:
    """The largest part of a batch of `size` images, and the number of processes with a part:
    ghost batch norm divides between groups.

    The same division as `training.step.deal_pieces`, whose module needs torch.
    """
    mode = config.backbone.batch_norm
    is_ghost = mode == "ghost" or (mode == "auto" and not config.backbone.starts_from_weights)
    group = config.backbone.batch_norm_group if is_ghost else 1
    units = max(1, min(-(-size // group), size // 2)) if group > 1 else size
    smaller, num_larger = divmod(size, units)
    edges = np.arange(processes + 1) * units // processes
    rows = np.diff(edges * smaller + np.minimum(edges, num_larger))
    return int(rows.max()), int((rows > 0).sum())


def _refreshes(config: RunConfig, steps: int) -> tuple[Literal["none", "prototypes", "mining"], float]:
    if config.mining.source == "dataset":
        every = config.mining.refresh_steps
        if every == "auto":
            every = 0 if config.mining.neighbours == "memory" else steps
        # Without further passes, the first pass's share of an epoch.
        return "mining", steps / every if every else 1 / max(config.training.epochs, 1)
    traits = config.method.traits
    if traits.prototypes and traits.prepares_from_all_images:
        return "prototypes", 1.0
    return "none", 0.0
