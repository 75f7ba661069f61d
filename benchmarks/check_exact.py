"""Whether search is exact on given embeddings, and what that costs: against float64 brute force, and against plain
FAISS.

    python -m benchmarks.check_exact X.npy --labels Y.npy
    python -m benchmarks.check_exact runs/first/evaluation/gallery/versions/000001

Takes an array float32 [n, dim] with int64 [n] labels, or a version of an index, which has both. Recall counts ids
that differ from brute force, but for costs that differ by less than 1e-12 of their terms. Seconds are CPU time of all
vectors against all, searched in turn with FAISS's own float32 search of the same vectors. Prints a Markdown table,
then one JSON object; exits 1 where a neighbour is wrong.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.vectors import unit_vectors
from index.writing.build import build

_TIE = 1e-12


def read(path: Path, labels: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [n, dim] and labels int64 [n] of an array or of a version of an index."""
    if path.is_dir():
        opened = open_index(path)
        return opened.vectors(0, opened.num_vectors, as_given=True), np.asarray(opened.labels)
    vectors = np.load(path).astype(np.float32)
    return vectors, np.zeros(len(vectors), np.int64) if labels is None else np.load(labels).astype(np.int64)


def true_costs(vectors: np.ndarray, query: np.ndarray, metric: str) -> tuple[np.ndarray, float]:
    """Costs of one query with all vectors in float64, and the size of the terms that they are sums of."""
    x, y = query.astype(np.float64), vectors.astype(np.float64)
    if metric == "l2":
        costs = np.square(y - x).sum(axis=1)
        return costs, 0.0
    products, lengths = y @ x, np.linalg.norm(y, axis=1)
    if metric == "cosine":
        return -products / lengths / np.linalg.norm(x), 1.0
    return -products, float(lengths.max() * np.linalg.norm(x))


def count_wrong(
    opened: LocalIndex, vectors: np.ndarray, labels: np.ndarray, asked: np.ndarray, k: int, which: str
) -> int:
    """Neighbours of the vectors at `asked` that are not among the k nearest; `which`: all, same class or other
    class."""
    filters = {"same class": {"same_class": labels[asked]}, "other class": {"other_class": labels[asked]}}
    found = opened.search(vectors[asked], k, query_ids=asked, **filters.get(which, {}))
    wrong = 0
    for row, number in enumerate(asked.tolist()):
        costs, scale = true_costs(vectors, vectors[number], opened.metric)
        is_same = labels == labels[number]
        costs[{"all": ~is_same & is_same, "same class": ~is_same, "other class": is_same}[which]] = np.inf
        costs[number] = np.inf
        true = np.sort(np.partition(costs, min(k, len(costs)) - 1)[:k])
        ids = found.ids[row]
        true = np.where(np.isfinite(true), true, np.inf)
        got = np.where(ids >= 0, costs[ids], np.inf)
        is_tie = np.abs(np.where(got == true, 0.0, got - true)) <= _TIE * np.maximum(np.abs(true), scale)
        wrong += int((~is_tie).sum())
    return wrong


def cpu_seconds(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU time of each piece of work, in turn; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def search_plainly(vectors: np.ndarray, k: int, metric: str) -> None:
    """FAISS's own search of all against all, by a matrix product of vectors without their mean."""
    faiss.cvar.distance_compute_blas_threshold = 1
    if metric == "l2":
        centred = vectors - vectors.mean(axis=0)
        faiss.knn(centred, centred, k)
    else:
        faiss.knn(vectors, vectors, k, metric=faiss.METRIC_INNER_PRODUCT)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "vectors", type=Path, help=".npy, float32 [n, dim], or the folder of an index's version"
    )
    parser.add_argument("--labels", type=Path, help=".npy, int64 [n]; without it one class")
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--queries", type=int, default=500, help="vectors that brute force is asked about")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    vectors, labels = read(options.vectors, options.labels)
    faiss.omp_set_num_threads(options.threads)
    asked = np.sort(
        np.random.default_rng(0).choice(len(vectors), min(options.queries, len(vectors)), replace=False)
    )
    rows = []
    print(f"{len(vectors):,} vectors of {vectors.shape[1]} numbers, {len(np.unique(labels))} classes\n")
    print(
        "| metric | wrong of all | wrong, same class | wrong, other class | looked at again | seconds | of plain "
        "FAISS |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for metric in ("l2", "inner_product", "cosine"):
        with tempfile.TemporaryDirectory() as folder:
            build(Path(folder), vectors, labels, config=IndexConfig(metric=metric, shards=options.shards))
            opened = open_index(folder)
            # An index sorts by label; ids are rows of the vectors given.
            wrong = [
                count_wrong(opened, vectors, labels, asked, options.k, which)
                for which in ("all", "same class", "other class")
            ]
            looked = [shard.num_looked_at_again for shard in opened._shards]
            plain = unit_vectors(vectors) if metric == "cosine" else vectors
            seconds = cpu_seconds(
                {
                    "exact": lambda opened=opened: opened.search(vectors, options.k),
                    "plain": lambda plain=plain, metric=metric: search_plainly(plain, options.k, metric),
                },
                options.rounds,
            )
            looked = [
                after.num_looked_at_again - before
                for after, before in zip(opened._shards, looked, strict=True)
            ]
            share = sum(looked) / (options.rounds + 1) / len(vectors) / len(looked)
        ratio = seconds["exact"] / seconds["plain"]
        rows.append(
            {"metric": metric, "wrong": wrong, "looked_at_again": share, "seconds": seconds, "ratio": ratio}
        )
        print(
            f"| {metric} | {wrong[0]} | {wrong[1]} | {wrong[2]} | {share:.0%} | {seconds['exact']:.2f} | {ratio:.2f} |"
        )
    report = {
        "benchmark": "check_exact",
        "options": {name: str(value) for name, value in vars(options).items()},
        "rows": rows,
        "machine": {"cpu": platform.processor() or platform.machine()},
        "versions": {
            "python": platform.python_version(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
        },
    }
    print("\n" + json.dumps(report))
    return int(any(sum(row["wrong"]) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
