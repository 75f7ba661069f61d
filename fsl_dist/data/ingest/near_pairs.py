"""Pairs of near-duplicates among many images: every two hashes are compared."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.fingerprints import Fingerprints, fingerprint
from fsl_dist.data.pixels import Encoded, open_upright
from fsl_dist.data.store import ShardStore
from index.base.pieces import Progress
from index.runtime import faiss

# A read of this many samples needs about 10 MB for photographs.
_READ_BATCH = 128
# Number of hashes per search: if all of n images are near each other, 12 × 256 × n bytes of hits.
_QUERIES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Bounds:
    """Required similarity of near-duplicates; both bounds must be met."""

    distance: int
    """most of the 64 bits of their hashes that may differ"""
    correlation: float
    """smallest correlation of their thumbnails, each channel about its own mean"""


# How they were chosen: docs/reference/data_format.md, "Near-duplicates".
NEAR = Bounds(distance=6, correlation=0.99)
"""what counts as near without further evidence"""
NEAR_BY_NAME = Bounds(distance=10, correlation=0.95)
"""and what counts under the same file name"""


@dataclass(frozen=True, slots=True)
class NearPairs:
    """Pairs of near-duplicates."""

    rows: NDArray[np.int64]
    """int64 [n]"""
    others: NDArray[np.int64]
    """int64 [n]: an earlier row, near the one in `rows`"""
    distances: NDArray[np.int64]
    """int64 [n]: bits in which the hashes differ"""
    are_copies: bool = False
    """the files have the same content"""


def find_near(
    prints: Fingerprints, bounds: Bounds, groups: Sequence[NDArray[np.int64]] | None = None
) -> Iterator[NearPairs]:
    """Yield every pair within `bounds`, in blocks; with `groups` (int64,
    ascending rows each) only pairs inside a group.

    Among images with identical files only the first is compared with others; each copy is paired with the first only.
    Plain-coloured images have no near-duplicates except copies. A group's blocks follow the order of `rows`; all
    pairs of a row are in one block, the copies at the end.
    """
    for group in [np.arange(len(prints))] if groups is None else groups:
        first = prints.first_copies(group)
        is_copy = first != group
        chosen = group[~is_copy & ~prints.is_flat[group]]
        for pairs in _compare_hashes(prints.hashes[chosen], bounds.distance):
            rows, others = chosen[pairs.rows], chosen[pairs.others]
            is_near = prints.correlate(rows, others) >= bounds.correlation
            yield NearPairs(rows[is_near], others[is_near], pairs.distances[is_near])
        distances = np.zeros(np.count_nonzero(is_copy), dtype=np.int64)
        yield NearPairs(group[is_copy], first[is_copy], distances, are_copies=True)


def _compare_hashes(hashes: NDArray[np.uint8], distance: int) -> Iterator[NearPairs]:
    """Every two of `hashes` (uint8 [n, 8]) at most `distance` bits apart."""
    index = faiss.IndexBinaryFlat(8 * hashes.shape[1])
    for start in range(0, len(hashes), _QUERIES_AT_ONCE):
        queries = hashes[start : start + _QUERIES_AT_ONCE]
        index.add(queries)
        starts, distances, others = index.range_search(
            queries, distance + 1
        )  # FAISS excludes the radius itself
        ends = starts.astype(np.int64)
        rows = start + np.repeat(np.arange(len(queries)), ends[1:] - ends[:-1])
        order = np.flatnonzero(others < rows)
        order = order[np.lexsort((others[order], rows[order]))]
        yield NearPairs(rows[order], others[order], distances[order].astype(np.int64))


def read_fingerprints(
    catalogue: Catalogue, ids: NDArray[np.int64], progress: Progress | None = None
) -> tuple[NDArray[np.int64], list[bytes], list[tuple[int, int]]]:
    """(those of `ids` that can be read and decoded, int64 [m], ascending; the input of `Fingerprints` for each).

    Decodes each of `ids` (int64 [n], distinct) once, with one thread per core, at most 8. Raises DataError if a shard
    is missing or truncated.
    """
    threads = min(8, os.cpu_count() or 1)
    where = catalogue.locate(ids)
    ids = ids[np.lexsort((where.offset, where.shard))]
    found: dict[int, bytes] = {}
    store = ShardStore(catalogue, threads=threads)
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="fsl-dist-fingerprint") as pool:
            for start in range(0, len(ids), _READ_BATCH):
                batch = ids[start : start + _READ_BATCH]
                samples, mismatched = store.read_compared(batch)
                for position, encoded in enumerate(pool.map(_fingerprint_encoded, samples)):
                    if encoded is not None and position not in mismatched:
                        found[int(batch[position])] = encoded
                if progress is not None:
                    progress("comparing", start + len(batch), len(ids))
    finally:
        store.close()
    good = np.array(sorted(found), dtype=np.int64)
    where = catalogue.locate(good)
    contents = zip(where.crc32.tolist(), where.size.tolist(), strict=True)
    return good, [found[sample_id] for sample_id in good.tolist()], list(contents)


def _fingerprint_encoded(encoded: Encoded) -> bytes | None:
    try:
        image = open_upright(encoded)
    except Exception:  # PIL raises a dozen types for damaged images
        return None
    return fingerprint(image)
