"""Kinds of index: their rules, and training and filling a FAISS index.
All parameters that FAISS gets at build time are here.

For l2 and cosine, ivf_flat and ivf_pq subtract the sample's mean from all vectors first: FAISS assigns vectors to
clusters by ‖x‖² + ‖c‖² − 2x·c, which loses digits far from the origin. The same input gives the same bytes for any
number of threads.
"""

import math
import threading
from typing import Any

import numpy as np

from index.base.errors import ConfigError, VersionError
from index.config import IndexConfig, Kind, Metric
from index.runtime import faiss, matrix_product_from
from index.vectors import unit_vectors

_read_lock = threading.Lock()  # the limits are of the process
_faiss_limits: Any = faiss  # which its type hints lack
_PQ_NUMBERS = 4  # numbers of a vector behind each byte of code, at least
_POINTS_PER_CLUSTER = 39  # fewer vectors a cluster, and FAISS calls the clustering badly founded
_SAMPLE_PER_CLUSTER = 64
_ROWS_AT_ONCE = 1 << 16  # rows that are centred and added per call, which limits memory


def needs_files(config: IndexConfig) -> bool:
    """Whether every shard has a FAISS index in addition to its vectors."""
    return config.kind != "flat"


def is_trained(kind: Kind) -> bool:
    """Whether all shards share something trained on a sample."""
    return kind in ("ivf_flat", "ivf_pq", "factory")


