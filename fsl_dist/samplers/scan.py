"""Full scans: every sample once, in batches that do not depend on the number of workers.

The number of workers changes which rank embeds a batch, but not its content, so an embedding job that is resumed with
more or fewer workers writes the same numbers.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def scan_batches(start: int, stop: int, batch_size: int) -> Iterator[NDArray[np.int64]]:
    """Yield all ids in order, in batches of `batch_size` from `start`.

    Args:
        start: first id.
        stop: one past the last id.
        batch_size: maximum number of ids per batch.

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
    """Return the range of samples that one worker scans.

    Ranges are contiguous, disjoint and complete. They begin at multiples of batch_size only, so
    `scan_batches(start, stop, batch_size)` over all ranks yields exactly the batches of a single rank.

    Args:
        num_samples: samples of the scan.
        batch_size: of the scan's batches.
        rank: of the worker, from 0.
        world_size: number of workers.

    Returns:
        (start, stop) in 0 … num_samples; equal for a rank without batches.
    """
    boundaries = split_evenly(-(-num_samples // batch_size), world_size)
    start = min(int(boundaries[rank]) * batch_size, num_samples)
    stop = min(int(boundaries[rank + 1]) * batch_size, num_samples)
    return start, stop
