"""The model behind `fsl-dist plan`: seconds and bytes of a step, an epoch and an index, one formula per function.

It ignores start-up, stragglers and the overlap of gradient reduction with the backward pass;
docs/explanation/scaling.md compares it with runs.
"""

import re

from cluster.planning.rates import Rate
from index.base.errors import RequestError
from index.config import IndexConfig


def seconds_of(work: float, rate: Rate, cores: float) -> float:
    """Seconds of one process for `work` units with `cores` cores: as measured, or limited by its CPU time if there
    are few cores."""
    return max(work / rate.per_s, core_seconds(work, rate) / cores)


def core_seconds(work: float, rate: Rate) -> float:
    """CPU time of `work` units, in seconds of one core."""
    return work * rate.core_ms / 1000


def ring_bytes(gradient_bytes: float, processes: int) -> float:
    """Bytes over each link when `processes` in a ring average their gradients: 2 (n − 1) / n of the gradient."""
    return 2 * (processes - 1) / processes * gradient_bytes


def gather_bytes(images: float, dim: int, processes: int) -> float:
    """Bytes over each link if every process gets all float32 embeddings of a step: (n − 1) / n of them."""
    return (processes - 1) / processes * images * dim * 4


def step_seconds(
    *, load_s: float, storage_s: float, compute_s: float, network_s: float, cores_s: float
) -> float:
    """A step: prefetching runs concurrently with computing, the network after it, and all of them share the cores."""
    return max(load_s, storage_s, compute_s + network_s, cores_s)


def search_work(num_vectors: float, processes: int, looked_at: float) -> float:
    """Distances that one of `processes` computes if all vectors search their neighbours among all:
    N² / n, or a share of it."""
    return num_vectors**2 * looked_at / processes


def looked_at(config: IndexConfig, dim: int, num_vectors: int) -> float:
    """Share of the vectors that a query is compared with: 1 for flat, nprobe / nlist for IVF.

    RequestError for the kinds of which it does not follow from their settings.
    """
    if config.kind == "flat":
        return 1.0
    if config.kind not in ("ivf_flat", "ivf_pq"):
        raise RequestError(
            f"index.kind={config.kind}: the duration of a search does not follow from its settings; plan supports "
            "flat, ivf_flat and ivf_pq (`fsl-dist index tune` measures the others)"
        )
    from index.kinds import factory_of, parameters_of

    described = re.match(r"IVF(\d+)", factory_of(config, dim, num_vectors))
    assert described is not None
    return parameters_of(config, dim, num_vectors)["nprobe"] / int(described[1])


def vector_bytes(config: IndexConfig, dim: int, num_vectors: int) -> float:
    """Memory of one vector in an opened index, in addition to the mapped file (docs/explanation/neighbour_index.md).
    RequestError for `factory`, which is unknown."""
    raw = 4.0 * dim
    match config.kind:
        case "flat":
            return raw if config.metric == "l2" else 0.0
        case "ivf_flat":
            return raw + 8  # and its id
        case "hnsw":
            return raw + 8 * (config.hnsw_m or 32)
        case "ivf_pq":
            from index.kinds import factory_of

            codes = re.search(r"PQ(\d+)x(\d+)", factory_of(config, dim, num_vectors))
            assert codes is not None
            return -(-int(codes[1]) * int(codes[2]) // 8) + 8.0
        case _:
            raise RequestError(
                f"index.factory={config.factory}: its memory is not known; plan supports the other kinds "
                "(index.kind=flat, ivf_flat, ivf_pq or hnsw)"
            )


def file_bytes(dim: int, num_vectors: int) -> float:
    """Bytes of an index's raw vectors on disk, which every kind has."""
    return 4.0 * dim * num_vectors
