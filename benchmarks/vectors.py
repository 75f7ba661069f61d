"""Vectors for benchmarks of the index: real embeddings, made once and kept outside the repository, and two made ones.

    FSL_DIST_TEST_DATA=FOLDER python -m benchmarks.vectors omniglot --num 100000
    python -m benchmarks.vectors gaussian

Prints the intrinsic dimension of the vectors and how clustered they are. A set of the same name and seed is the same on
every call; a smaller one is the beginning of a larger one. Embeddings are kept below `--cache`, by default
$FSL_DIST_BENCH_CACHE or ~/.cache/fsl-dist/vectors.

    omniglot     128 numbers: augmented handwritten characters through a Conv4 trained on half of the characters
    photographs  1280 numbers: crops of groceries, skin lesions and blood cells through ImageNet's MobileNetV2
    clusters     made: clusters of different size in 12 dimensions, bent into 64; needs no data
    gaussian     made: 2,000 Gaussians in 128 dimensions that overlap, the hard case: no clustering helps
"""

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index import runtime
from index.base.errors import RequestError
from index.runtime import keep_freed_memory, matrix_product_from

faiss: Any = runtime.faiss

NUM_QUERIES = 2000
"""queries of a set: vectors that are made like the others and are not in the index"""
BLOCK = 4096
"""rows that are drawn from one seed"""
_NEIGHBOURS = 20

Block = tuple[np.ndarray, np.ndarray]
"""vectors float32 [n, dim] and labels int64 [n]"""


@dataclass(frozen=True, slots=True)
class VectorSet:
    """Vectors to index, and queries."""

    name: str
    vectors: np.ndarray
    """float32 [num, dim]"""
    labels: np.ndarray
    """int64 [num]"""
    queries: np.ndarray
    """float32 [NUM_QUERIES, dim]"""
    query_labels: np.ndarray
    """int64 [NUM_QUERIES]"""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how well an index can do."""

    two_nn: float
    """intrinsic dimension by the two nearest neighbours (Facco et al. 2017)"""
    mle: float
    """intrinsic dimension by the 20 nearest (Levina & Bickel 2004), averaged as MacKay & Ghahramani do"""
    own_cluster: float
    """share of the 10 nearest vectors that k-means puts into the query's own cluster, of 4·√N clusters"""
    examined: float
    """share of the vectors that the nearest clusters contain which have 95 % of the 10 nearest"""


def open_vectors(
    name: str, num: int, *, archives: Path | None = None, cache: Path | None = None
) -> VectorSet:
    """A set of `num` vectors; made and kept at the first call if it takes long.

    Args:
        name: one of `SETS`.
        num: vectors to index; `NUM_QUERIES` more are made.
        archives: the folder with the archives of real data; by default FSL_DIST_TEST_DATA.
        cache: where embeddings are kept.

    Raises:
        RequestError: no such set, or its archive is missing.
    """
    if name not in SETS:
        raise RequestError(f"there is no set of vectors '{name}'; there are {', '.join(SETS)}")
    total = num + NUM_QUERIES
    if name in _MADE:
        vectors, labels = _MADE[name](total)
    else:
        folder = cache or default_cache()
        vectors, labels = _kept(name, total, folder, archives)
    # Queries come first, so that they are the same for every number of vectors.
    return VectorSet(
        name, vectors[NUM_QUERIES:], labels[NUM_QUERIES:], vectors[:NUM_QUERIES], labels[:NUM_QUERIES]
    )


