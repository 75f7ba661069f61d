"""What an epoch's first step waits for with mining.anchors=near: seconds and memory of the order of all anchors, on one core.

    python -m benchmarks.bench_near_order

Anchors lie in groups of 50, each with 10 neighbours: 9 of its group, one anywhere. Each number of anchors in a process of its
own. Prints a Markdown table.
"""

import subprocess
import sys
import time

import numpy as np

from benchmarks.suite.interleave import status_mb
from fsl_dist.samplers.near_order import near_order

_GROUP, _NEIGHBOURS = 50, 10


def make_neighbours(num: int) -> np.ndarray:
    """int64 [num, 10]: neighbours of each anchor."""
    rng = np.random.default_rng(0)
    near = (np.arange(num)[:, None] // _GROUP) * _GROUP + rng.integers(_GROUP, size=(num, _NEIGHBOURS - 1))
    return np.concatenate([near.clip(max=num - 1), rng.integers(num, size=(num, 1))], axis=1)


def main() -> None:
    if len(sys.argv) > 1:
        num = int(sys.argv[1])
        neighbours = make_neighbours(num)
        before, started = status_mb("self", "VmRSS"), time.perf_counter()
        near_order(neighbours, 20, seed=0, epoch=0)
        seconds = time.perf_counter() - started
        print(f"| {num:,} | {seconds:.1f} | {status_mb('self', 'VmHWM') - before:,.0f} |", flush=True)
        return
    print("| anchors | s | MB added |\n| ---: | ---: | ---: |", flush=True)
    for num in (100_000, 1_000_000):
        subprocess.run([sys.executable, "-m", "benchmarks.bench_near_order", str(num)], check=True)


if __name__ == "__main__":
    main()
