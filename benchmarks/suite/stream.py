"""Reading and decoding photographs: scans, random batches and episodes, compared with common alternatives."""

import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.interleave import Measured, interleave
from benchmarks.suite.peers_stream import PEERS, PhotoWork, Reader, dali_decoding_alone
from benchmarks.suite.photographs import write_photographs
from benchmarks.suite.report import BenchOptions, Report, Table, Target, timing_table
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack import pack
from fsl_dist.data.loader import Loader, Request, Source, open_source
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from fsl_dist.samplers.episode import EpisodeConfig, draw_episode
from fsl_dist.seeding import generator

EPISODE = EpisodeConfig(n_way=10, k_shot=10, n_query=10, small_classes="replace")
LIMIT = "DALI, decoding alone (the limit)"
OURS = ("scan", "random batches", "episodes", "scan, stored at the size")
CLASSES = 10


def measure(options: BenchOptions) -> Report:
    """See `Report`. RequestError for a data set whose classes are too small for the episodes."""
    source = options.folder / "photographs"
    per_class = 20 if options.is_smoke else 120
    if options.dataset is None:
        write_photographs(source, classes=CLASSES, per_class=per_class)
    else:
        _unpack(options.dataset, source, CLASSES * per_class)
    files = sorted(source.glob("*/*"))
    torch.set_num_threads(2)
    with ExitStack() as stack:
        contenders = make_contenders(options.folder, batch=25 if options.is_smoke else 64, stack=stack)
        measured = interleave(
            {name: _count(reader) for name, reader in contenders.items()}, unit="image", rounds=options.rounds
        )
    sizes = [file.stat().st_size for file in files]
    stored = sum(file.stat().st_size for file in (options.folder / "small/shards").iterdir())
    return Report(
        benchmark="stream",
        title="Photographs from the page cache to float32 batches: decode, shorter side 256, random crop 224, mirror, normalise; "
        "two threads or worker processes each.",
        config={
            "images": len(files),
            "mean kB": round(statistics.mean(sizes) / 1e3, 1),
            "mean kB stored at the size": round(stored / len(files) / 1e3, 1),
            "batch": 25 if options.is_smoke else 64,
            "rounds": options.rounds,
            "episodes": "10-way, 10 + 10 images",
        },
        tables=[timing_table("An image", measured, base="scan"), _parts_table(measured)],
        targets=_targets(measured),
        notes=[
            "CPU time is that of the whole process tree. Worker processes live over all rounds, so their "
            "start is not included. “The limit” decodes whole images; a scan only decodes the region of its "
            "crop.",
        ],
        is_smoke=options.is_smoke,
    )