def default_cache() -> Path:
    """Where embeddings are kept unless a folder is named."""
    named = os.environ.get("FSL_DIST_BENCH_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "fsl-dist" / "vectors"


def describe(vectors: VectorSet, *, sample: int = 1000, seed: int = 0) -> Shape:
    """Measure intrinsic dimension and clusters with `sample` of the queries."""
    queries, num = vectors.queries[:sample], len(vectors.vectors)
    with matrix_product_from(1, len(queries)):
        squares, nearest = faiss.knn(queries, vectors.vectors, _NEIGHBOURS)
    distances = np.sqrt(np.maximum(squares.astype(np.float64), 0))
    apart = distances[:, 0] > 0
    distances = distances[apart]
    two_nn = len(distances) / np.log(distances[:, 1] / distances[:, 0]).sum()
    logs = np.log(distances[:, -1:] / distances[:, :-1])
    mle = (_NEIGHBOURS - 2) / logs.sum(axis=1).mean()

    num_clusters = max(1, min(round(4 * num**0.5), num // 39))
    rows = np.random.default_rng(seed).permutation(num)[: 64 * num_clusters]
    kmeans = faiss.Kmeans(vectors.vectors.shape[1], num_clusters, niter=10, seed=seed)
    kmeans.train(np.ascontiguousarray(vectors.vectors[np.sort(rows)]))
    assigned = kmeans.assign(vectors.vectors)[1]
    with matrix_product_from(1, len(queries)):
        order = faiss.knn(queries, kmeans.centroids, num_clusters)[1]
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(num_clusters)[None], axis=1)
    rank_of_nearest = np.take_along_axis(place, assigned[nearest[:, :10]], axis=1)
    examined = np.cumsum(np.bincount(assigned, minlength=num_clusters)[order], axis=1)
    probes = int(np.quantile(rank_of_nearest, 0.95))
    return Shape(
        float(two_nn),
        float(mle),
        float((rank_of_nearest == 0).mean()),
        float(examined[:, probes].mean() / num),
    )


def draw_clusters(total: int, *, dim: int = 64, inner: int = 12, seed: int = 0) -> Block:
    """Clusters of different size and width in `inner` dimensions, bent into `dim`: float32 [total, dim], labels."""
    rng = np.random.default_rng((seed, 1))
    num_classes = 400
    centres = 3 * rng.standard_normal((num_classes, inner))
    widths = rng.uniform(0.5, 1.5, num_classes)
    shares = 1 / np.arange(1, num_classes + 1) ** 0.7
    first, second = rng.standard_normal((inner, 96)) / inner**0.5, rng.standard_normal((96, dim)) / 96**0.5

    def draw(rng: np.random.Generator, num: int) -> Block:
        labels = rng.choice(num_classes, num, p=shares / shares.sum())
        points = centres[labels] + widths[labels, None] * rng.standard_normal((num, inner))
        noise = 0.02 * rng.standard_normal((num, dim))
        return (np.tanh(points @ first) @ second + noise).astype(np.float32), labels

    return _join(_blocks(total, seed, draw))


def draw_gaussians(total: int, *, dim: int = 128, spread: float = 0.55, seed: int = 0) -> Block:
    """2,000 Gaussians with unit noise around centres of `spread` times unit noise: float32 [total, dim], labels."""
    centres = spread * np.random.default_rng((seed, 2)).standard_normal((2000, dim))

    def draw(rng: np.random.Generator, num: int) -> Block:
        labels = rng.integers(0, len(centres), num)
        return (centres[labels] + rng.standard_normal((num, dim))).astype(np.float32), labels

    return _join(_blocks(total, seed, draw))


def _blocks(total: int, seed: int, draw: Callable[[np.random.Generator, int], Block]) -> Iterator[Block]:
    """Blocks of rows, each from its own seed; the last one is cut, so that fewer rows are the same rows."""
    for number, start in enumerate(range(0, total, BLOCK)):
        vectors, labels = draw(np.random.default_rng((seed, 7, number)), BLOCK)
        yield vectors[: total - start], labels[: total - start]


def _join(blocks: Iterator[Block]) -> Block:
    vectors, labels = zip(*blocks, strict=True)
    return np.concatenate(vectors), np.concatenate(labels)


def _kept(name: str, total: int, folder: Path, archives: Path | None) -> Block:
    """The embeddings below `folder`, made where a set of this size is not there."""
    path, labels_path = (folder / f"{name}-{total}{part}.npy" for part in ("", "-labels"))
    if not labels_path.exists():
        from benchmarks.vector_images import ENCODERS

        if archives is None:
            archives = Path(os.environ.get("FSL_DIST_TEST_DATA", ""))
        keep_freed_memory()  # a third of the time otherwise
        encoder = ENCODERS[name](archives)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        vectors = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float32, shape=(total, encoder.dim)
        )
        labels = np.empty(total, dtype=np.int64)
        start = 0
        for part, of_part in _blocks(total, 0, encoder.draw):
            vectors[start : start + len(part)], labels[start : start + len(part)] = part, of_part
            start += len(part)
        vectors.flush()
        temporary.rename(path)
        # Last, because this file says that the set is complete.
        np.save(temporary, labels)
        temporary.rename(labels_path)
    return np.load(path, mmap_mode="r"), np.load(labels_path)


SETS = ("omniglot", "photographs", "clusters", "gaussian")
_MADE: dict[str, Callable[[int], Block]] = {"clusters": draw_clusters, "gaussian": draw_gaussians}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", choices=SETS)
    parser.add_argument("--num", type=int, default=100_000, help="vectors to index")
    parser.add_argument("--cache", type=Path, default=None, help="folder of the embeddings")
    options = parser.parse_args()
    try:
        opened = open_vectors(options.name, options.num, cache=options.cache)
    except RequestError as error:
        parser.error(str(error))
    shape = describe(opened)
    print(f"{options.name}: {len(opened.vectors):,} × {opened.vectors.shape[1]}")
    print(f"intrinsic dimension {shape.two_nn:.1f} (two nearest), {shape.mle:.1f} ({_NEIGHBOURS} nearest)")
    print(f"{shape.own_cluster:.0%} of the 10 nearest are in the query's own cluster of k-means")
    print(f"the clusters with 95 % of the 10 nearest contain {shape.examined:.2%} of the vectors")


if __name__ == "__main__":
    main()
