"""What filtering costs: the mining call `neighbours` against one plain unfiltered search of all against all.

    python benchmarks/bench_mining_search.py --num 20000 --dim 128 --classes 200 --tail 1.0
    python benchmarks/bench_mining_search.py --classes 10 --norm 10 --spread 0.003    # tight classes far apart:
                                                                                      collapsed

The plain searches are FAISS's own, by its default choice of kernel and with the matrix product from one query
on. All are timed in turn, round after round, so that a noisy machine is noisy for all. Prints a Markdown table,
then one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.shard import Shard
from index.writing.build import build


def draw_long_tail(
    num: int, dim: int, classes: int, tail: float, spread: float = 1.0, norm: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [num, dim] around class centres, and labels int64 [num]; class c has a share c^-tail.

    spread: standard deviation of each number about its class's centre; norm: length of the centres, 0 for √dim about.
    """
    rng = np.random.default_rng(0)
    shares = np.arange(1, classes + 1, dtype=np.float64) ** -tail
    labels = np.concatenate([np.arange(classes), rng.choice(classes, num - classes, p=shares / shares.sum())])
    centers = rng.standard_normal((classes, dim))
    if norm:
        centers *= norm / np.linalg.norm(centers, axis=1, keepdims=True)
    vectors = centers[labels] + spread * rng.standard_normal((num, dim))
    return vectors.astype(np.float32), labels.astype(np.int64)


def search_plainly(vectors: np.ndarray, k: int, threshold: int) -> None:
    """FAISS's exact search of all against all, with the given threshold of its matrix product."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = threshold
    try:
        faiss.knn(vectors, vectors, k)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def search_by_class(vectors: np.ndarray, labels: np.ndarray, num_other: int) -> None:
    """The obvious exact way: for each class, all other rows copied together and searched."""
    for label in np.unique(labels):
        own = labels == label
        faiss.knn(vectors[own], vectors[~own], num_other)


class JudgingClock:
    """Seconds that shards spend judging candidates in float64, while this is in force."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> "JudgingClock":
        self._decide = decide = Shard._decide

        def clocked(shard: Shard, *arguments: object) -> object:
            start = time.perf_counter()
            try:
                return decide(shard, *arguments)
            finally:
                self.seconds += time.perf_counter() - start

        Shard._decide = clocked  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *_: object) -> None:
        Shard._decide = self._decide  # type: ignore[method-assign]


def measure(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, interleaved; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=20000, help="vectors")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--tail", type=float, default=1.0, help="class c has a share c^-tail")
    parser.add_argument("--spread", type=float, default=1.0, help="standard deviation about a class's centre")
    parser.add_argument("--norm", type=float, default=0.0, help="length of the centres; 0: √dim about")
    parser.add_argument("--metric", choices=("l2", "inner_product", "cosine"), default="l2")
    parser.add_argument("--num-same", type=int, default=5)
    parser.add_argument("--num-other", type=int, default=5)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors, labels = draw_long_tail(
        options.num, options.dim, options.classes, options.tail, options.spread, options.norm
    )
    ids = np.arange(options.num, dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), vectors, labels, config=IndexConfig(metric=options.metric, shards=options.shards))
        opened: LocalIndex = open_index(Path(folder))
        work: dict[str, Callable[[], object]] = {
            "plain search, FAISS default": lambda: search_plainly(vectors, options.num_other, 128000),
            "plain search, matrix product": lambda: search_plainly(vectors, options.num_other, 1),
            "class by class against the rest": lambda: search_by_class(vectors, labels, options.num_other),
            "all, exact": lambda: opened.search(vectors, options.num_other),
            "same class": lambda: opened.search(vectors, options.num_same, same_class=labels, query_ids=ids),
            "other class": lambda: opened.search(
                vectors, options.num_other, other_class=labels, query_ids=ids
            ),
            "neighbours (both)": lambda: opened.neighbours(
                vectors, labels, ids, options.num_same, options.num_other
            ),
        }
        seconds = measure(work, options.rounds)
        looked = [shard.num_looked_at_again for shard in opened._shards]
        work["all, exact"]()
        looked = [shard.num_looked_at_again - n for shard, n in zip(opened._shards, looked, strict=True)]
        with JudgingClock() as clock:
            start = time.perf_counter()
            work["neighbours (both)"]()
            judging = clock.seconds / (time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    plain = min(medians["plain search, FAISS default"], medians["plain search, matrix product"])
    print("| search | seconds (median) | of the best plain search |\n| --- | ---: | ---: |")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / plain:.2f} |")
    alone = medians["neighbours (both)"] * (1 - judging) / plain
    print(
        f"\nOf neighbours (both), {judging:.0%} of the time judges candidates in float64; without that {alone:.2f}."
    )
    share = sum(looked) / len(looked) / len(vectors)
    print(f"Of all, exact, {share:.0%} of the queries had no proof at first and were looked at again.")
    sizes = np.bincount(labels)
    report = {
        "benchmark": "mining_search",
        "options": vars(options),
        "class_sizes": {"smallest": int(sizes.min()), "largest": int(sizes.max())},
        "seconds": seconds,
        "share_of_judging": judging,
        "share_looked_at_again": share,
        "ratio_to_best_plain": {name: value / plain for name, value in medians.items()},
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
        },
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
