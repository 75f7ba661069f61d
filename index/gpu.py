"""Searching on a GPU through FAISS: selection of the GPU, its limits, and one search at a time.

FAISS's flat index on a GPU silently ignores selectors, so filters are not passed to it: a range of rows consists of
whole indexes.
"""

import functools
import threading
from typing import Any

import numpy as np

from index import runtime
from index.base.errors import RequestError
from index.config import Device

# FAISS's type hints lack configurations of GPU indexes.
faiss: Any = runtime.faiss

MOST_NEIGHBOURS = 2048
"""Limit of FAISS on a GPU for the neighbours per query and for the clusters probed per query."""

ROUNDING = 2.0**-22
"""Unit roundoff assumed for float32 on a GPU: tensor cores may split a product into three shorter ones and truncate
sums."""

# FAISS's scratch memory on a GPU serves one search at a time; threads of one process take turns.
_turn = threading.Lock()


def choose_gpu(device: Device, number: int) -> int | None:
    """The GPU to search on, None for the CPU. Raises RequestError for one that FAISS does not see."""
    if device != "gpu":
        return None
    seen = faiss.get_num_gpus()
    if number >= seen:
        what = f"{seen} GPUs, numbered from 0, and not number {number}" if seen else "no GPU"
        raise RequestError(f"index.device=gpu: FAISS sees {what} on this machine (index.device=cpu, or auto)")
    return number


def upload_flat(vectors: np.ndarray, metric: int, gpu: int) -> Any:
    """Create a flat index of `vectors`, float32 [rows, dim], on a GPU; FAISS raises RuntimeError if they do not fit."""
    config = faiss.GpuIndexFlatConfig()
    config.device = gpu
    with _turn:
        index = faiss.GpuIndexFlat(_resources(), vectors.shape[1], metric, config)
        index.add(vectors)
    return index


def upload_index(index: Any, gpu: int) -> Any:
    """Copy a FAISS index to a GPU. Raises RequestError for a kind that FAISS does not support there.

    Preceding transforms stay on the CPU: FAISS cannot clone one that centres.
    """
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        copy = faiss.IndexPreTransform(upload_index(index.index, gpu))
        for number in reversed(range(index.chain.size())):
            copy.prepend_transform(_copy_transform(index.chain.at(number)))
        return copy
    try:
        with _turn:
            return faiss.index_cpu_to_gpu(_resources(), gpu, index)
    except RuntimeError as error:
        raise RequestError(
            f"index.device=gpu: FAISS does not support this index on a GPU: {' '.join(str(error).split())[-120:]} "
            "(index.device=cpu)"
        ) from None


def search_on_gpu(
    index: Any, queries: np.ndarray, count: int, parameters: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """FAISS's search of an index on a GPU, one at a time: values float32 and rows int64 [n, count], −1 for none."""
    with _turn:
        values, rows = index.search(queries, count, params=parameters)
    return values, rows


@functools.cache
def _resources() -> Any:
    """FAISS's scratch memory, one for the process."""
    return faiss.StandardGpuResources()


def _copy_transform(transform: Any) -> Any:
    """The same transform, apart from the index that owns this one."""
    writer, reader = faiss.VectorIOWriter(), faiss.VectorIOReader()
    faiss.write_VectorTransform(transform, writer)
    faiss.copy_array_to_vector(faiss.vector_to_array(writer.data), reader.data)
    return faiss.read_VectorTransform(reader)
