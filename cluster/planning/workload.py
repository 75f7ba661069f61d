"""What a configuration asks of its training processes, counted without a data set: steps, images, refreshes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsl_dist.config import RunConfig
from fsl_dist.methods.method import EpochPlan

SELECTION_BYTES = 34
"""memory an image while a process selects its training images, class by class: ids, labels, and what finds the classes"""


@dataclass(frozen=True, slots=True)
class Workload:
    """One epoch's work, dealt to `processes` training processes."""

    processes: int
    steps: int
    """optimizer steps"""
    step_images: int
    """images of a step, over all processes; the most there can be where images may be in it twice"""
    share: int
    """images of a step that the busiest process forwards"""
    busy: int
    """processes that have any image of a step"""
    loads: int
    """times an image is read and decoded in a step: 2 where the gradient is cached in chunks"""
    is_global: bool
    """embeddings of a step are gathered on every process"""
    refresh: Literal["none", "prototypes", "mining"]
    """what is done again between steps, on all training images"""
    refreshes: float
    """times an epoch"""


def count_workload(config: RunConfig, num_images: int, processes: int) -> Workload:
    """The work of one epoch over `num_images` training images."""
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
        # Each batch, or part of one, is forwarded on its own; it is cached where it is larger than a chunk.
        loads=2 if 0 < chunk < (share // units if is_global else size) else 1,
        is_global=is_global,
        refresh=refresh,
        refreshes=refreshes,
    )


def _cut(config: RunConfig, size: int, processes: int) -> tuple[int, int]:
    """The largest part of a batch of `size` images, and how many processes get one: ghost batch norm cuts between groups.

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
        # Without further ones, the first pass's share of an epoch.
        return "mining", steps / every if every else 1 / max(config.training.epochs, 1)
    traits = config.method.traits
    if traits.prototypes and traits.prepares_from_all_images:
        return "prototypes", 1.0
    return "none", 0.0
