"""Stratified batches: a few classes in as equal numbers as their sizes allow (deep kNN, batch mining)."""

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.seeding import generator


def stratified_steps(selection: Selection, batch_size: int) -> int:
    """Steps per epoch: ⌈images / batch_size⌉.

    Args:
        selection: the samples of an epoch.
        batch_size: maximum number of images per batch.

    Returns:
        1 or more.
    """
    return -(-len(selection) // batch_size)


def stratified_batch(
    selection: Selection, *, batch_size: int, num_classes: int = 9, seed: int, epoch: int, step: int
) -> NDArray[np.int64]:
    """Sample ids of one batch of a few classes with equal shares, as far as their sizes allow; no image occurs twice.

    min(num_classes, classes) classes are drawn uniformly and share the batch as evenly as possible. A class smaller
    than its share contributes all of its images, and the others more; the batch is smaller only if the drawn classes
    have fewer images in total. The classes are interleaved, so that any part of the batch (a worker's part, a
    batch-norm group) has about the batch's proportions. Deterministic in (seed, epoch, step).

    Args:
        selection: the samples to draw from.
        batch_size: maximum number of images per batch.
        num_classes: maximum number of classes per batch.
        seed: of the run.
        epoch: from 0.
        step: in the epoch, from 0.

    Returns:
        int64 [≤ batch_size].
    """
    rng = generator(seed, "stratified", epoch, step)
    chosen = rng.choice(
        selection.num_classes, min(num_classes, selection.num_classes, batch_size), replace=False
    )
    quotas = share_evenly(selection.counts[chosen], batch_size)
    ids = np.empty(int(quotas.sum()), dtype=np.int64)
    places = np.empty(len(ids), dtype=np.float64)
    filled = 0
    for position, quota in zip(chosen, quotas, strict=True):
        part = slice(filled, filled + int(quota))
        ids[part] = rng.choice(selection.of_class(int(position)), int(quota), replace=False)
        # Image i of a class is at the fraction (i + ½) / quota of the batch.
        places[part] = (np.arange(quota) + 0.5) / quota
        filled = part.stop
    return ids[np.argsort(places, kind="stable")]


def share_evenly(limits: NDArray[np.int64], total: int) -> NDArray[np.int64]:
    """Divide `total` into int64 [len(limits)] parts, each at most its limit, the largest as small as possible.

    The remainder of the division is distributed, one each, to the first parts below their limit. The sum of the parts
    is min(total, limits.sum()).
    """
    parts = np.zeros(len(limits), dtype=np.int64)
    total = min(total, int(limits.sum()))
    left = total
    while left > 0:
        room = np.flatnonzero(parts < limits)
        share = left // len(room)
        if share == 0:
            parts[room[:left]] += 1
            break
        parts[room] = np.minimum(parts[room] + share, limits[room])
        left = total - int(parts.sum())
    return parts
