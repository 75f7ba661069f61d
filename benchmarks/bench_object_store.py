"""Random batches against a scan, of one data set on the disk and behind a server that answers later.

    python benchmarks/bench_object_store.py packed --delay-ms 20 --image-size 64

The server is a separate process that supports ranged reads and listings, and waits before each answer. It has
the latency of S3 but not its bandwidth: it shares this machine's cores with the reader. A scan
takes ids in the order of their bytes; random batches are drawn over the whole data set, without blocks. `one by one`
is the same random batches with one request at a time. Images count as read (bytes, checksums compared) or as decoded.
All are timed in turn, round after round; the median counts. Prints a Markdown table, then one JSON object; `--out`
writes both.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.loader import ImageSource, Loader, Request, open_source
from fsl_dist.data.store import ShardStore, coalesce
from index.base import object_store


class Answers(asyncio.Protocol):
    """One connection to the bucket `bucket`, which is a folder; each answer comes `delay_s` late.

    No more of HTTP than the client at hand needs: it is to take little of the cores that it shares with the client.
    """

    def __init__(self, folder: Path, delay_s: float) -> None:
        self.folder, self.delay_s, self.received = folder, delay_s, b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *requests, self.received = (self.received + data).split(b"\r\n\r\n")
        for request in requests:
            asyncio.get_running_loop().call_later(self.delay_s, self._answer, request)

    def _answer(self, request: bytes) -> None:
        method, target, _ = request.split(b"\r\n", 1)[0].decode().split(" ")
        address = urllib.parse.urlsplit(target)
        query = urllib.parse.parse_qs(address.query)
        path = self.folder / urllib.parse.unquote(address.path).removeprefix("/bucket").lstrip("/")
        status, headers = "200 OK", 'ETag: "1"\r\nLast-Modified: Sat, 01 Jan 2000 00:00:00 GMT\r\n'
        if "list-type" in query:
            data = self._list(query)
        elif not path.is_file():
            status, data = "404 Not Found", b"<Error><Code>NoSuchKey</Code></Error>"
        else:
            start, size = 0, path.stat().st_size
            stop = size
            if found := re.search(rb"(?i)\r\nrange: bytes=(\d+)-(\d+)", request):
                start, stop = int(found[1]), int(found[2]) + 1
                status = "206 Partial Content"
                headers += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
            with path.open("rb") as file:
                data = os.pread(file.fileno(), stop - start, start)
        head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(data)}\r\n\r\n".encode()
        self.transport.writelines([head] if method == "HEAD" else [head, data])

    def _list(self, query: dict[str, list[str]]) -> bytes:
        folder = self.folder / query.get("prefix", [""])[0]
        keys = [path for path in folder.glob("*" if "delimiter" in query else "**/*") if path.is_file()]
        entries = "".join(
            f"<Contents><Key>{path.relative_to(self.folder)}</Key><Size>{path.stat().st_size}</Size>"
            '<LastModified>2000-01-01T00:00:00.000Z</LastModified><ETag>"1"</ETag></Contents>'
            for path in keys
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


async def serve(folder: Path, delay_ms: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answers(folder, delay_ms / 1e3), "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def cut(ids: np.ndarray, batch_size: int) -> list[np.ndarray]:
    return [ids[start : start + batch_size] for start in range(0, len(ids) - batch_size + 1, batch_size)]


class ReadOnly:
    """A source that reads and does not decode."""

    def __init__(self, source: ImageSource) -> None:
        self.source, self.catalogue, self.sample_shape = source, source.catalogue, ()
        self.reads_at_once = source.reads_at_once

    def read(self, ids: np.ndarray) -> int:
        return len(self.source.read(ids).samples)

    def prepare(self, raw: int, ids: np.ndarray, epoch: int | None) -> int:
        return raw


def rate(source: object, batches: list[np.ndarray]) -> float:
    """Images per second, through the loader as training uses it."""

    def requests() -> Iterator[Request]:
        for ids in batches:
            yield Request(ids, 0)

    started = time.perf_counter()
    with Loader(source, requests(), 2) as loader:  # type: ignore[arg-type]
        for _ in loader:
            pass
    return sum(map(len, batches)) / (time.perf_counter() - started)


def rate_one_by_one(dataset: str, batches: list[np.ndarray]) -> float:
    """Images per second where a batch is read one request after another, and none is merged."""
    store = ShardStore(Catalogue.open(dataset), max_gap=0)
    started = time.perf_counter()
    for ids in batches:
        for one in ids:
            store.read(np.array([one]))
    return sum(map(len, batches)) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", type=Path, help="a packed data set on this disk")
    parser.add_argument("--delay-ms", type=float, default=20.0, help="added to every answer")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--batches", type=int, default=30)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--decoder", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="writes OUT.md and OUT.json, too")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.dataset.resolve()
    if options.serve:
        asyncio.run(serve(folder.parent, options.delay_ms))
        return
    command = [sys.executable, __file__, str(folder), "--serve", "--delay-ms", str(options.delay_ms)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        with tempfile.TemporaryDirectory() as cache:
            os.environ |= {
                "AWS_ENDPOINT_URL": f"http://127.0.0.1:{int(server.stdout.readline())}",
                "AWS_ACCESS_KEY_ID": "bench",
                "AWS_SECRET_ACCESS_KEY": "bench",
                "FSL_DIST_CACHE": cache,
            }
            report(measure(folder, f"s3://bucket/{folder.name}", options), options)
    finally:
        server.kill()
        server.wait()


def measure(folder: Path, remote: str, options: argparse.Namespace) -> dict[str, object]:
    """Medians of images per second, by place, unit and order."""
    catalogue = Catalogue.open(folder)
    num = min(catalogue.num_samples, options.batches * options.batch_size)
    where = catalogue.locate(np.arange(catalogue.num_samples))
    by_bytes = np.lexsort((where.offset, where.shard))[:num]
    drawn = np.random.default_rng(0).permutation(catalogue.num_samples)[:num]
    orders = {"scan": cut(by_bytes, options.batch_size), "random": cut(drawn, options.batch_size)}
    sources = {}
    for name, dataset in (("disk", str(folder)), ("store", remote)):
        config = DataConfig(
            dataset=dataset,
            image_size=options.image_size,
            resize_size=options.image_size,
            decoder=options.decoder,
        )
        source = open_source(config, 0)
        assert isinstance(source, ImageSource)
        sources[name, "read"] = ReadOnly(source)
        sources[name, "decoded"] = source
    rates: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        for (place, unit), source in sources.items():
            for order, batches in orders.items():
                rates.setdefault(f"{place} {unit} {order}", []).append(rate(source, batches))
        rates.setdefault("store read one by one", []).append(rate_one_by_one(remote, orders["random"][:2]))
    ranges = {}
    for order, batches in orders.items():
        found = [catalogue.locate(ids) for ids in batches]
        ranges[order] = statistics.mean(len(coalesce(f.shard, f.offset, f.size, 65536).shard) for f in found)
    return {
        "images_per_s": {name: statistics.median(values) for name, values in rates.items()},
        "all_rounds": rates,
        "requests_a_batch": ranges,
        "mean_image_bytes": float(where.size.mean()),
        "num_images": num,
        "num_shards": len(catalogue.shards),
    }


def report(found: dict[str, object], options: argparse.Namespace) -> None:
    rates = found["images_per_s"]
    assert isinstance(rates, dict)
    lines = ["| images/s | scan | random | random / scan |", "|---|---|---|---|"]
    for place in ("disk", "store"):
        for unit in ("read", "decoded"):
            scan, random = rates[f"{place} {unit} scan"], rates[f"{place} {unit} random"]
            lines.append(f"| {place}, {unit} | {scan:.0f} | {random:.0f} | {random / scan:.2f} |")
    lines.append(f"| store, read one by one | | {rates['store read one by one']:.0f} | |")
    lines.append(
        f"\n{found['num_images']} images of {found['mean_image_bytes']:.0f} bytes in {found['num_shards']} shards, batches of "
        f"{options.batch_size}, {options.delay_ms:g} ms before each answer, {object_store.CONCURRENCY} requests "
        f"at once; requests a batch: {found['requests_a_batch']}"
    )
    result = {
        "benchmark": "object_store",
        "options": {name: str(v) if isinstance(v, Path) else v for name, v in vars(options).items()},
        **found,
        "machine": {"cpu": platform.processor() or platform.machine(), "num_cpus": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    print("\n".join(lines))
    print("\n" + json.dumps(result))
    if options.out is not None:
        options.out.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        options.out.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
