"""Shards as Ray actors against the same index in one process: queries per second, what a lone query waits, small
clients.

    python benchmarks/bench_index_actors.py --num 200000 --dim 256

Two actors of one thread each against one process of two threads: `LocalIndex`, and FAISS's own flat search without
re-ranking, by its default choice of kernel and with the matrix product from one query on. All are timed in turn, round
after round, so that a noisy machine is noisy for all. Then clients with one query at a time, by threads, on actors that
join what waits and on actors that do not. Prints Markdown tables, then one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from fsl_dist.training.ray.session import ray_session
from index.actors.client import RayIndex, open_ray_index
from index.config import IndexConfig
from index.search import ShardedIndex, open_index
from index.writing.build import build


def search_plainly(flat: faiss.IndexFlatL2, queries: np.ndarray, k: int, threshold: int) -> None:
    """FAISS's exact search, with the given threshold of its matrix product."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = threshold
    try:
        flat.search(queries, k)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def measure(work: dict[str, Callable[[], object]], rounds: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, interleaved; the first round warms up and is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            for _ in range(repeats):
                start = time.perf_counter()
                run()
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def ask_one_by_one(
    opened: ShardedIndex, queries: np.ndarray, k: int, clients: int, for_s: float
) -> dict[str, float]:
    """`clients` threads, each with one query at a time, for so long: queries per second, and the median's seconds."""
    end = time.perf_counter() + for_s
    seconds: list[list[float]] = [[] for _ in range(clients)]

    def ask(client: int) -> None:
        row = client
        while (start := time.perf_counter()) < end:
            opened.search(queries[row : row + 1], k)
            seconds[client].append(time.perf_counter() - start)
            row = (row + clients) % len(queries)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = [value for client in seconds for value in client]
    return {"queries_per_s": len(every) / for_s, "median_s": statistics.median(every)}


def small_clients(
    joining: RayIndex, alone: RayIndex, local: ShardedIndex, queries: np.ndarray, options: argparse.Namespace
) -> dict[str, dict[str, dict[str, float]]]:
    """Queries per second and median seconds, by number of clients and who searched; the median of the rounds."""
    searched = {"actors that join": joining, "actors that do not": alone, "one process": local}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for clients in options.clients:
        rounds: dict[str, list[dict[str, float]]] = {name: [] for name in searched}
        for _ in range(options.rounds):
            for name, opened in searched.items():
                rounds[name].append(ask_one_by_one(opened, queries, options.k, clients, options.for_s))
        found[str(clients)] = {
            name: {key: statistics.median(r[key] for r in results) for key in results[0]}
            for name, results in rounds.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=200000, help="vectors")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--for-s", type=float, default=5.0, help="seconds of each run of small clients")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    faiss.omp_set_num_threads(2)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((options.num, options.dim), dtype=np.float32)
    queries = rng.standard_normal((max(1024, *options.batches), options.dim), dtype=np.float32)
    labels = np.sort(rng.integers(0, 200, options.num))
    flat = faiss.IndexFlatL2(options.dim)
    flat.add(vectors)
    k = options.k
    with tempfile.TemporaryDirectory() as folder, ray_session(2):
        version = build(Path(folder), vectors, labels, config=IndexConfig(shards=2))
        del vectors
        local = open_index(version)
        settings = {"num_actors": 2, "num_cpus": 0.5}  # two sets of two actors; each searches by one thread
        # Actors are found by path: the index and its version's folder make two sets.
        with (
            open_ray_index(Path(folder), **settings) as remote,
            open_ray_index(version, max_batch=1, **settings) as alone,
        ):
            expected = local.search(queries, k)
            assert np.array_equal(remote.search(queries, k).ids, expected.ids)
            batches = {}
            for batch in options.batches:
                part = queries[:batch]
                work: dict[str, Callable[[], object]] = {
                    "FAISS, default": lambda part=part: search_plainly(flat, part, k, 128000),
                    "FAISS, matrix product": lambda part=part: search_plainly(flat, part, k, 1),
                    "one process, 2 threads": lambda part=part: local.search(part, k),
                    "2 actors of 1 thread": lambda part=part: remote.search(part, k),
                }
                batches[batch] = measure(work, options.rounds, max(1, 32 // batch))
            clients = small_clients(remote, alone, local, queries, options)
    print(
        "| batch | search | ms (median) | queries/s | actors' queries/s to this |\n| ---: | --- | ---: | ---: | ---: |"
    )
    for batch, seconds in batches.items():
        actors = statistics.median(seconds["2 actors of 1 thread"])
        for name, values in seconds.items():
            median = statistics.median(values)
            print(f"| {batch} | {name} | {median * 1e3:.1f} | {batch / median:.1f} | {median / actors:.2f} |")
    print("\n| clients of one query | search | queries/s | ms (median) |\n| ---: | --- | ---: | ---: |")
    for number, results in clients.items():
        for name, result in results.items():
            print(f"| {number} | {name} | {result['queries_per_s']:.1f} | {result['median_s'] * 1e3:.1f} |")
    report = {
        "benchmark": "index_actors",
        "options": vars(options),
        "seconds_of_batch": batches,
        "small_clients": clients,
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
