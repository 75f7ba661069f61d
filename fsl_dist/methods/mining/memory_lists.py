"""Rows of the embedding memory sorted into clusters, for data sets too large to compare every row at every step."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.distributed import WorkerGroup
from fsl_dist.seeding import generator
from index import kinds, runtime
from index.config import IndexConfig

if TYPE_CHECKING:
    from fsl_dist.methods.mining.embedding_memory import Anchors

LARGE_CLASS = 4096
"""class size up to which all rows are compared: a contiguous scan is faster than a search"""
# Rows that a query visits per requested row, and how often it asks for four times as many if there were too few.
_ROWS_FOR_EACH, _MOST_TRIES = 3, 3
# Number of rows of all classes among which the rows of its own class are searched first.
_ROWS_OF_ALL_CLASSES = 1024
_ANY_DISTANCE = float(np.finfo(np.float32).max)
faiss: Any = runtime.faiss


class MemoryLists:
    """This worker's rows in the clusters of an ivf_flat index; the clusters are the same on all workers.

    A row that is overwritten moves to the cluster of its new embedding at once (`IndexIVF.update_vectors`).

    Args:
        config: `index.*`; with nprobe 0 a query visits the nearest clusters until they contain three times the
            requested rows.
        group: the workers that share the rows.
        num_rows: total number of rows on all workers.
    """

    def __init__(self, config: IndexConfig, group: WorkerGroup, num_rows: int) -> None:
        self.config = config
        self.group = group
        self.num_rows = num_rows
        self.start = 0
        self._ivf: Any = None
        self._sizes = np.zeros(0, dtype=np.int64)  # rows of each cluster on all workers, when it was built
        self._is_in_step = np.zeros(0, dtype=np.bool_)  # of this worker's rows, during the search of a step

    def build(self, vectors: NDArray[np.float32], start: int, seed: int) -> None:
        """Cluster a sample of all workers' rows, and sort this worker's (float32 [n, D],
        from row `start` on) into it. Collective."""
        self.start = start
        self._is_in_step = np.zeros(len(vectors) + 1, dtype=np.bool_)  # a worker may have no row
        size = kinds.sample_size(self.config, vectors.shape[1], self.num_rows)
        chosen = generator(seed, "memory_lists").choice(
            self.num_rows, min(size, self.num_rows), replace=False
        )
        sample = torch.zeros(len(chosen), vectors.shape[1])
        is_own = (chosen >= start) & (chosen < start + len(vectors))
        sample[torch.from_numpy(is_own)] = torch.from_numpy(vectors[chosen[is_own] - start])
        self.group.sum_(sample)
        trained = b""
        if self.group.is_first:
            index = faiss.index_factory(
                vectors.shape[1], kinds.factory_of(self.config, vectors.shape[1], self.num_rows)
            )
            index.cp.min_points_per_centroid = 1  # a small sample is fine, but FAISS would print a warning
            index.train(sample.numpy())
            trained = faiss.serialize_index(index).tobytes()
        self._ivf = faiss.deserialize_index(
            np.frombuffer(bytes.fromhex(self.group.share_text(trained.hex())), dtype=np.uint8)
        )
        self._ivf.set_direct_map_type(faiss.DirectMap.Array)
        self._ivf.add(vectors)
        of_worker = [self._ivf.invlists.list_size(cluster) for cluster in range(self._ivf.nlist)]
        self._sizes = self.group.sum_(torch.tensor(of_worker)).numpy()

    def update(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Overwrite rows of this worker (int64 [n], counted from its first) with vectors (float32 [n, D])."""
        self._ivf.update_vectors(rows, vectors)

    def search(
        self, anchors: Anchors, num: int, device: torch.device, *, same: bool
    ) -> tuple[Tensor, Tensor]:
        """Find this worker's nearest rows of the anchors' classes, or of all others. Collective.

        Unless `nprobe` is set, anchors with fewer than `num` rows on all workers together search again, at most
        twice, for four times as many rows.

        Returns:
            Squared distances float32 [B, num] and int64 rows, in any order, infinite and −1 if there are fewer.
            Anchors' own rows are excluded.
        """
        queries = anchors.embeddings.float().cpu().numpy()
        ranges, own = anchors.ranges.cpu().numpy(), anchors.rows.cpu().numpy() - self.start
        self._is_in_step[own[(own >= 0) & (own < len(self._is_in_step))]] = True
        distances = np.full((len(queries), num), np.inf, dtype=np.float32)
        rows = np.full((len(queries), num), -1, dtype=np.int64)
        asked, wanted = (
            np.arange(len(queries)),
            max(_ROWS_FOR_EACH * num, _ROWS_OF_ALL_CLASSES if same else 0),
        )
        for _ in range(_MOST_TRIES):
            lims, near, found = self._rows_of_clusters(queries[asked], wanted)
            found_rows = found + self.start
            low, high = ranges[asked].repeat(np.diff(lims), axis=0).T
            is_left_out = (((found_rows >= low) & (found_rows < high)) != same) | self._is_in_step[found]
            near[is_left_out] = np.inf
            counts = torch.from_numpy(np.diff(lims) - np.diff(np.append(0, is_left_out.cumsum())[lims]))
            for place, (first, last) in zip(asked, itertools.pairwise(lims), strict=True):
                costs, best = near[first:last], np.arange(first, last)
                if num < last - first:
                    best = costs.argpartition(num)[:num] + first
                distances[place, : len(best)] = near[best]
                rows[place, : len(best)] = found_rows[best]
            is_short = (self.group.sum_(counts) < num).numpy()
            if self.config.nprobe or wanted >= self.num_rows or not is_short.any():
                break
            asked, wanted = asked[is_short], 4 * wanted
        rows[distances == np.inf] = -1
        self._is_in_step[:] = False
        return torch.from_numpy(distances).to(device), torch.from_numpy(rows).to(device)

    def _rows_of_clusters(
        self, queries: NDArray[np.float32], wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """This worker's rows in the clusters that each query visits: start of each query's rows, int64 [n + 1],
        squared distances, rows."""
        num_probed = self.config.nprobe or min(
            2 * -(-wanted * self._ivf.nlist // self.num_rows) + 1, self._ivf.nlist
        )
        to_centres, clusters = self._ivf.quantizer.search(queries, num_probed)
        if not self.config.nprobe:
            sizes = self._sizes[clusters]
            # The cluster that reaches the required number is the last one.
            clusters[sizes.cumsum(axis=1) - sizes >= wanted] = -1
        self._ivf.nprobe = num_probed
        # Collect all rows of the clusters, then select the nearest: FAISS's heap of 1,000 takes twice as long.
        lims, near, found = self._ivf.range_search_preassigned(queries, _ANY_DISTANCE, clusters, to_centres)
        return lims.astype(np.int64), near, found
