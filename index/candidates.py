"""Candidates from a shard's FAISS index: clusters, codes, graphs, and any other kind that FAISS can make.

A filter is passed to FAISS as a selector over ranges of rows if the index supports one. The results are checked: a row
outside the filter is dropped, so an index that ignores selectors returns too few rows, never wrong ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from index import gpu as gpus
from index import kinds, runtime
from index.flat import heap_over

Ranges = Sequence[tuple[int, int]]

_QUERIES_FOR_BLAS = 4
# If this many queries probe a cluster on average, one matrix product for all of them is faster than FAISS's scan per
# query (200,000 x 256, a quarter of the clusters: four times, benchmarks/explain_ivf.py).
_QUERIES_A_CLUSTER = 16
# FAISS's type hints know neither search parameters nor selectors nor graphs.
faiss: Any = runtime.faiss


class Candidates:
    """A FAISS index whose ids are rows of the shard, on the GPU of that number if one is named."""

    def __init__(self, index: "runtime.faiss.Index", gpu: int | None = None) -> None:
        ivf: Any = kinds.ivf_of(index)
        graph: Any = kinds.graph_of(index)
        self._num_rows = index.ntotal
        self._nlist = 0 if ivf is None else int(ivf.nlist)
        self._links = 0 if graph is None else int(graph.hnsw.nb_neighbors(0))
        self._gpu = gpu
        # On a GPU only the copy there is kept: `ivf` and `graph` would point into a deleted index.
        self._index = index if gpu is None else gpus.upload_index(index, gpu)
        self._ivf: Any = ivf if gpu is None else None
        # The list of a cluster contains its plain vectors, so that matrix products can use it.
        self._is_plain = self._ivf is not None and type(faiss.downcast_index(ivf)) is faiss.IndexIVFFlat
        # The GPU's index ignores selectors: it answers unfiltered searches, filters are left to the flat rows.
        self._takes_filter = gpu is None
        # FAISS's search parameters of the last unfiltered search: making them takes 5 µs.
        self._last_settings: tuple[Mapping[str, int], Any] = ({}, None)

    @property
    def num_clusters(self) -> int:
        """Clusters that nprobe chooses from, 0 for an index without."""
        return self._nlist

    def visits(self, parameters: Mapping[str, int]) -> int:
        """Approximate number of vectors that a query is compared with;
        below it, a filtered search is cheaper without the index."""
        if self._nlist:
            return -(-self._num_rows * min(parameters["nprobe"], self._nlist) // self._nlist)
        return parameters["ef_search"] * self._links if self._links else 0

    def propose(
        self, queries: np.ndarray, width: int, allowed: Ranges | np.ndarray, parameters: Mapping[str, int]
    ) -> np.ndarray:
        """Rows that are probably among the nearest: int64 [n, width], best first as the index sees it, −1 for none.

        allowed: ascending ranges [start, stop) of rows, or rows int64 [m].
        """
        selector, keeps = _select(allowed, self._num_rows)
        if self._is_plain:
            nprobe = min(parameters["nprobe"], self._nlist)
            if len(queries) * nprobe >= _QUERIES_A_CLUSTER * self._nlist:
                return self._by_cluster(queries, width, keeps, nprobe)
        if selector is not None and not self._takes_filter:
            return np.full((len(queries), width), -1, dtype=np.int64)
        if self._gpu is not None:
            return self._on_gpu(queries, width, parameters)
        try:
            with runtime.matrix_product_from(_QUERIES_FOR_BLAS, len(queries)):
                settings = (
                    self._unfiltered(parameters)
                    if selector is None
                    else _settings(self._index, parameters, selector)
                )
                _, rows = self._index.search(queries, width, params=settings)
        except RuntimeError:
            if selector is None:
                raise
            self._takes_filter = False  # this kind refuses selectors; so it will the next time
            return np.full((len(queries), width), -1, dtype=np.int64)
        if selector is not None:
            rows[~keeps(rows)] = -1
        return rows

    def _unfiltered(self, parameters: Mapping[str, int]) -> Any:
        """FAISS's search parameters without a selector."""
        known, settings = self._last_settings
        if known != parameters:
            settings = _settings(self._index, parameters, None)
            self._last_settings = (dict(parameters), settings)
        return settings

    def _on_gpu(self, queries: np.ndarray, width: int, parameters: Mapping[str, int]) -> np.ndarray:
        """As `propose` without a filter; −1 for all where the GPU cannot select so many."""
        asked = {**parameters, **({"nprobe": min(parameters["nprobe"], self._nlist)} if self._nlist else {})}
        if max(width, asked.get("nprobe", 0)) > gpus.MOST_NEIGHBOURS:
            return np.full((len(queries), width), -1, dtype=np.int64)
        return gpus.search_on_gpu(self._index, queries, width, _settings(self._index, asked, None))[1]

    def _by_cluster(self, queries: np.ndarray, width: int, keeps: Any, nprobe: int) -> np.ndarray:
        """Like `propose`, cluster by cluster: its vectors that pass `keeps` against all queries that probe it."""
        index = faiss.downcast_index(self._index)
        if isinstance(index, faiss.IndexPreTransform):
            for number in range(index.chain.size()):
                queries = index.chain.at(number).apply(queries)
        ivf, is_l2 = self._ivf, self._ivf.metric_type == faiss.METRIC_L2
        with runtime.matrix_product_from(_QUERIES_FOR_BLAS, len(queries)):
            clusters = ivf.quantizer.search(queries, nprobe)[1].ravel()
        order = np.argsort(clusters, kind="stable")
        bounds = np.searchsorted(clusters[order], np.arange(ivf.nlist + 1))
        order //= nprobe  # places among all pairs become queries
        costs = np.empty((len(queries), width), dtype=np.float32)
        rows = np.empty((len(queries), width), dtype=np.int64)
        heap = heap_over(costs, rows)
        left = -2 * queries if is_l2 else -queries
        for cluster in range(ivf.nlist):
            own = order[bounds[cluster] : bounds[cluster + 1]]
            size = ivf.invlists.list_size(cluster)
            if not len(own) or not size:
                continue
            numbers = faiss.rev_swig_ptr(ivf.invlists.get_ids(cluster), size)
            codes = faiss.rev_swig_ptr(ivf.invlists.get_codes(cluster), size * ivf.code_size)
            vectors = codes.view(np.float32).reshape(size, -1)
            if keeps is not None:
                kept = keeps(numbers)
                numbers, vectors = numbers[kept], vectors[kept]
                if not len(numbers):
                    continue
            # A query's own length is the same in all of its costs, and is left out.
            tile = left[own] @ vectors.T
            if is_l2:
                tile += np.einsum("nd,nd->n", vectors, vectors)
            heap.addn_query_subset_with_ids(
                len(own), faiss.swig_ptr(own), len(numbers), faiss.swig_ptr(tile), faiss.swig_ptr(numbers), 0
            )
        heap.reorder()
        return rows


