"""Flat against IVF as the gallery grows: plain search and mining, with the exponent of cost in N.

    python benchmarks/bench_index_ivf.py --nums 10000 20000 50000 100000 200000 --threads 2

Vectors are a mixture of Gaussians, so close together that the nearest neighbour is of the own class 4 times in 5. IVF
is tuned to a recall@k against the exact neighbours before it is timed (`fsl-dist index tune`), and its recall is
measured again on other queries. A plain FAISS search is shown for comparison. All are timed in turn, round after
round. Prints a Markdown table, then one JSON object; `--out` writes both.
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
from index.tune import store, tune
from index.writing.build import build


def draw_mixture(num: int, dim: int, classes: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors float32 [num, dim] with unit noise around centres of `spread` times unit noise, and labels int64
    [num]."""
    rng = np.random.default_rng(0)
    centers = spread * rng.standard_normal((classes, dim))
    labels = rng.integers(0, classes, num)
    return (centers[labels] + rng.standard_normal((num, dim))).astype(np.float32), labels


def find_spread(num: int, dim: int, classes: int, wanted: float) -> float:
    """The spread at which the nearest neighbour is of the own class with probability `wanted`, by bisection."""
    low, high = 0.0, 2.0
    for _ in range(8):
        middle = (low + high) / 2
        vectors, labels = draw_mixture(num, dim, classes, middle)
        nearest = search_plainly(vectors[:1000], vectors, 2)[:, 1]
        low, high = (low, middle) if (labels[nearest] == labels[:1000]).mean() > wanted else (middle, high)
    return (low + high) / 2


def search_plainly(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """FAISS's exact search by the matrix product: ids int64 [n, k]."""
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = 1
    try:
        return faiss.knn(queries, vectors, k)[1]
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def recall_of(found: np.ndarray, true: np.ndarray) -> float:
    """Share of the true ids found; both int64 [n, k]."""
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


def measure(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, run in work.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def fit_exponent(nums: list[int], seconds: list[float]) -> float | None:
    """b of seconds ≈ a · N^b, by least squares of the logarithms; None for a single N."""
    if len(nums) < 2:
        return None
    return float(np.polyfit(np.log(nums), np.log(seconds), 1)[0])


def measure_one(num: int, spread: float, options: argparse.Namespace) -> dict:
    """All searches at one N."""
    k, m = options.k, options.num_other
    vectors, labels = draw_mixture(num, options.dim, options.classes, spread)
    rng = np.random.default_rng(1)
    rows = np.sort(rng.choice(num, min(options.queries, num), replace=False))
    ids = np.arange(num, dtype=np.int64)
    with tempfile.TemporaryDirectory() as folder:
        opened: dict[str, LocalIndex] = {}
        seconds_to_build = {}
        for kind in ("flat", "ivf_flat"):
            start = time.perf_counter()
            build(Path(folder) / kind, vectors, labels, config=IndexConfig(kind=kind))
            seconds_to_build[kind] = time.perf_counter() - start
            opened[kind] = open_index(Path(folder) / kind)
        tuning = tune(opened["ivf_flat"], options.recall, k, sample=options.sample)
        store(opened["ivf_flat"], tuning.chosen.parameters)
        opened["ivf_flat"] = open_index(Path(folder) / "ivf_flat")
        own = {"query_ids": ids[rows]}
        flat, ivf = (opened[kind].search(vectors[rows], k, **own) for kind in opened)
        is_own_class = labels[flat.ids[:, 0]] == labels[rows]
        mined = [opened[kind].neighbours(vectors[rows], labels[rows], ids[rows], k, m) for kind in opened]
        work: dict[str, Callable[[], object]] = {
            "faiss": lambda: search_plainly(vectors[rows], vectors, k + 1),
            "flat search": lambda: opened["flat"].search(vectors[rows], k, **own),
            "ivf search": lambda: opened["ivf_flat"].search(vectors[rows], k, **own),
            "flat mining": lambda: opened["flat"].neighbours(vectors[rows], labels[rows], ids[rows], k, m),
            "ivf mining": lambda: opened["ivf_flat"].neighbours(vectors[rows], labels[rows], ids[rows], k, m),
        }
        seconds = measure(work, options.rounds)
    # A query's cost times N: what all against all would take.
    scale = num / len(rows)
    medians = {name: scale * statistics.median(values) for name, values in seconds.items()}
    return {
        "num": num,
        "num_queries": len(rows),
        "factory": opened["ivf_flat"].manifest.factory,
        "parameters": opened["ivf_flat"].parameters,
        "accuracy_of_nearest": float(is_own_class.mean()),
        "recall_search": recall_of(ivf.ids, flat.ids),
        "recall_other_class": recall_of(mined[1].other_ids, mined[0].other_ids),
        "seconds_to_build": seconds_to_build,
        "seconds_all_against_all": medians,
        "search_faster": medians["flat search"] / medians["ivf search"],
        "mining_faster": medians["flat mining"] / medians["ivf mining"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nums", type=int, nargs="+", default=[10000, 20000, 50000, 100000, 200000])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--classes", type=int, default=2000, help="Gaussians")
    parser.add_argument(
        "--accuracy", type=float, default=0.8, help="of the nearest neighbour, at the largest N"
    )
    parser.add_argument("--spread", type=float, help="of the centres; found by --accuracy if left out")
    parser.add_argument("--k", type=int, default=5, help="neighbours, and same-class ones of mining")
    parser.add_argument("--num-other", type=int, default=5, help="other-class neighbours of mining")
    parser.add_argument(
        "--recall", type=float, default=0.96, help="that IVF is tuned to, a little above 0.95"
    )
    parser.add_argument("--sample", type=int, default=1000, help="queries of tuning")
    parser.add_argument(
        "--queries", type=int, default=20000, help="timed, at most; times are scaled to all against all"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="write OUT.md and OUT.json too")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    spread = options.spread or find_spread(max(options.nums), options.dim, options.classes, options.accuracy)
    rows = [measure_one(num, spread, options) for num in options.nums]
    names = list(rows[0]["seconds_all_against_all"])
    lines = [
        "| N | 1-NN accuracy | nprobe | recall@k | recall, other class | "
        + " | ".join(f"{name}, s" for name in names)
        + " | IVF search faster | IVF mining faster |",
        "|" + " ---: |" * (7 + len(names)),
    ]
    for row in rows:
        times = " | ".join(f"{row['seconds_all_against_all'][name]:.2f}" for name in names)
        lines.append(
            f"| {row['num']} | {row['accuracy_of_nearest']:.3f} | {row['parameters']['nprobe']} | "
            f"{row['recall_search']:.3f} | {row['recall_other_class']:.3f} | {times} | "
            f"{row['search_faster']:.1f} x | {row['mining_faster']:.1f} x |"
        )
    exponents = {
        name: fit_exponent(options.nums, [row["seconds_all_against_all"][name] for row in rows])
        for name in names
    }
    shown = ", ".join(f"{name} {value:.2f}" for name, value in exponents.items() if value is not None)
    lines.append(
        f"\nSeconds for all against all; exponent of N: {shown or 'one N has none'}. Spread {spread:.4f}."
    )
    report = {
        "benchmark": "index_ivf",
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
        "spread": spread,
        "rows": rows,
        "exponents": exponents,
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {
            "python": platform.python_version(),
            "faiss": faiss.__version__,
            "numpy": np.__version__,
        },
    }
    print("\n".join(lines))
    print("\n" + json.dumps(report))
    if options.out is not None:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
