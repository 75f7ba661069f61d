"""Ways to search vectors for `benchmarks.suite.index`: this project's kinds, FAISS used directly, hnswlib, usearch.

All have the same clusters, codes, links and candidates, where they have such a setting.
"""

import functools
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index import runtime
from index.config import IndexConfig
from index.kinds import factory_of
from index.search import open_index
from index.writing.build import build

faiss: Any = runtime.faiss

Search = Callable[[np.ndarray, int, int], np.ndarray]
"""(queries float32 [n, dim], k, effort) → ids int64 [n, k]"""
Filtered = Callable[[np.ndarray, int, int, int, int], np.ndarray]
"""(queries, k, effort, start, stop): as `Search`, among ids in [start, stop)"""

LINKS, EF_CONSTRUCTION, K_FACTOR = 32, 200, 4
_EFS = (10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_PROBES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 4096)
OURS, FAISS = "fsl-dist", "FAISS"


@dataclass(frozen=True, slots=True)
class Opened:
    """An index that can be searched."""

    search: Search
    filtered: Filtered | None
    """None where the library has no filter"""
    efforts: tuple[int, ...]
    """values of the search parameter, ascending in recall and time"""


@dataclass(frozen=True, slots=True)
class Way:
    """One kind of index of one library."""

    library: str
    kind: str
    build: Callable[[np.ndarray, np.ndarray, Path], None]
    """(vectors, labels, folder): writes the index into the empty folder"""
    open: Callable[[Path, np.ndarray], Opened]
    """(folder, vectors) → what `build` wrote, opened"""
    module: str = ""
    """distribution that must be installed"""
    parameter: str = ""
    """what an effort is"""

    @property
    def name(self) -> str:
        """Library and kind."""
        return f"{self.library} {self.kind}"

    @property
    def is_installed(self) -> bool:
        """Whether the library can be imported."""
        return not self.module or importlib.util.find_spec(self.module) is not None


def installed_version(module: str) -> str:
    """The version of a distribution, in words."""
    return f"{module} {importlib.metadata.version(module)}"


