"""Plain batches: every image once per epoch in random order, or classes drawn uniformly."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.samplers.scan import split_evenly
from fsl_dist.seeding import generator


def shuffled_steps(selection: Selection, batch_size: int) -> int:
    """Steps per epoch: ⌈images / batch_size⌉.

    Args:
        selection: the samples of an epoch.
        batch_size: maximum number of images per batch.

    Returns:
        1 or more.
    """
    return -(-len(selection) // batch_size)


# An epoch's order is needed at each of its steps; two users (training, validation) may be at different epochs.
@lru_cache(maxsize=4)
def shuffled_order(num: int, purpose: str, seed: int, epoch: int) -> NDArray[np.int64]:
    """Permutation of 0 … num - 1 for one epoch: int64 [num], read-only.

    Deterministic in the arguments; cached, so that a step costs only a slice of it.
    """
    order = generator(seed, purpose, epoch).permutation(num)
    order.flags.writeable = False
    return order


def shuffled_batch(
    selection: Selection, *, batch_size: int, seed: int, epoch: int, step: int
) -> NDArray[np.int64]:
    """Sample ids of one batch; the steps of an epoch contain every image exactly once.

    If batch_size does not divide the number of images, all batches are a little smaller, instead of a very small last
    one: batch norm does not work on one image. Deterministic in (seed, epoch, step).

    Args:
        selection: the samples to draw from.
        batch_size: maximum number of images per batch.
        seed: of the run.
        epoch: from 0.
        step: in the epoch, from 0.

    Returns:
        int64 [≤ batch_size].
    """
    order = shuffled_order(len(selection), "shuffled", seed, epoch)
    edges = split_evenly(len(order), shuffled_steps(selection, batch_size))
    return selection.ids[order[edges[step] : edges[step + 1]]]


def class_balanced_batch(
    selection: Selection, *, batch_size: int, seed: int, epoch: int, step: int
) -> NDArray[np.int64]:
    """Sample ids of one batch; for each, first a class is drawn, then an image of the class.

    Every class has the same probability, regardless of its size, and images repeat. An epoch is as long as a shuffled
    one. Deterministic in (seed, epoch, step).

    Args:
        selection: the samples to draw from.
        batch_size: images per batch.
        seed: of the run.
        epoch: from 0.
        step: in the epoch, from 0.

    Returns:
        int64 [batch_size].
    """
    rng = generator(seed, "class_balanced", epoch, step)
    classes = rng.integers(selection.num_classes, size=batch_size)
    return selection.ids[selection.starts[classes] + rng.integers(selection.counts[classes])]
