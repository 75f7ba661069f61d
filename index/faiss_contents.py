"""Validation of a FAISS file before it is searched: FAISS uses the ids in its clusters without checking them.

A file with a correct checksum can still belong to another index, or come from a faulty writer. Its parts are compared
with those of an index that FAISS creates from the manifest's description, and every id with the number of rows.
"""

from typing import Any

import numpy as np

from index import kinds, runtime
from index.base.errors import VersionError

faiss: Any = runtime.faiss  # its type hints know neither graphs nor lists

_FACTS = ("d", "metric_type", "nlist", "code_size")
# What FAISS writes and reads under one name.
_READ_AS = {"IndexFlatL2": "IndexFlat", "IndexFlatIP": "IndexFlat", "IndexRefineFlat": "IndexRefine"}


def check_contents(index: Any, expected: Any, rows: int, place: str) -> None:
    """Raise VersionError if a shard's index has other parts than the empty index `expected`,
    or ids outside its `rows`."""
    found, wanted = _parts_of(index), _parts_of(expected)
    if not index.is_trained:
        raise _damaged(place, "it is not trained")
    if found != wanted:
        differing = next(
            (f"{f}, not {w}" for f, w in zip(found, wanted, strict=False) if f != w), "more or fewer"
        )
        raise _damaged(place, f"its parts are not those that the manifest describes ({differing})")
    ivf = kinds.ivf_of(index)
    if ivf is not None:  # the links of a graph FAISS compares itself
        _check_lists(ivf, rows, place)


def _parts_of(index: Any) -> list[str]:
    """Type and sizes of an index and of those inside it."""
    index = faiss.downcast_index(index)
    facts = {name: int(getattr(index, name)) for name in _FACTS if hasattr(index, name)}
    name = type(index).__name__
    parts = [f"{_READ_AS.get(name, name)} {facts}"]
    if isinstance(index, faiss.IndexPreTransform):
        steps = [index.chain.at(number) for number in range(index.chain.size())]
        parts += [f"transform {[step.d_in, step.d_out]}" for step in steps]
    if hasattr(index, "pq"):
        parts.append(f"PQ {[index.pq.d, index.pq.M, index.pq.nbits]}")
    if hasattr(index, "hnsw"):
        parts.append(f"HNSW {[index.hnsw.nb_neighbors(0), index.hnsw.nb_neighbors(1)]}")
    inner = [
        getattr(index, name, None) for name in ("index", "base_index", "refine_index", "storage", "quantizer")
    ]
    for part in inner:
        if part is not None:
            parts += _parts_of(part)
    return parts


def _check_lists(ivf: Any, rows: int, place: str) -> None:
    """Every row in one cluster."""
    lists = ivf.invlists
    # Lists that are packed in blocks report 2⁶⁴ − 1 as the size of a vector.
    if lists.nlist != ivf.nlist or lists.code_size not in (ivf.code_size, 2**64 - 1):
        raise _damaged(place, f"its clusters are {lists.nlist} of {lists.code_size} bytes per vector")
    seen = np.zeros(rows, dtype=bool)
    total = 0
    for cluster in range(ivf.nlist):
        size = lists.list_size(cluster)
        total += size
        if not size or total > rows:
            continue
        ids = faiss.rev_swig_ptr(lists.get_ids(cluster), size)
        if ids.min() < 0 or ids.max() >= rows:
            raise _damaged(place, f"cluster {cluster} has a row outside 0 … {rows - 1}")
        seen[ids] = True
    if total != rows or not seen.all():
        raise _damaged(place, f"its clusters do not contain each of {rows} rows once")


def _damaged(place: str, why: str) -> VersionError:
    return VersionError(f"{place} is damaged: {why}; build the index again")