def _factories(num: int, dim: int) -> dict[str, str]:
    """FAISS's description of each kind, for all libraries that have it."""
    ivf = factory_of(IndexConfig(kind="ivf_flat"), dim, num)
    codes = max(m for m in range(1, dim // 2 + 1) if dim % m == 0)
    return {
        "flat": "Flat",
        "ivf_flat": ivf,
        "hnsw": f"HNSW{LINKS},Flat",
        "codes": f"{ivf.partition(',')[0]},PQ{codes}x4fs",
    }


def _build_ours(kind: str, vectors: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    factory = _factories(*vectors.shape)[kind]
    settings: dict[str, Any] = {
        "hnsw": {"kind": "hnsw", "hnsw_m": LINKS, "ef_construction": EF_CONSTRUCTION},
        "codes": {"kind": "factory", "factory": factory, "k_factor": K_FACTOR},
    }.get(kind, {"kind": kind})
    build(folder, vectors, labels, config=IndexConfig(**settings))


def _open_ours(kind: str, folder: Path, vectors: np.ndarray) -> Opened:
    index = open_index(folder, verify=False)
    name = {"flat": "", "hnsw": "ef_search"}.get(kind, "nprobe")

    def options(effort: int) -> Mapping[str, int]:
        return {name: effort} if name else {}

    def search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        return index.search(queries, k, parameters=options(effort)).ids

    def filtered(queries: np.ndarray, k: int, effort: int, start: int, stop: int) -> np.ndarray:
        ranges = np.tile(np.array([start, stop]), (len(queries), 1))
        return index.search(queries, k, include_ids=ranges, parameters=options(effort)).ids

    return Opened(search, filtered, _efforts(kind, index.num_clusters))


def _build_faiss(kind: str, vectors: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    num, dim = vectors.shape
    index = faiss.index_factory(dim, _factories(num, dim)[kind])
    if kind == "hnsw":
        index.hnsw.efConstruction = EF_CONSTRUCTION
    if not index.is_trained:
        rows = np.random.default_rng(0).permutation(num)[: 64 * index.nlist]
        index.train(np.ascontiguousarray(vectors[np.sort(rows)]))
    index.add(np.ascontiguousarray(vectors))
    faiss.write_index(index, str(folder / "index.faiss"))
    if kind == "codes":
        np.save(folder / "vectors.npy", vectors)


def _open_faiss(kind: str, folder: Path, vectors: np.ndarray) -> Opened:
    index = faiss.read_index(str(folder / "index.faiss"))
    searched = index
    if kind == "codes":
        kept = np.load(folder / "vectors.npy")  # a name, because a pointer keeps no array alive
        searched = faiss.IndexRefineFlat(index, faiss.swig_ptr(kept))

    def parameters(effort: int, selector: Any) -> Any:
        options = {} if selector is None else {"sel": selector}
        if kind == "flat":
            return faiss.SearchParameters(**options) if options else None
        if kind == "hnsw":
            return faiss.SearchParametersHNSW(efSearch=effort, **options)
        inner = faiss.SearchParametersIVF(nprobe=effort, **options)
        if kind == "codes":
            return faiss.IndexRefineSearchParameters(k_factor=K_FACTOR + 1, base_index_params=inner)
        return inner

    # As a user would: the parameters are made once, not for each query.
    known = functools.cache(lambda effort: parameters(effort, None))

    def search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        return np.asarray(searched.search(queries, k, params=known(effort))[1])

    def filtered(queries: np.ndarray, k: int, effort: int, start: int, stop: int) -> np.ndarray:
        selector = faiss.IDSelectorRange(start, stop, kind == "ivf_flat")
        return np.asarray(searched.search(queries, k, params=parameters(effort, selector))[1])

    return Opened(search, filtered, _efforts(kind, getattr(index, "nlist", 0)))


def _build_hnswlib(vectors: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    import hnswlib

    index = hnswlib.Index("l2", vectors.shape[1])
    index.init_index(len(vectors), ef_construction=EF_CONSTRUCTION, M=LINKS)
    index.add_items(vectors, num_threads=faiss.omp_get_max_threads())
    index.save_index(str(folder / "index.bin"))


def _open_hnswlib(folder: Path, vectors: np.ndarray) -> Opened:
    import hnswlib

    index = hnswlib.Index("l2", vectors.shape[1])
    index.load_index(str(folder / "index.bin"))
    index.set_num_threads(faiss.omp_get_max_threads())

    def search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        index.set_ef(effort)
        return np.asarray(index.knn_query(queries, k)[0]).astype(np.int64)

    def filtered(queries: np.ndarray, k: int, effort: int, start: int, stop: int) -> np.ndarray:
        """More neighbours than wanted, of which those in the range are kept: its own filter calls Python for each."""
        asked = min(len(vectors), effort)
        index.set_ef(asked)
        found = np.asarray(index.knn_query(queries, asked)[0]).astype(np.int64)
        inside = (found >= start) & (found < stop)
        order = np.argsort(~inside, axis=1, kind="stable")[:, :k]
        return np.where(np.take_along_axis(inside, order, 1), np.take_along_axis(found, order, 1), -1)

    return Opened(search, filtered, _EFS)


def _build_usearch(vectors: np.ndarray, labels: np.ndarray, folder: Path) -> None:
    from usearch.index import Index

    index = Index(
        ndim=vectors.shape[1], metric="l2sq", connectivity=LINKS, expansion_add=EF_CONSTRUCTION, dtype="f32"
    )
    index.add(np.arange(len(vectors)), vectors, threads=faiss.omp_get_max_threads())
    index.save(str(folder / "index.usearch"))


def _open_usearch(folder: Path, vectors: np.ndarray) -> Opened:
    from usearch.index import Index

    index = Index.restore(str(folder / "index.usearch"))

    def search(queries: np.ndarray, k: int, effort: int) -> np.ndarray:
        index.expansion_search = effort
        found = index.search(queries, k, threads=faiss.omp_get_max_threads())
        return np.asarray(found.keys).astype(np.int64).reshape(len(queries), -1)

    return Opened(search, None, _EFS)


def _efforts(kind: str, num_clusters: int) -> tuple[int, ...]:
    if kind == "flat":
        return (1,)
    if kind == "hnsw":
        return _EFS
    return (*(probes for probes in _PROBES if probes < num_clusters), num_clusters)


_PARAMETERS = {"flat": "", "hnsw": "ef", "ivf_flat": "nprobe", "codes": "nprobe"}
WAYS = {
    way.name: way
    for way in (
        *(
            Way(library, kind, functools.partial(build, kind), functools.partial(open, kind), "", parameter)
            for kind, parameter in _PARAMETERS.items()
            for library, build, open in (
                (OURS, _build_ours, _open_ours),
                (FAISS, _build_faiss, _open_faiss),
            )
        ),
        Way("hnswlib", "hnsw", _build_hnswlib, _open_hnswlib, "hnswlib", "ef"),
        Way("usearch", "hnsw", _build_usearch, _open_usearch, "usearch", "ef"),
    )
}


def built(name: str, vectors: np.ndarray, labels: np.ndarray, folder: Path) -> int:
    """Build one way's index into `folder`, which is emptied; bytes of what was written."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    WAYS[name].build(vectors, labels, folder)
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
