"""Fine-tuning in bare PyTorch, alike for all peers: AdamW, warm-up, cosine, clipped gradients."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.practice.backbone import FIRST_TRAINED, Embedder, Views, embed, load_blocks
from benchmarks.practice.parts import Part, Prepared
from benchmarks.practice.spent import Spent, stopwatch

_HEAD_FACTOR = 10
"""a classifier and proxies start at random and learn faster"""
_WEIGHT_DECAY = 0.05
_WARM_UP = 0.1
_CLIP = 5.0

Sampler = Callable[[NDArray[np.int64], np.random.Generator], Iterator[NDArray[np.int64]]]


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned network."""

    network: nn.Module
    objective: nn.Module
    views: Views
    spent: Spent
    """of training; without cached activations and scoring"""
    images: int
    """images seen"""

    def embed(self, part: Part) -> NDArray[np.float32]:
        """float32 [n, 1280]: embeddings of a part without augmentation."""
        return embed(self.network, self.views, part.rows)


def fine_tune(
    prepared: Prepared,
    make_objective: Callable[[], nn.Module],
    sampler: Sampler,
    *,
    is_whole: bool,
    rate: float,
    seed: int,
) -> Tuned:
    """Fine-tune the whole network on pixels, or its last blocks on cached activations, for the set's number of images.

    Args:
        prepared: the data set.
        make_objective: makes the module (embeddings, labels) → loss.
        sampler: (labels, generator) → batches of positions.
        is_whole: whether all blocks learn.
        rate: learning rate of the blocks at its highest; classifier and proxies have ten times as much.
        seed: of the classifier, the batches and the augmentation.
    """
    views: Views = prepared.pixel_views if is_whole else prepared.activation_views
    torch.manual_seed(seed)
    blocks = load_blocks(prepared.weights)
    network = Embedder(blocks if is_whole else blocks[FIRST_TRAINED:])
    objective = make_objective()
    draw = np.random.default_rng([seed, 1])
    batches = sampler(prepared.train.labels, draw)
    first = next(batches)
    steps = max(1, prepared.set.images // len(first))
    groups = [
        {"params": list(network.parameters()), "lr": rate},
        {"params": list(objective.parameters()), "lr": rate * _HEAD_FACTOR},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=_WEIGHT_DECAY)
    warm = max(1, int(steps * _WARM_UP))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step, warm, steps))
    network.train()
    read_clock = stopwatch()
    for step in range(steps):
        chosen = first if step == 0 else next(batches)
        images = views.draw(prepared.train.rows[chosen], draw)
        loss = objective(network(images), torch.from_numpy(prepared.train.labels[chosen]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), _CLIP)
        optimizer.step()
        schedule.step()
    return Tuned(network, objective, views, read_clock(), steps * len(first))


def _share_of_rate(step: int, warm: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 0."""
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))
