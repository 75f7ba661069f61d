"""Full scans: every sample once, in batches whose content never depends on the number of workers.

Worker counts change which rank embeds a batch, not what is in it, so an embedding job that is resumed by more or
fewer workers writes the same numbers.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def scan_batches(start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """All ids in order, in batches cut every `batch_size` from `start`.

    Args:
        start: first id.
        stop: one beyond the last id.
        batch_size: ids of a batch at most.

    Yields:
        int64 [≤ batch_size].
    """
    for first in range(start, stop, batch_size):
        yield np.arange(first, min(first + batch_size, stop), dtype=np.int64)


def split_evenly(num: int, world_size: int) -> NDArray[np.int64]:
    """Boundaries that divide `num` things over `world_size` ranks: int64 [world_size + 1], from 0 to num.

    Rank r owns boundaries[r] … boundaries[r + 1] - 1; shares differ by one at most.
    """
    return np.arange(world_size + 1, dtype=np.int64) * num // world_size


def share_of_rank(num_samples: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The samples that one worker scans.

    Shares are contiguous, disjoint and complete. They are cut at multiples of batch_size only, so `scan_batches(start, stop,
    batch_size)` over all ranks gives the very batches one rank alone would have.

    Args:
        num_samples: samples of the scan.
        batch_size: of the scan's batches.
        rank: of the worker, from 0.
        world_size: workers.

    Returns:
        (start, stop) in 0 … num_samples; equal for a rank for which no batch is left.
    """
    boundaries = split_evenly(-(-num_samples // batch_size), world_size)
    start = min(int(boundaries[rank]) * batch_size, num_samples)
    stop = min(int(boundaries[rank + 1]) * batch_size, num_samples)
    return start, stop