def factory_of(config: IndexConfig, dim: int, num_vectors: int) -> str:
    """FAISS's description of the index of `num_vectors` vectors of `dim` numbers."""
    if config.kind == "factory":
        return config.factory
    if config.kind == "hnsw":
        return f"HNSW{config.hnsw_m or 32},Flat"
    if config.kind == "flat":
        return "Flat"
    rule = min(round(4 * math.sqrt(num_vectors)), num_vectors // _POINTS_PER_CLUSTER)
    clusters = f"IVF{config.nlist or max(1, rule)}"
    if config.kind == "ivf_flat":
        return f"{clusters},Flat"
    codes = config.pq_m or max(m for m in range(1, max(2, dim // _PQ_NUMBERS + 1)) if dim % m == 0)
    num_sample = min(config.train_size or num_vectors, num_vectors)
    bits = config.pq_bits or max(1, min(8, (num_sample // _POINTS_PER_CLUSTER).bit_length() - 1))
    return f"{clusters},PQ{codes}x{bits}"


def check(config: IndexConfig, dim: int, num_vectors: int) -> None:
    """Raise ConfigError if the settings do not suit `num_vectors` vectors of `dim` numbers;
    cheap, so call it before embedding."""
    empty = _make(config, dim, num_vectors)
    ivf, graph = ivf_of(empty), graph_of(empty)
    if ivf is not None and ivf.nlist > num_vectors:
        raise ConfigError(
            f"{_setting(config, 'nlist')} makes {ivf.nlist} clusters of {num_vectors} vectors; each cluster needs "
            "at least one vector (index.nlist=0 chooses a number)"
        )
    if config.nprobe and (ivf is None or config.nprobe > ivf.nlist):
        has = "no clusters" if ivf is None else f"{ivf.nlist} clusters"
        raise ConfigError(
            f"index.nprobe={config.nprobe} does not fit: {factory_of(config, dim, num_vectors)} has {has}"
        )
    if config.ef_search and graph is None:
        raise ConfigError(
            f"index.ef_search={config.ef_search} does not fit: {config.factory} has no graph to walk"
        )


def parameters_of(config: IndexConfig, dim: int, num_vectors: int) -> dict[str, int]:
    """The default search parameters of the kind: nprobe, ef_search, k_factor, as far as it has them."""
    if not needs_files(config):
        return {}
    empty = _make(config, dim, num_vectors)
    parameters = {}
    ivf = ivf_of(empty)
    if ivf is not None:
        parameters["nprobe"] = config.nprobe or max(1, ivf.nlist // 16)
    if graph_of(empty) is not None:
        parameters["ef_search"] = config.ef_search or 64
    parameters["k_factor"] = config.k_factor or (4 if config.kind in ("ivf_pq", "factory") else 1)
    return parameters


def sample_size(config: IndexConfig, dim: int, num_vectors: int) -> int:
    """Number of vectors to sample for `train`."""
    if config.train_size:
        return min(config.train_size, num_vectors)
    empty = _make(config, dim, num_vectors)
    ivf = ivf_of(empty)
    # 2^bits codes are clusters too; 8 bits are what nearly every description has.
    clusters = max(0 if ivf is None else ivf.nlist, 0 if config.kind == "ivf_flat" else 256)
    return min(_SAMPLE_PER_CLUSTER * clusters, num_vectors)


def train(sample: np.ndarray, num_vectors: int, config: IndexConfig) -> bytes:
    """What all shards share, an empty FAISS index trained on `sample`: float32 [n, dim], out of `num_vectors`.

    Empty where the kind trains nothing. Raises ConfigError for settings that the vectors cannot have.
    """
    dim = sample.shape[1]
    if not is_trained(config.kind):
        if needs_files(config):
            check(config, dim, num_vectors)
        return b""
    check(config, dim, num_vectors)
    index = _make(config, dim, num_vectors)
    ivf = ivf_of(index)
    if ivf is not None:
        if ivf.nlist > len(sample):
            raise ConfigError(
                f"index.train_size={config.train_size or len(sample)} is too few vectors to find {ivf.nlist} "
                f"clusters; take {_POINTS_PER_CLUSTER * ivf.nlist} or more, or index.train_size=0"
            )
        ivf.cp.min_points_per_centroid = 1  # a small sample is fine, but FAISS would print a warning
        if isinstance(ivf, faiss.IndexIVFPQ):
            ivf.pq.cp.min_points_per_centroid = 1
    if is_centred(config.kind, config.metric):
        index = faiss.IndexPreTransform(faiss.CenteringTransform(dim), index)
    with matrix_product_from(1, len(sample)):
        try:
            index.train(np.ascontiguousarray(sample))
        except RuntimeError as error:
            raise ConfigError(
                f"{_setting(config, 'train_size')}: {factory_of(config, dim, num_vectors)} cannot be trained on "
                f"{len(sample)} vectors: {_reason(error)}"
            ) from None
    return bytes(faiss.serialize_index(index))


def fill(trained: bytes, vectors: np.ndarray, config: IndexConfig) -> "faiss.Index":
    """A shard's FAISS index: what `train` gave, filled with float32 [rows, dim] (for cosine: divided by their
    lengths); an id is a row of the shard."""
    dim = vectors.shape[1]
    index = from_bytes(trained, "the trained index") if trained else _make(config, dim, max(1, len(vectors)))
    threads = faiss.omp_get_max_threads()
    graph = graph_of(index)
    if graph is not None:
        if config.ef_construction or config.kind == "hnsw":
            graph.hnsw.efConstruction = config.ef_construction or 200
        # Threads would link the vectors in an order that changes from run to run.
        faiss.omp_set_num_threads(1)
    try:
        with matrix_product_from(1, len(vectors)):
            for start in range(0, len(vectors), _ROWS_AT_ONCE):
                part = np.ascontiguousarray(vectors[start : start + _ROWS_AT_ONCE])
                index.add(unit_vectors(part) if config.metric == "cosine" else part)
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory={config.factory} cannot add vectors in order: {_reason(error)}"
        ) from None
    finally:
        faiss.omp_set_num_threads(threads)
    return index


def from_bytes(data: bytes | np.ndarray, place: str) -> "faiss.Index":
    """Read the result of `train`, or a shard's index file;
    raises VersionError, which names `place`, for anything else."""
    numbers = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data
    try:
        with _read_lock:
            # No part of a file is longer than the file; a damaged length would otherwise fill the memory. FAISS
            # allocates a square matrix for a transform that stores less: 2²⁸ bytes are one of dim 8192.
            _faiss_limits.set_deserialization_vector_byte_limit(max(numbers.size, 1 << 28))
            _faiss_limits.set_deserialization_loop_limit(max(numbers.size, 1 << 20))
            return faiss.deserialize_index(numbers)
    except (RuntimeError, MemoryError) as error:
        raise VersionError(f"{place} is damaged: {_reason(error)}; build the index again") from None


def ivf_of(index: "faiss.Index") -> "faiss.IndexIVF | None":
    """The clusters inside an index, through any transforms."""
    return faiss.try_extract_index_ivf(index)


def graph_of(index: "faiss.Index") -> "faiss.IndexHNSW | None":
    """The HNSW graph of an index, behind any transforms; a graph that only finds clusters does not count."""
    index = faiss.downcast_index(index)
    while isinstance(index, faiss.IndexPreTransform | faiss.IndexRefine):
        inner = index.index if isinstance(index, faiss.IndexPreTransform) else index.base_index
        index = faiss.downcast_index(inner)
    return index if isinstance(index, faiss.IndexHNSW) else None


def parameter_names(index: "faiss.Index") -> set[str]:
    """The names of the search parameters of a kind with a FAISS index."""
    names = {"k_factor"}
    names |= set() if ivf_of(index) is None else {"nprobe"}
    return names if graph_of(index) is None else names | {"ef_search"}


def empty_of(described: str, kind: Kind, metric: Metric, dim: int) -> "faiss.Index":
    """The empty index of a version whose manifest has the factory `described`. Raises RuntimeError like FAISS."""
    index = faiss.index_factory(dim, described, _metric_of(metric))
    if is_centred(kind, metric):
        index = faiss.IndexPreTransform(faiss.CenteringTransform(dim), index)
    return index


def is_centred(kind: Kind, metric: Metric) -> bool:
    """Whether the sample's mean is taken off all vectors first."""
    return kind in ("ivf_flat", "ivf_pq") and metric != "inner_product"


def _metric_of(metric: Metric) -> int:
    # For vectors of length 1, distances and products give the same order, and distances can be centred: on vectors that
    # point almost in one direction, ivf_pq found 46% of the neighbours by products.
    return faiss.METRIC_INNER_PRODUCT if metric == "inner_product" else faiss.METRIC_L2


def _make(config: IndexConfig, dim: int, num_vectors: int) -> "faiss.Index":
    """The empty index; raises ConfigError if FAISS cannot create it."""
    described = factory_of(config, dim, num_vectors)
    if config.kind == "ivf_pq" and config.pq_m and dim % config.pq_m:
        raise ConfigError(
            f"index.pq_m={config.pq_m} does not divide the vectors' dim={dim}; use one of "
            f"{', '.join(str(m) for m in range(1, dim + 1) if dim % m == 0)}"
        )
    try:
        return faiss.index_factory(dim, described, _metric_of(config.metric))
    except RuntimeError as error:
        raise ConfigError(
            f"index.factory={described} is not a valid FAISS factory for dim={dim}: {_reason(error)}"
        ) from None


def _setting(config: IndexConfig, name: str) -> str:
    """The setting to change, with its value."""
    name = "factory" if config.kind == "factory" and name != "train_size" else name
    return f"index.{name}={getattr(config, name)}"


def _reason(error: BaseException) -> str:
    """FAISS's own words, without the place in its source."""
    return " ".join(str(error).rsplit(": ", 1)[-1].split())
