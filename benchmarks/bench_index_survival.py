"""What clients notice while replicas are killed and versions change: failed and wrong answers, the longest wait.

    python benchmarks/bench_index_survival.py --num 20000 --dim 64

4 client threads search without pause; every answer is compared with one process's of the same version. Events, each
with `--for-s` seconds of load: nothing; kill -9 of one replica of each part; a publish; a rollback, all with two
replicas; then kill -9 of a part's only replica. Prints a Markdown table, then one JSON object.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from fsl_dist.training.ray.session import ray_session
from index import changes
from index.actors.client import RayIndex, open_ray_index
from index.actors.replicas import NAMESPACE
from index.config import IndexConfig
from index.search import SearchResult, open_index
from index.writing.build import build

NUM_CLIENTS = 4


class Load:
    """Client threads that search without pause, and what became of their queries since the last `take`."""

    def __init__(self, remote: RayIndex, queries: np.ndarray, k: int) -> None:
        self.remote = remote
        self.expected: dict[int, SearchResult] = {}
        self._queries, self._k = queries, k
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done: list[tuple[float, str]] = []
        self._turns = dict.fromkeys(range(NUM_CLIENTS), 0)
        self._threads = [threading.Thread(target=self._ask, args=(client,)) for client in range(NUM_CLIENTS)]

    def know(self, path: Path) -> None:
        """Learn the right answers of the current version."""
        local = open_index(path)
        self.expected[local.manifest.version] = local.search(self._queries, self._k)

    def start(self) -> None:
        """Let the clients begin."""
        for thread in self._threads:
            thread.start()

    def finish_queries(self) -> None:
        """Wait until every query that is under way now has ended: it belongs to the event that delayed it."""
        before = dict(self._turns)
        while any(self._turns[client] == turn for client, turn in before.items()):
            time.sleep(0.01)

    def stop(self) -> None:
        """Let each client finish its query and end."""
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def take(self) -> dict[str, float]:
        """What became of the queries that were finished since the last call."""
        with self._lock:
            done, self._done = self._done, []
        seconds = [value for value, _ in done]
        return {
            "queries": len(done),
            "failed": sum(how == "failed" for _, how in done),
            "wrong": sum(how == "wrong" for _, how in done),
            "median_s": statistics.median(seconds) if seconds else 0.0,
            "longest_s": max(seconds, default=0.0),
        }

    def _ask(self, client: int) -> None:
        rng = np.random.default_rng(client)
        while not self._stop.is_set():
            first = int(rng.integers(0, len(self._queries) - 8))
            rows = slice(first, first + int(rng.integers(1, 9)))
            remote = self.remote
            start = time.perf_counter()
            try:
                found = remote.search(self._queries[rows], self._k)
                right = self.expected[remote.manifest.version]
                is_same = np.array_equal(found.ids, right.ids[rows]) and not found.missing_shards
                how = "right" if is_same else "wrong"
            except Exception as error:
                print(f"failed: {error}")
                how = "failed"
            with self._lock:
                self._done.append((time.perf_counter() - start, how))
                self._turns[client] += 1


def kill(path: Path, part: int, num_parts: int) -> None:
    """kill -9 of the first replica of a part, counted from 1."""
    import ray

    actor = ray.get_actor(f"{path}, part {part} of {num_parts}, replica 1", NAMESPACE)
    os.kill(ray.get(actor.ping.remote()), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=20000, help="vectors")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--for-s", type=float, default=15.0, help="seconds of load for each event")
    options = parser.parse_args()
    faiss.omp_set_num_threads(1)

    def publish(seed: int) -> None:
        rng = np.random.default_rng(seed)
        vectors = rng.standard_normal((options.num, options.dim), dtype=np.float32)
        build(out, vectors, rng.integers(0, 50, options.num), config=IndexConfig(shards=2))

    def publish_and_switch() -> None:
        publish(1)
        load.know(out)
        load.remote = load.remote.refresh()

    def roll_back() -> None:
        changes.roll_back(out, 1)
        load.remote = load.remote.refresh()

    queries = np.random.default_rng(9).standard_normal((256, options.dim), dtype=np.float32)
    events: dict[int, dict[str, Callable[[], object]]] = {
        2: {
            "nothing": lambda: None,
            "kill -9 of one replica of part 1": lambda: kill(out, 1, 2),
            "kill -9 of one replica of part 2": lambda: kill(out, 2, 2),
            "publish, readers switch": publish_and_switch,
            "rollback, readers switch": roll_back,
        },
        1: {
            "nothing": lambda: None,
            "kill -9 of the only replica of part 1": lambda: kill(out, 1, 2),
        },
    }
    results: list[tuple[int, str, dict[str, float]]] = []
    with ray_session(4):
        for replicas, named in events.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / "index"
                publish(0)
                with open_ray_index(out, num_actors=2, replicas=replicas, num_cpus=0.5) as remote:
                    load = Load(remote, queries, options.k)
                    load.know(out)
                    load.start()
                    for event, happen in named.items():
                        load.take()
                        happen()
                        time.sleep(options.for_s)
                        load.finish_queries()
                        results.append((replicas, event, load.take()))
                    load.stop()
    print("| replicas | event | queries | failed | wrong | median ms | longest wait s |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: |")
    for replicas, event, result in results:
        print(
            f"| {replicas} | {event} | {result['queries']:.0f} | {result['failed']:.0f} | {result['wrong']:.0f} "
            f"| {result['median_s'] * 1e3:.1f} | {result['longest_s']:.2f} |"
        )
    report = {
        "benchmark": "index_survival",
        "options": vars(options),
        "num_clients": NUM_CLIENTS,
        "events": [{"replicas": n, "event": event, **result} for n, event, result in results],
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "faiss": faiss.__version__},
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