def make_contenders(
    folder: Path, *, batch: int, stack: ExitStack, is_random: bool = True
) -> dict[str, Reader]:
    """Every reader, open: the peers by name, the limit, and ours.

    `folder`/photographs contains one folder per class; packed data sets are next to it. With is_random=False, the test
    transform is used, with which all give the same images. Ours are closed by `stack`.
    """
    source = folder / "photographs"
    files = tuple(sorted(source.glob("*/*")))
    # Eight shards or more, for workers to share.
    shard_mb = max(1, sum(file.stat().st_size for file in files) // 10**6 // 8)
    options = PackOptions(shard_size_mb=shard_mb, fractions=(1.0, 0.0, 0.0))
    pack(source, folder / "packed", options)
    pack(source, folder / "small", replace(options, resize_shorter=256))
    shards = tuple(sorted((folder / "packed/shards").iterdir()))
    work = PhotoWork(files=files, shards=shards, batch=batch, is_random=is_random)
    readers: dict[str, Reader] = {}
    for name, make in PEERS.items():
        readers[name] = make(work)
    readers[LIMIT] = dali_decoding_alone(work)
    epoch = 0 if is_random else None
    for name, dataset in zip(OURS, ("packed", "packed", "packed", "small"), strict=True):
        config = DataConfig(dataset=str(folder / dataset), decoder="dali", threads=work.threads)
        opened = stack.enter_context(closing(open_source(config, seed=0, max_batch=max(batch, 200))))
        readers[name] = _loading(opened, list(_batches(name, opened.catalogue, batch)), epoch)
    return readers


def _loading(source: Source, batches: list[np.ndarray], epoch: int | None) -> Reader:
    def run() -> Iterator[torch.Tensor]:
        with Loader(source, [Request(ids, epoch) for ids in batches]) as loader:
            for _, images in loader:
                yield images

    return run


def _batches(name: str, catalogue: Catalogue, batch: int) -> Iterable[np.ndarray]:
    """Ids of one round: all images once; as many in episodes, to the nearest whole one."""
    num = catalogue.num_samples
    if name == "episodes":
        train = catalogue.select("train")
        for number in range(max(1, round(num / (EPISODE.n_way * EPISODE.images_per_class)))):
            episode = draw_episode(train, EPISODE, seed=0, epoch=0, number=number)
            yield np.concatenate([episode.support, episode.query], axis=1).reshape(-1)
        return
    where = catalogue.locate(np.arange(num))
    order = np.lexsort((where.offset, where.shard))
    if name == "random batches":
        order = generator(0, "bench", 0).permutation(num)
    for start in range(0, num, batch):
        yield order[start : start + batch]


def _count(reader: Reader) -> Callable[[], float]:
    return lambda: float(sum(len(images) for images in reader()))


def _unpack(dataset: Path, folder: Path, num: int) -> None:
    """At most `num` images of a packed data set as files in class folders, as many a class, whole bytes."""
    catalogue = Catalogue.open(dataset)
    labels = np.asarray(catalogue.labels)
    largest = np.argsort(-np.bincount(labels), kind="stable")[:CLASSES]
    if np.bincount(labels)[largest].min() < EPISODE.images_per_class or len(largest) < CLASSES:
        raise RequestError(
            f"--dataset {dataset}: it needs {CLASSES} classes of {EPISODE.images_per_class} images for its episodes"
        )
    ids = np.concatenate([np.flatnonzero(labels == label)[: num // CLASSES] for label in largest])
    store = ShardStore(catalogue)
    for sample_id, content in zip(ids.tolist(), store.read(ids), strict=True):
        target = folder / f"class{labels[sample_id]:03d}" / f"{sample_id:06d}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    store.close()


def _parts_table(measured: Measured) -> Table:
    """A scan compared with the limit."""
    ratios = [measured.ratios("scan", LIMIT, clock) for clock in ("wall", "cpu")]
    wall, cpu = (round(statistics.median(values), 3) for values in ratios)
    return Table("Compared with the limit", ("", "wall", "CPU"), (("scan ÷ decoding alone", wall, cpu),))


def _targets(measured: Measured) -> list[Target]:
    loaders = [name for name in PEERS if name.startswith("DataLoader")]
    usual, best = "DataLoader, PIL, v2", min(loaders, key=lambda name: measured.median_ms(name, "cpu"))
    scan, random, episodes, small = OURS
    fastest = f"the fastest DataLoader here: {best.removeprefix('DataLoader, ')}"
    stored = "scan of images stored at the size ÷ {} on the originals, CPU"
    return [
        Target("scan ÷ plain DALI, CPU", measured.ratios(scan, "plain DALI", "cpu"), at_most=0.9),
        Target("scan ÷ DataLoader with PIL, CPU", measured.ratios(scan, usual, "cpu"), at_most=0.8),
        Target(
            "scan ÷ fastest DataLoader, CPU", measured.ratios(scan, best, "cpu"), at_most=0.8, remark=fastest
        ),
        Target("random batches ÷ scan, CPU", measured.ratios(random, scan, "cpu"), at_most=1.1),
        Target("random batches ÷ scan, wall", measured.ratios(random, scan), at_most=1.1),
        Target("episodes ÷ scan, CPU", measured.ratios(episodes, scan, "cpu"), at_most=1.1),
        Target("episodes ÷ scan, wall", measured.ratios(episodes, scan), at_most=1.1),
        Target(stored.format("DataLoader with PIL"), measured.ratios(small, usual, "cpu"), at_most=0.2),
        Target(
            stored.format("fastest DataLoader"),
            measured.ratios(small, best, "cpu"),
            at_most=0.2,
            remark=f"{fastest}; stored with 4:4:4 chroma; halved chroma would be a fifth faster, but less accurate (docs/reference/data_format.md)",
        ),
    ]
