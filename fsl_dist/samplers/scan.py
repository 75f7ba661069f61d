"""Full scans: every sample once, in batches whose content never depends on the number of workers.

Worker counts change which rank embeds a batch, not what is in it, so an embedding job that is resumed by more or
fewer workers writes the same numbers.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def scan_batches(start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Ids start … stop - 1 in order, as int64 [≤ batch_size] arrays cut every `batch_size` from `start`."""
    for first in range(start, stop, batch_size):
        yield np.arange(first, min(first + batch_size, stop), dtype=np.int64)


def split_evenly(num: int, world_size: int) -> NDArray[np.int64]:
    """Boundaries that divide `num` things over `world_size` ranks: int64 [world_size + 1], from 0 to num.

    Rank r owns boundaries[r] … boundaries[r + 1] - 1; shares differ by one at most.
    """
    return np.arange(world_size + 1, dtype=np.int64) * num // world_size


def share_of_rank(num_samples: int, batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The (start, stop) of the samples 0 … num_samples - 1 that `rank` scans.

    Shares are contiguous, disjoint and complete. They are cut at multiples of batch_size only, so
    `scan_batches(start, stop, batch_size)` over all ranks gives the very batches one rank alone would have.
    A rank for which no batch is left has start == stop.
    """
    boundaries = split_evenly(-(-num_samples // batch_size), world_size)
    start = min(int(boundaries[rank]) * batch_size, num_samples)
    stop = min(int(boundaries[rank + 1]) * batch_size, num_samples)
    return start, stop