def _select(allowed: Ranges | np.ndarray, num_rows: int) -> tuple[Any, Any]:
    """FAISS's selector of these rows (None for all),
    and a function that returns which of an array of rows it allows."""
    if isinstance(allowed, np.ndarray):
        is_allowed = np.zeros(num_rows, dtype=bool)
        is_allowed[allowed] = True
    elif len(allowed) == 1:
        ((start, stop),) = allowed
        if (start, stop) == (0, num_rows):
            return None, None
        # Rows ascend in every cluster, so a range of them is cut out there without looking at each.
        return faiss.IDSelectorRange(start, stop, True), lambda rows: (rows >= start) & (rows < stop)
    elif len(allowed) == 2 and allowed[0][0] == 0 and allowed[1][1] == num_rows:
        start, stop = allowed[0][1], allowed[1][0]
        selector = faiss.IDSelectorNot(faiss.IDSelectorRange(start, stop))
        return selector, lambda rows: (rows < start) | (rows >= stop)
    else:
        is_allowed = np.zeros(num_rows, dtype=bool)
        for start, stop in allowed:
            is_allowed[start:stop] = True
    return faiss.IDSelectorBitmap(np.packbits(is_allowed, bitorder="little")), lambda rows: is_allowed[rows]


def _settings(index: "runtime.faiss.Index", parameters: Mapping[str, int], selector: Any) -> Any:
    """FAISS's search parameters for the index, down to the one inside that does the work."""
    index = faiss.downcast_index(index)
    options = {} if selector is None else {"sel": selector}
    if isinstance(index, faiss.IndexPreTransform):
        inner = _settings(index.index, parameters, selector)
        return faiss.SearchParametersPreTransform(index_params=inner, **options)
    if isinstance(index, faiss.IndexRefine):
        return faiss.IndexRefineSearchParameters(
            base_index_params=_settings(index.base_index, parameters, selector), **options
        )
    if isinstance(index, faiss.IndexIVF) or type(index).__name__.startswith("GpuIndexIVF"):
        return faiss.SearchParametersIVF(nprobe=parameters["nprobe"], **options)
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=parameters["ef_search"], **options)
    return faiss.SearchParameters(**options) if options else None
