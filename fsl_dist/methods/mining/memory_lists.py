"""Rows of the embedding memory sorted into clusters, for data sets too large to compare every row at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.distributed import WorkerGroup
from fsl_dist.losses.distances import smallest
from fsl_dist.seeding import generator
from index import kinds, runtime
from index.config import IndexConfig

if TYPE_CHECKING:
    from fsl_dist.methods.mining.embedding_memory import Anchors

LARGE_CLASS = 4096
"""rows of a class up to which all are compared: one after another they are read faster than found"""
# Rows that a query looks at for each one it wants.
_ROWS_FOR_EACH = 4
_ANY_DISTANCE = float(np.finfo(np.float32).max)
faiss: Any = runtime.faiss


class MemoryLists:
    """This worker's rows in the clusters of an index of kind ivf_flat; the clusters are the same on all workers.

    A row that is overwritten moves to the cluster of its new embedding at once (`IndexIVF.update_vectors`).

    Args:
        config: `index.*`; with nprobe 0 a query looks into as many clusters as hold four times the rows it wants.
        group: the workers that share the rows.
        num_rows: rows on all workers together.
    """

    def __init__(self, config: IndexConfig, group: WorkerGroup, num_rows: int) -> None:
        self.config = config
        self.group = group
        self.num_rows = num_rows
        self.start = 0
        self._ivf: Any = None
        self._is_in_step = np.zeros(0, dtype=np.bool_)  # of this worker's rows, while a step is searched

    def build(self, vectors: NDArray[np.float32], start: int, seed: int) -> None:
        """Cluster a sample of all workers' rows, and sort this worker's (float32 [n, D], from row `start` on) into it. Collective."""
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
            index.cp.min_points_per_centroid = 1  # a small sample is no error, and FAISS would print about it
            index.train(sample.numpy())
            trained = faiss.serialize_index(index).tobytes()
        self._ivf = faiss.deserialize_index(
            np.frombuffer(bytes.fromhex(self.group.share_text(trained.hex())), dtype=np.uint8)
        )
        self._ivf.set_direct_map_type(faiss.DirectMap.Array)
        self._ivf.add(vectors)

    def update(self, rows: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Overwrite rows of this worker (int64 [n], counted from its first) with vectors (float32 [n, D])."""
        self._ivf.update_vectors(rows, vectors)

    def search(
        self, anchors: Anchors, num: int, device: torch.device, *, same: bool
    ) -> tuple[Tensor, Tensor]:
        """Nearest rows of the anchors' classes, or of all others, that this worker has: (distances² float32 [B, num], rows int64).

        Infinite and −1 where the clusters that were looked into have fewer. Anchors' own rows are left out.
        """
        queries = anchors.embeddings.float().cpu().numpy()
        width = num + len(anchors.rows)  # as many may be rows of the step
        distances = np.full((len(queries), width), np.inf, dtype=np.float32)
        rows = np.full((len(queries), width), -1, dtype=np.int64)
        num_probed = self._num_probed(max(_ROWS_FOR_EACH * num, LARGE_CLASS if same else 0))
        for positions, low, high in anchors.classes():
            of_class = faiss.IDSelectorRange(low - self.start, high - self.start)
            selector = of_class if same else faiss.IDSelectorNot(of_class)
            settings = faiss.SearchParametersIVF(nprobe=num_probed, sel=selector)
            places = positions.cpu().numpy()
            # All rows of the clusters, then the nearest: FAISS's heap of 1,000 takes twice as long.
            lims, near, found = self._ivf.range_search(queries[places], _ANY_DISTANCE, params=settings)
            for position, first, last in zip(places, lims[:-1], lims[1:], strict=True):
                kept = slice(None) if last - first <= width else near[first:last].argpartition(width)[:width]
                num_kept = min(last - first, width)
                distances[position, :num_kept] = near[first:last][kept]
                rows[position, :num_kept] = found[first:last][kept] + self.start
        own = anchors.rows.cpu().numpy() - self.start
        self._is_in_step[own[(own >= 0) & (own < len(self._is_in_step))]] = True
        is_left_out = (rows < 0) | self._is_in_step[np.maximum(rows - self.start, 0)]
        self._is_in_step[:] = False
        distances[is_left_out], rows[is_left_out] = np.inf, -1
        best, columns = smallest(torch.from_numpy(distances), num)
        return best.to(device), torch.from_numpy(rows).gather(1, columns).to(device)

    def _num_probed(self, num_rows: int) -> int:
        """Clusters that have as many rows together, on average; or `index.nprobe`."""
        if self.config.nprobe:
            return self.config.nprobe
        return min(self._ivf.nlist, -(-num_rows * self._ivf.nlist // self.num_rows) + 1)
