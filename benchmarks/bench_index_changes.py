"""What changes cost: taking a batch, opening an index that has many, and searching before they are merged.

    python benchmarks/bench_index_changes.py --num 100000 --dim 128

Searches of the index as built, changed by 1 % and by 10 %, and merged are timed in turn, round after round. Prints a
Markdown table, then one JSON object; `--out` writes both.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np

from index.config import IndexConfig
from index.search import open_index
from index.writing.build import build
from index.writing.merging import merge
from index.writing.writer import IndexWriter


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--kind", default="flat")
    parser.add_argument("--batch", type=int, default=256, help="queries at once")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--small", type=int, default=1000, help="batches of one vector")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="also write OUT.md and OUT.json")
    options = parser.parse_args()
    faiss.omp_set_num_threads(options.threads)
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((options.num, options.dim), dtype=np.float32)
    labels = rng.integers(0, 200, options.num)
    config = IndexConfig(kind=options.kind)
    with tempfile.TemporaryDirectory() as folder:
        one_by_one = Path(folder) / "one-by-one"
        build(one_by_one, vectors[:1000], labels[:1000])
        writer = IndexWriter(one_by_one)
        taking = []
        for row in range(options.small):
            start = time.perf_counter()
            writer.add(vectors[row : row + 1], labels[row : row + 1])
            taking.append(time.perf_counter() - start)
        start = time.perf_counter()
        open_index(one_by_one, verify=False)
        reading = time.perf_counter() - start
        opened = {}
        build(Path(folder) / "as built", vectors, labels, config=config)
        opened["as built"] = open_index(Path(folder) / "as built")
        share = seconds_of_large = 0.0
        for share in (0.01, 0.1):
            num = int(share * options.num)
            for what in ("added", "removed"):
                out = Path(folder) / f"{share:.0%} {what}"
                build(out, vectors, labels, config=config)
                if what == "added":
                    new = rng.standard_normal((num, options.dim), dtype=np.float32)
                    start = time.perf_counter()
                    IndexWriter(out).add(new, labels[:num])
                    seconds_of_large = time.perf_counter() - start
                else:
                    IndexWriter(out).remove(rng.choice(options.num, num, replace=False))
                opened[out.name] = open_index(out)
        start = time.perf_counter()
        merge(out)
        merging = time.perf_counter() - start
        opened["10% removed, merged"] = open_index(out)
        queries = rng.standard_normal((options.batch, options.dim), dtype=np.float32)
        seconds: dict[str, list[float]] = {name: [] for name in opened}
        for turn in range(options.rounds + 1):
            for name, index in opened.items():
                start = time.perf_counter()
                index.search(queries, options.k)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    num_large = int(0.1 * options.num)
    lines = [
        f"{options.num:,} x {options.dim}, {options.kind}, {options.batch} queries, k = {options.k}, "
        f"{options.threads} thread(s)",
        "",
        "| search | ms | of the index as built |",
        "| --- | ---: | ---: |",
        *(
            f"| {name} | {1e3 * value:.1f} | {value / medians['as built']:.2f} |"
            for name, value in medians.items()
        ),
        "",
        "| change | s |",
        "| --- | ---: |",
        f"| a batch of 1 vector, median | {statistics.median(taking):.4f} |",
        f"| a batch of {num_large:,} vectors | {seconds_of_large:.2f} |",
        f"| opening an index with {options.small:,} batches of 1 vector | {reading:.2f} |",
        f"| merging 10% removed | {merging:.2f} |",
    ]
    result = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cores": os.cpu_count(), "processor": platform.processor() or platform.machine()},
        "versions": {"python": platform.python_version(), "faiss": faiss.__version__},
        "search_s": seconds,
        "batch_of_one_s": {"median": statistics.median(taking), "longest": max(taking)},
        "batch_of_many_s": seconds_of_large,
        "open_many_batches_s": reading,
        "merge_s": merging,
    }
    text = "\n".join(lines)
    print(text)
    print(json.dumps(result))
    if options.out:
        options.out.with_suffix(".md").write_text(text + "\n", "utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
