"""Time to open a catalogue, its checksum compared: `python -m benchmarks.bench_catalogue_open --rows 1000000`.

Prints JSON: the file's size, and the seconds of the first and the median opening, each in a process of its own.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from fsl_dist.data.catalogue import CatalogueMetadata, ShardFile, write_catalogue

NUM_CLASSES, NUM_SHARDS, REPEATS = 100_000, 500, 5

OPEN = """
import sys, time
from fsl_dist.data.catalogue import Catalogue
started = time.perf_counter()
catalogue = Catalogue.open(sys.argv[1])
print(time.perf_counter() - started)
"""


def write(folder: Path, num_rows: int) -> Path:
    """A catalogue of `num_rows` rows with the keys, offsets and checksums of photographs in shards of 1 GB."""
    draw = np.random.default_rng(0)
    rows, path = np.arange(num_rows), folder / "catalogue" / "000001.arrow"
    path.parent.mkdir()
    columns = {
        "key": [f"class-{row % NUM_CLASSES:06d}/image-{row:08d}" for row in range(num_rows)],
        "shard": rows % NUM_SHARDS,
        "offset": draw.integers(0, 10**9, num_rows),
        "size": draw.integers(10_000, 200_000, num_rows),
        "label": rows % NUM_CLASSES,
        "group": rows * 0 - 1,
        "blind_group": rows * 0 - 1,
        "split": np.where(rows % 10 < 8, 0, 2),
        "width": draw.integers(200, 600, num_rows),
        "height": draw.integers(200, 600, num_rows),
        "crc32": draw.integers(0, 2**32, num_rows),
    }
    names = [f"class-{label:06d}" for label in range(NUM_CLASSES)]
    shards = [ShardFile(f"shards/shard-{shard:06d}.tar", 10**9) for shard in range(NUM_SHARDS)]
    write_catalogue(path, columns, CatalogueMetadata(class_names=names, shards=shards, options={}))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), num_rows)
        command = [sys.executable, "-c", OPEN, folder]
        times = [float(subprocess.check_output(command, text=True)) for _ in range(REPEATS)]
        size_mb = path.stat().st_size / 1e6
    print(
        json.dumps(
            {
                "rows": num_rows,
                "size_mb": round(size_mb, 1),
                "first_s": round(times[0], 3),
                "median_s": round(statistics.median(times), 3),
                "processor": platform.machine(),
                "python": platform.python_version(),
            }
        )
    )


if __name__ == "__main__":
    main()
