"""An index over HTTP against the same search in process: requests a second and median latency, by JSON and by raw
bytes.

    python benchmarks/bench_index_serve.py --num 100000 --dim 256 --cpus 2

`fsl-dist index serve` with one replica of `--cpus` threads, asked over kept-alive connections, and `LocalIndex` with
as many threads; all in turn, round after round, so that a noisy machine is noisy for all. A client makes its
request's bytes before the clock runs and reads the answer into arrays while it does. Prints a Markdown table, then
one JSON object.
"""

import argparse
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.writing.build import build

RAW = "application/octet-stream"


class Asker:
    """One client of the service, over one connection."""

    def __init__(self, port: int, queries: np.ndarray, k: int, *, is_raw: bool) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self.is_raw = is_raw
        self.shape = (len(queries), k)
        self.path = f"/search?k={k}" if is_raw else "/search"
        self.body = (
            queries.astype("<f4").tobytes()
            if is_raw
            else json.dumps({"queries": queries.tolist(), "k": k}).encode()
        )
        self.headers = (
            {"Content-Type": RAW, "Accept": RAW} if is_raw else {"Content-Type": "application/json"}
        )

    def __call__(self) -> np.ndarray:
        """Ids of one answer."""
        self.connection.request("POST", self.path, self.body, self.headers)
        response = self.connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body[:200]!r}")
        if self.is_raw:
            return np.frombuffer(body, "<i8", self.shape[0] * self.shape[1]).reshape(self.shape)
        return np.array(json.loads(body)["ids"])


def ask_for(askers: list[Callable[[], object]], for_s: float) -> list[float]:
    """Seconds of each request while as many clients as there are askers ask for so long."""
    end = time.perf_counter() + for_s
    seconds: list[list[float]] = [[] for _ in askers]

    def ask(client: int) -> None:
        while (start := time.perf_counter()) < end or not seconds[client]:
            askers[client]()
            seconds[client].append(time.perf_counter() - start)

    threads = [threading.Thread(target=ask, args=(client,)) for client in range(len(askers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [value for of_client in seconds for value in of_client]


def measure(
    port: int, local: LocalIndex, queries: np.ndarray, options: argparse.Namespace
) -> list[dict[str, object]]:
    """A row for each number of clients, batch and way to ask."""
    rows: list[dict[str, object]] = []
    for clients in options.clients:
        for batch in options.batches:
            part = queries[:batch]
            ways: dict[str, list[Callable[[], object]]] = {
                "in process": [lambda part=part: local.search(part, options.k)] * clients,
                "JSON": [Asker(port, part, options.k, is_raw=False) for _ in range(clients)],
                "raw": [Asker(port, part, options.k, is_raw=True) for _ in range(clients)],
            }
            expected = local.search(part, options.k).ids
            for name in ("JSON", "raw"):
                assert np.array_equal(ways[name][0](), expected)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(options.rounds):
                for name, askers in ways.items():
                    seconds[name] += ask_for(askers, options.for_s)
            for name, values in seconds.items():
                per_s = len(values) / (options.rounds * options.for_s)
                rows.append(
                    {
                        "clients": clients,
                        "batch": batch,
                        "way": name,
                        "requests_per_s": per_s,
                        "queries_per_s": per_s * batch,
                        "median_s": statistics.median(values),
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=100000, help="vectors")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4])
    parser.add_argument(
        "--cpus", type=int, default=2, help="threads of the service, and of the search in process"
    )
    parser.add_argument("--actors", type=int, default=0, help="as of index serve")
    parser.add_argument("--for-s", type=float, default=3.0, help="seconds of each way, a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.cpus)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((options.num, options.dim), dtype=np.float32)
    queries = rng.standard_normal((max(options.batches), options.dim), dtype=np.float32)
    labels = np.sort(rng.integers(0, 200, options.num))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), vectors, labels, config=IndexConfig(shards=max(1, options.actors)))
        del vectors
        local = open_index(Path(folder))
        command = [
            sys.executable,
            "-c",
            "from cluster.cli import main; main()",
            "index",
            "serve",
            folder,
            "--json",
        ]
        command += ["--port", str(port), "--cpus", str(options.cpus), "--actors", str(options.actors)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(options.cpus)}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as service:
            assert service.stdout is not None
            try:
                if not service.stdout.readline():
                    raise RuntimeError("the service did not start")
                rows = measure(port, local, queries, options)
            finally:
                service.send_signal(signal.SIGTERM)
    print("| clients | batch | search | requests/s | queries/s | ms (median) |")
    print("| ---: | ---: | --- | ---: | ---: | ---: |")
    for row in rows:
        numbers = f"{row['requests_per_s']:.1f} | {row['queries_per_s']:.0f} | {1e3 * row['median_s']:.1f}"  # type: ignore[operator]
        print(f"| {row['clients']} | {row['batch']} | {row['way']} | {numbers} |")
    report = {
        "benchmark": "index_serve",
        "options": vars(options),
        "rows": rows,
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
