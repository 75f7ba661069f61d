"""The browser application on 100,000 training vectors: latency of answers and maps, 20 people at once, memory.

    OMP_NUM_THREADS=2 python benchmarks/bench_view.py FOLDER --image PHOTO.jpg

MobileNetV2 at 224 px with random weights. The catalogue has 100,000 tiny pictures, and their index has random
vectors, because neither changes the time of a search; PHOTO is what is asked about. What is in FOLDER is reused.
Prints a Markdown table.
"""

import argparse
import http.client
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from PIL import Image

import fsl_dist
from cluster.view.server import ViewServer
from fsl_dist.image_files import ImageFiles, NamedImage
from fsl_dist.training.trained import open_trained
from index.writing.build import build

SETTINGS = {
    "data.resize_size": 256, "data.image_size": 224, "data.decoder": "torchvision",
    "backbone.name": "mobilenet_v2", "training.epochs": 0, "training.patience": 0,
}  # fmt: skip
CLASSES = 100


def make_run(folder: Path, num: int) -> Path:
    """A run whose index of training images has `num` vectors."""
    run, data, source = folder / "run", folder / "data", folder / "source"
    if not (folder / "done").exists():
        rng = np.random.default_rng(0)
        source.mkdir(parents=True, exist_ok=True)
        rows = ["file,class,split"]
        for number in range(num + 2):
            pixels = rng.integers(0, 255, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(source / f"{number}.png", compress_level=0)
            rows.append(f"{number}.png,c{number % CLASSES:03d},{'train' if number < num else 'test'}")
        (source / "labels.csv").write_text("\n".join(rows) + "\n")
        fsl_dist.pack(source, data, table=source / "labels.csv", split_column="split", progress=False)
        fsl_dist.train(data=data, dir=run, settings=SETTINGS, progress=False)
        trained = open_trained(run)
        selection = trained.catalogue.select("train")
        vectors = rng.random((num, trained.embedder.dim), dtype=np.float32)
        made_from = {"catalogue": trained.catalogue.fingerprint, "parameters": trained.parameters}
        build(
            run / "evaluation" / "gallery",
            vectors,
            selection.sample_labels,
            selection.ids,
            trained.config.index,
            made_from,
        )
        trained.close()
        (folder / "done").touch()
    return run


def time_forward(run: Path, image: Path, repeats: int) -> float:
    """Median seconds of decoding and embedding one image."""
    trained, times = open_trained(run), []
    with ImageFiles(trained.embedder, trained.config, trained.catalogue) as files:
        for _ in range(repeats):
            start = time.perf_counter()
            files.embed([NamedImage("image", image.read_bytes())])
            times.append(time.perf_counter() - start)
    trained.close()
    return statistics.median(times)


def ask(port: int, path: str, body: bytes) -> float:
    """Seconds of one request."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, body)
    response = connection.getresponse()
    response.read()
    connection.close()
    if response.status != 200:
        raise RuntimeError(f"{path}: {response.status}")
    return time.perf_counter() - start


def ask_together(port: int, body: bytes, people: int, each: int) -> list[float]:
    """Seconds of the requests of `people` who ask at the same time, `each` times."""
    times: list[float] = []
    failures: list[Exception] = []

    def person() -> None:
        try:
            times.extend(ask(port, "/ask?k=10", body) for _ in range(each))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=person) for _ in range(people)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return times


def memory_mib() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--num", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    arguments = parser.parse_args()
    run, body = make_run(arguments.folder, arguments.num), arguments.image.read_bytes()
    forward = time_forward(run, arguments.image, arguments.repeats)
    with ViewServer([run]) as server:
        port = int(server.url.rpartition(":")[2])
        ids = ",".join(map(str, range(0, 1000, 100)))
        for _ in range(3):
            ask(port, "/ask?k=10", body)
        answer = statistics.median(ask(port, "/ask?k=10", body) for _ in range(arguments.repeats))
        maps = statistics.median(
            ask(port, f"/maps?ids={ids}", body) for _ in range(max(3, arguments.repeats // 4))
        )
        together = ask_together(port, body, 20, 5)
        for _ in range(arguments.requests // 10):
            ask(port, "/ask?k=10", body)
        before = memory_mib()
        for _ in range(arguments.requests):
            ask(port, "/ask?k=10", body)
        after = memory_mib()
    print("| measurement | result |\n| --- | --- |")
    print(f"| decode and embed one image, median | {forward * 1000:.0f} ms |")
    print(f"| answer with 10 neighbours of {arguments.num:,}, median | {answer * 1000:.0f} ms |")
    print(f"| maps of 10 pairs, median | {maps * 1000:.0f} ms |")
    print(f"| 20 people at once, 5 answers each: slowest | {max(together):.1f} s, no error |")
    print(f"| memory after {arguments.requests:,} more requests | {before:.0f} → {after:.0f} MiB |")


if __name__ == "__main__":
    main()
