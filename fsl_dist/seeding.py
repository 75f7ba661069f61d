"""Randomness as a pure function of (seed, purpose, counters), without any state to save or restore.

There are two forms:

- `generator` seeds a NumPy generator, for draws that happen once per step (which classes, which images);
- `uniforms` hashes sample ids to numbers in [0, 1), for draws that belong to a sample (where to crop it),
  so that an image looks the same for any worker, batch or order.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a generator for one purpose ("episode", "kmeans" …) at the given counters (epoch, step …).

    The purpose separates streams that share counters. Deterministic on every platform.
    """
    # NumPy treats (…, 0) like (…): the number of counters distinguishes them.
    key = (seed, zlib.crc32(purpose.encode()), len(counters), *counters)
    return np.random.default_rng(np.random.SeedSequence(key))


def _splitmix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One round of the SplitMix64 finaliser (Steele, Lea & Flood 2014), element-wise."""
    mixed = (state ^ (state >> np.uint64(30))) * _MIX_1
    mixed = (mixed ^ (mixed >> np.uint64(27))) * _MIX_2
    return mixed ^ (mixed >> np.uint64(31))


def uniforms(seed: int, purpose: str, epoch: int, ids: NDArray[np.int64], num: int) -> NDArray[np.float64]:
    """Return `num` numbers in [0, 1) for each sample id: float64 [len(ids), num].

    A row depends only on (seed, purpose, epoch, id), never on the other ids in the call.
    """
    start = generator(seed, purpose, epoch).integers(0, 2**63, dtype=np.uint64)
    with np.errstate(over="ignore"):
        per_sample = _splitmix(
            (np.asarray(ids, dtype=np.int64).astype(np.uint64) + np.uint64(1)) * _GOLDEN + start
        )
        columns = (np.arange(num, dtype=np.uint64) + np.uint64(1)) * _GOLDEN
        hashed = _splitmix(per_sample[:, None] + columns[None, :])
    return (hashed >> np.uint64(11)).astype(np.float64) * 2.0**-53
