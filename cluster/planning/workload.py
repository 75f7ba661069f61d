"""What a configuration asks of its training processes, counted without a data set: steps, images, refreshes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fsl_dist.config import RunConfig
from fsl_dist.errors import RequestError
from fsl_dist.methods.config import (
    BatchHardConfig,
    CHAIConfig,
    CrossEntropyConfig,
    DeepKNNConfig,
    FewShotNCAConfig,
    PCNConfig,
    ScatterConfig,
)

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
    """The work of one epoch over `num_images` training images. RequestError for a method that only its own code can count."""
    steps, units, size, is_global = _steps(config, num_images, processes)
    if is_global:
        whole = units * size
        share, busy = _cut(config, size, processes)
        share *= units
    else:
        whole = units * size
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


def _steps(config: RunConfig, num_images: int, processes: int) -> tuple[int, int, int, bool]:
    """Steps of an epoch, batches of a step, images of a batch, and whether a batch is split over all processes."""
    batch = config.training.batch_size
    match config.method:
        case PCNConfig() | ScatterConfig():
            episode = config.episode
            per_step = min(episode.per_step or processes, episode.per_epoch)
            steps = -(-episode.per_epoch // per_step)
            return steps, per_step, episode.n_way * episode.images_per_class, episode.scope == "global"
        case DeepKNNConfig() as method if config.mining.source == "dataset":
            images = 1 + method.k_same + method.m_other
            anchors = max(1, batch // images)
            return -(-num_images // anchors), 1, anchors * images, True
        case CHAIConfig() as method:
            return -(-method.triplets // batch), 1, min(3 * batch, 3 * method.triplets), True
        case DeepKNNConfig() | BatchHardConfig() | FewShotNCAConfig() | CrossEntropyConfig():
            return -(-num_images // batch), 1, min(batch, num_images), True
    raise RequestError(
        f"method.kind={config.method.kind} comes from another distribution, and plan does not know its batches "
        "(plan a method that takes as many images a step, such as method.kind=batch_hard)"
    )


def _cut(config: RunConfig, size: int, processes: int) -> tuple[int, int]:
    """The largest part of a batch of `size` images, and how many processes get one: ghost batch norm cuts between groups.

    The same division as `training.step.deal_pieces`, whose module needs torch.
    """
    mode = config.backbone.batch_norm
    group = config.backbone.batch_norm_group if mode in ("auto", "ghost") else 1
    units = max(1, min(-(-size // group), size // 2)) if group > 1 else size
    smaller, num_larger = divmod(size, units)
    edges = np.arange(processes + 1) * units // processes
    rows = np.diff(edges * smaller + np.minimum(edges, num_larger))
    return int(rows.max()), int((rows > 0).sum())


def _refreshes(config: RunConfig, steps: int) -> tuple[Literal["none", "prototypes", "mining"], float]:
    if config.mining.source == "dataset":
        return "mining", steps / (config.mining.refresh_steps or steps)
    if isinstance(config.method, PCNConfig) and (config.method.clusters > 1 or config.method.memory > 0):
        return "prototypes", 1.0
    return "none", 0.0
