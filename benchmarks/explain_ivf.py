"""Why clusters pay so little on a mixture of Gaussians that overlap: what a query must look at, and what that costs.

    python benchmarks/explain_ivf.py --num 200000 --threads 2

`bench_index_ivf.py`'s mixture. First, how many vectors must be compared to find the neighbours, with k-means
clusters and with the true ones. Then seconds of ways to compare them: FAISS's own IVF search, the same pairs by
matrix products over the queries that share a cluster, and codes. Prints Markdown tables, then one JSON object.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from bench_index_ivf import draw_mixture, recall_of, search_plainly
from faiss.contrib.big_batch_search import big_batch_search

from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build


def share_visited(
    centers: np.ndarray, vectors: np.ndarray, queries: np.ndarray, true: np.ndarray, recall: float
) -> tuple[int, float]:
    """(clusters, share of all vectors) that queries must look into to find this share of their true neighbours."""
    index = faiss.IndexFlatL2(vectors.shape[1])
    index.add(centers)
    own = index.search(vectors, 1)[1][:, 0]
    order = index.search(queries, len(centers))[1]
    rank = np.argsort(order, axis=1)
    found = np.take_along_axis(rank, own[true], axis=1)
    num = int(np.sort(found, axis=None)[int(np.ceil(recall * found.size)) - 1]) + 1
    sizes = np.bincount(own, minlength=len(centers))
    return num, float(sizes[order[:, :num]].sum(axis=1).mean() / len(vectors))


def timed(run: Callable[[], np.ndarray]) -> tuple[np.ndarray, float]:
    """What `run` gives, and its seconds."""
    start = time.perf_counter()
    found = run()
    return found, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=2000, help="Gaussians")
    parser.add_argument(
        "--spread", type=float, default=0.4883, help="of their centres, as bench_index_ivf finds it"
    )
    parser.add_argument("--queries", type=int, default=16384)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    vectors, labels = draw_mixture(options.num, options.dim, options.classes, options.spread)
    vectors -= vectors.mean(axis=0)
    queries = vectors[: options.queries].copy()
    k = options.k + 1  # each query finds itself first
    found, flat_s = timed(lambda: search_plainly(queries, vectors, k))
    true = found[:, 1:]

    nlist = int(4 * options.num**0.5)
    ivf = faiss.index_factory(options.dim, f"IVF{nlist},Flat")
    ivf.cp.max_points_per_centroid = 112
    ivf.train(vectors)
    ivf.add(vectors)
    centers = ivf.quantizer.reconstruct_n(0, nlist)
    means = np.stack([vectors[labels == c].mean(axis=0) for c in np.unique(labels)])
    few = queries[:2000]
    visited = {
        "k-means": share_visited(centers, vectors, few, true[:2000], options.recall),
        "the true Gaussians": share_visited(means, vectors, few, true[:2000], options.recall),
    }
    ivf.nprobe = visited["k-means"][0]

    def grouped() -> np.ndarray:
        with contextlib.redirect_stdout(io.StringIO()):
            return big_batch_search(ivf, queries, k, method="pairwise_distances", threaded=0)[1]

    ways = {
        "IVF, FAISS's search": timed(lambda: ivf.search(queries, k)[1]),
        "IVF, matrix products over queries that share a cluster": timed(grouped),
    }
    for name, num in (("PQ64x4fs", 800), ("PQ128x4fs", 100)):
        codes = faiss.index_factory(options.dim, name)
        codes.train(vectors[:60_000])
        codes.add(vectors)
        ways[f"{name}, {num} candidates, not yet judged"] = timed(
            lambda codes=codes, num=num: codes.search(queries, num)[1]
        )
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in (
            ("index kind=flat", {}),
            ("index kind=factory factory=PQ128x4fs k_factor=16", {"factory": "PQ128x4fs", "k_factor": 16}),
        ):
            config = IndexConfig(kind="factory" if settings else "flat", **settings)
            opened = open_index(build(Path(folder) / name, vectors, labels, config=config), verify=False)
            opened.search(queries[:8], k)  # the first search makes what is kept in memory
            ways[name] = timed(lambda opened=opened: opened.search(queries, k).ids)
    lines = [
        f"Recall@{options.k} {options.recall:g}, {options.num:,} vectors, {len(queries):,} queries, "
        f"{options.threads} thread(s).",
        "",
        "| clusters | looked into | vectors looked at |",
        "| --- | ---: | ---: |",
        *(f"| {name} | {num} | {share:.0%} |" for name, (num, share) in visited.items()),
        "",
        "| way | s | faster than flat | recall |",
        "| --- | ---: | ---: | ---: |",
        f"| flat, FAISS's matrix product | {flat_s:.2f} | 1.0 | 1.000 |",
    ]
    recalls = {}
    for name, (ids, seconds) in ways.items():
        recalls[name] = recall_of(ids, true)
        lines.append(f"| {name} | {seconds:.2f} | {flat_s / seconds:.1f} | {recalls[name]:.3f} |")
    print("\n".join(lines))
    print()
    print(
        json.dumps(
            {
                "benchmark": "explain_ivf",
                "options": vars(options),
                "visited": visited,
                "flat_s": flat_s,
                "seconds": {name: seconds for name, (_, seconds) in ways.items()},
                "recall": recalls,
                "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
                "versions": {"python": platform.python_version(), "faiss": faiss.__version__},
            }
        )
    )


if __name__ == "__main__":
    main()
