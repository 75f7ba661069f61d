"""What building an index as a job costs: against plain FAISS for vectors, against embedding alone for images.

    python benchmarks/bench_index_build.py --num 200000 --dim 256 --kind flat --shards 4
    python benchmarks/bench_index_build.py --run runs/mine --dataset data/mine

Every piece of work is a process of its own, so that its peak memory is its own; the works take turns, round after
round, so that a noisy machine is noisy for all. Plain FAISS reads the same .npy file, sorts its rows by label,
trains, adds and writes one index; its fastest case does not force it to the disk. Prints a Markdown table, then one
JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

# Each script prints one JSON object. Its peak is of what the process holds itself (anonymous memory, sampled), beyond
# what it held once everything was imported and opened: pages of mapped files are the system's to take back.
_MEASURE = """
import json, sys, threading, time
def held():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
class Measured:
    def __enter__(self):
        self.before = self.most = held()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        self.start = time.perf_counter()
        return self
    def watch(self):
        while not self.over.wait(0.01):
            self.most = max(self.most, held())
    def __exit__(self, *_):
        seconds = time.perf_counter() - self.start
        self.over.set()
        self.thread.join()
        print(json.dumps({"seconds": seconds, "peak_bytes": self.most - self.before}))
"""
_JOB = """
from pathlib import Path
import faiss
from index.base.settings import parse_overrides, validate
from index.config import IndexConfig
from index.writing.vector_files import build_from_files
vectors, labels, out = map(Path, sys.argv[1:4])
config = validate(IndexConfig, parse_overrides(sys.argv[4:]), "the arguments")
with Measured():
    build_from_files(out, vectors, str(labels), None, config)
"""
_PLAIN = """
import faiss, numpy as np
vectors, labels, out, factory, metric = sys.argv[1:6]
with Measured():
    order = np.argsort(np.load(labels), kind="stable")
    rows = np.load(vectors)[order]
    index = faiss.index_factory(rows.shape[1], factory, faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)
    if not index.is_trained:
        drawn = np.random.default_rng(0).choice(len(rows), min(len(rows), int(sys.argv[6])), replace=False)
        index.train(rows[drawn])
    index.add(rows)
    faiss.write_index(index, out)
"""
_IMAGES = """
from pathlib import Path
import fsl_dist.indexing as indexing
from index.config import IndexConfig
run, dataset, out, config = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), IndexConfig(shards=int(sys.argv[4]))
with Measured():
    indexing.build_from_run(run, dataset, out, config)
"""
_EMBED = """
from pathlib import Path
import numpy as np
import fsl_dist.indexing as indexing
with Measured():
    # The same images as the build takes, in one go, and written to a file.
    embed = indexing.EmbedSamples.open(Path(sys.argv[1]), Path(sys.argv[2]))
    np.save(sys.argv[3], embed(embed.trained.catalogue.select(indexing.SPLIT).ids))
"""


def measure(script: str, *arguments: object) -> dict[str, float]:
    """Run a script in a process of its own; its measures."""
    command = [sys.executable, "-c", _MEASURE + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def largest_shard_bytes(out: Path) -> int:
    """The largest shard of a version: its vectors, or its FAISS index where that is larger."""
    return max(path.stat().st_size for path in out.rglob("shard-*"))


def compare_vectors(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The job and plain FAISS on the same file of vectors."""
    rng = np.random.default_rng(0)
    vectors, labels = folder / "X.npy", folder / "Y.npy"
    np.save(vectors, rng.standard_normal((options.num, options.dim), dtype=np.float32))
    np.save(labels, rng.integers(0, 200, options.num))
    settings = [
        f"kind={options.kind}",
        f"shards={options.shards}",
        f"metric={options.metric}",
        *options.settings,
    ]
    taken: dict[str, list[dict[str, float]]] = {"job": [], "plain FAISS": []}
    factory, shard_bytes = "Flat", 0
    for turn in range(options.rounds):
        out = folder / f"out-{turn}"
        taken["job"].append(measure(_JOB, vectors, labels, out, *settings))
        manifest = json.loads(next(out.rglob("manifest.json")).read_text())
        factory, shard_bytes = manifest["factory"], largest_shard_bytes(out)
        taken["plain FAISS"].append(
            measure(
                _PLAIN, vectors, labels, folder / "plain.faiss", factory, options.metric, options.train_size
            )
        )
    return summarise(taken, "job", "plain FAISS", options.num, shard_bytes) | {"factory": factory}


def compare_images(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """The job and embedding alone on the same data set."""
    taken: dict[str, list[dict[str, float]]] = {"job": [], "embedding alone": []}
    num, shard_bytes = 0, 0
    for turn in range(options.rounds):
        out = folder / f"out-{turn}"
        taken["job"].append(measure(_IMAGES, options.run, options.dataset, out, options.shards))
        num, shard_bytes = (
            json.loads(next(out.rglob("manifest.json")).read_text())["num_vectors"],
            largest_shard_bytes(out),
        )
        taken["embedding alone"].append(measure(_EMBED, options.run, options.dataset, folder / "alone.npy"))
    return summarise(taken, "job", "embedding alone", num, shard_bytes)


def summarise(
    taken: dict[str, list[dict[str, float]]], job: str, peer: str, num: int, shard_bytes: int
) -> dict[str, object]:
    """Medians of both, printed as a table."""
    seconds = {name: statistics.median(m["seconds"] for m in measures) for name, measures in taken.items()}
    peaks = {name: max(m["peak_bytes"] for m in measures) for name, measures in taken.items()}
    print("| build | seconds (median) | vectors/s | peak memory, of the largest shard |")
    print("| --- | ---: | ---: | ---: |")
    for name in taken:
        print(
            f"| {name} | {seconds[name]:.2f} | {num / seconds[name]:.0f} | {peaks[name] / shard_bytes:.2f} |"
        )
    print(f"\nthroughput of the {job} against {peer}: {seconds[peer] / seconds[job]:.2f}")
    return {
        "num_vectors": num,
        "largest_shard_bytes": shard_bytes,
        "measured": taken,
        "throughput_ratio": seconds[peer] / seconds[job],
        "peak_of_largest_shard": peaks[job] / shard_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, default=200_000, help="vectors")
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--kind", default="flat")
    parser.add_argument("--metric", default="l2")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--train-size", type=int, default=65_536, help="vectors that plain FAISS trains on")
    parser.add_argument("--run", type=Path, help="a trained run: images instead of vectors, with --dataset")
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("settings", nargs="*", help="further settings of the index, such as nlist=1024")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare = compare_images if options.run else compare_vectors
        report = compare(options, Path(folder))
    report |= {
        "benchmark": "index_build",
        "options": {name: str(value) for name, value in vars(options).items()},
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    print("\n" + json.dumps(report))


if __name__ == "__main__":
    main()
