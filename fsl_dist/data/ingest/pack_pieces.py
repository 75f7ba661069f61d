"""The two passes of `pack`, each a list of pieces that other processes do and that a killed try may have finished.

First chunks of images are checked, then shards are written: their boundaries follow from the sizes.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL
from numpy.typing import NDArray

from fsl_dist.data.catalogue import FORMAT, Catalogue, ShardFile
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.listing import Candidate, Listing
from fsl_dist.data.ingest.pieces import run_pieces
from fsl_dist.data.ingest.rows import Progress
from fsl_dist.data.ingest.shard_writer import (
    PlannedShard,
    ShardContent,
    ShardSample,
    StoredAt,
    WriteShards,
    plan_shards,
)
from fsl_dist.data.ingest.source_images import CHUNK_SIZE, CheckImages, Chunk, read_checked
from fsl_dist.data.ingest.work_folder import WorkFolder, log_reuse
from fsl_dist.seeding import generator
from index.base.files import size_of_file

if TYPE_CHECKING:
    from fsl_dist.data.ingest.options import PackOptions


def make_plan(listing: Listing, options: "PackOptions", old: Catalogue | None = None) -> dict[str, object]:
    """What the pieces follow from, by what a user calls it: equal plans have equal pieces.

    Files count by path, size and times of change; `old` is the data set that they join. Left out of the options is what
    the list of files says already, and what only divides the samples afterwards.
    """
    digest = hashlib.sha256()
    for sample in listing.candidates:
        told = {name: value for name, value in asdict(sample).items() if name not in ("file", "mask")}
        state = [_state_of(file) for file in (sample.file, sample.mask) if file]
        digest.update(json.dumps([told, state]).encode())
    values = asdict(options)
    for name in ("columns", "processes", "split", "num_base", "fractions"):
        del values[name]
    return {
        "list of source files, or change in one": digest.hexdigest(),
        **{"--" + name.replace("_", "-"): value for name, value in values.items()},
        "version of the data set": None if old is None else old.fingerprint,
        "version of Pillow": PIL.__version__,
        "format": f"{FORMAT}, pieces 1",
    }


def _state_of(file: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns


@dataclass(frozen=True, slots=True)
class Checked:
    """The first pass."""

    results: list[CheckedImage | str]
    """of each candidate: what will be stored of it, or why it cannot be used"""
    num_reused: int
    """chunks that were there"""


def check_images(
    work: WorkFolder, listing: Listing, options: "PackOptions", progress: Progress | None
) -> Checked:
    """Decode every image once, but for those of chunks that `work` has already."""
    candidates = listing.candidates
    chunks = [
        Chunk(number, [sample.source for sample in candidates[start : start + CHUNK_SIZE]])
        for number, start in enumerate(range(0, len(candidates), CHUNK_SIZE))
    ]
    found = {chunk.number: read_checked(work, chunk.number) for chunk in chunks}
    missing = [chunk for chunk in chunks if found[chunk.number] is None]
    there = [chunk for chunk in chunks if found[chunk.number] is not None]
    log_reuse("chunks of images are checked", len(there), len(chunks))
    counted = _Counted("checking", progress, len(candidates), sum(len(chunk.files) for chunk in there))
    for position, _ in run_pieces(
        CheckImages(work, options.stored_size, options.dedupe is not None), missing, options.processes
    ):
        counted.add(len(missing[position].files))
    results: list[CheckedImage | str] = []
    for chunk in chunks:
        checked = found[chunk.number] or read_checked(work, chunk.number)
        if checked is None:
            raise OSError(f"'{work.checked}' does not hold what was just written there; is the disk sound?")
        results += checked
    return Checked(results, len(there))


@dataclass(frozen=True, slots=True)
class Written:
    """The second pass."""

    shards: list[ShardFile]
    places: list[StoredAt]
    """of each sample"""
    num_reused: int
    """shards that were there"""


def write_shards(
    work: WorkFolder,
    folder: str,
    samples: Sequence[Candidate],
    images: Sequence[CheckedImage],
    labels: NDArray[np.int64],
    options: "PackOptions",
    progress: Progress | None,
) -> Written:
    """Write `samples` (sorted by key) to `folder`/shard-000000.tar … of what becomes the output, in the order that is
    asked for; but for shards that are there.
    """
    if options.order == "class":
        order = np.argsort(labels, kind="stable")
    else:
        order = generator(options.seed, "pack").permutation(len(samples))
    (work.out / folder).mkdir(exist_ok=True)
    numbers = labels.tolist()
    plan = plan_shards(images, numbers, order.tolist(), options.shard_size_mb * 1_000_000)
    names = [f"{folder}/shard-{number:06d}.tar" for number in range(len(plan))]
    is_there = [
        size_of_file(work.out / name) == shard.size_bytes for name, shard in zip(names, plan, strict=True)
    ]
    log_reuse("shards are written", sum(is_there), len(plan))

    def describe(name: str, shard: PlannedShard) -> ShardContent:
        content = [
            ShardSample(samples[row].key, numbers[row], images[row], samples[row].source)
            for row in shard.rows
        ]
        return ShardContent(work.out / name, content)

    missing = [
        describe(name, shard) for name, shard, there in zip(names, plan, is_there, strict=True) if not there
    ]
    num_missing = sum(len(content.samples) for content in missing)
    counted = _Counted("packing", progress, len(samples), len(samples) - num_missing)
    for position, _ in run_pieces(WriteShards(work), missing, options.processes):
        counted.add(len(missing[position].samples))
    place_of = {row: place for shard in plan for row, place in zip(shard.rows, shard.places, strict=True)}
    return Written(
        shards=[ShardFile(name, shard.size_bytes) for name, shard in zip(names, plan, strict=True)],
        places=[place_of[row] for row in range(len(samples))],
        num_reused=sum(is_there),
    )


class _Counted:
    """Tells `progress` how many of `total` samples are done."""

    def __init__(self, stage: str, progress: Progress | None, total: int, done: int) -> None:
        self._stage, self._progress, self._total, self._done = stage, progress, total, done

    def add(self, number: int) -> None:
        self._done += number
        if self._progress is not None:
            self._progress(self._stage, self._done, self._total)
