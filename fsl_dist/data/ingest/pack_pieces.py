"""The two passes of `pack` as lists of pieces (`index.base.pieces`).

Chunks of images are checked first, then shards are written, because their boundaries follow from the sizes of the
images.
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

from fsl_dist.data.catalogue import Catalogue, ShardFile
from fsl_dist.data.catalogue_file import FORMAT
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.listing import Candidate, Listing
from fsl_dist.data.ingest.shard_writer import (
    ShardContent,
    ShardSample,
    StoredAt,
    WriteShards,
    plan_shards,
)
from fsl_dist.data.ingest.source_images import CHUNK_SIZE, CheckImages, Chunk, kept_name, read_checked
from fsl_dist.data.ingest.work_folder import PackFolder
from fsl_dist.seeding import generator
from index.base.pieces import Progress
from index.base.processes import on_processes

if TYPE_CHECKING:
    from fsl_dist.data.ingest.options import PackOptions


def make_plan(listing: Listing, options: "PackOptions", old: Catalogue | None = None) -> dict[str, object]:
    """Everything that determines the pieces, under user-visible names: equal plans have equal pieces.

    Files are compared by path, size and modification times; `old` is the data set that they are added to. Options
    that are already reflected in the list of files are omitted, as are those that only divide the samples afterwards.
    """
    digest = hashlib.sha256()
    for sample in listing.candidates:
        named = {name: value for name, value in asdict(sample).items() if name not in ("file", "mask")}
        state = [_state_of(file) for file in (sample.file, sample.mask) if file]
        digest.update(json.dumps([named, state]).encode())
    values = asdict(options)
    for name in ("columns", "split_folders", "processes", "split", "num_base", "fractions"):
        del values[name]
    return {
        "list of source files, or change in one": digest.hexdigest(),
        **values,
        "version of the data set": None if old is None else old.fingerprint,
        "version of Pillow": PIL.__version__,
        "format": f"{FORMAT}, pieces 3",
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
    """chunks that an earlier try had finished"""


def check_images(
    work: PackFolder, listing: Listing, options: "PackOptions", progress: Progress | None
) -> Checked:
    """Decode every image once, except for chunks that are finished in `work`."""
    candidates = listing.candidates
    chunks = [
        Chunk(number, [sample.source for sample in candidates[start : start + CHUNK_SIZE]])
        for number, start in enumerate(range(0, len(candidates), CHUNK_SIZE))
    ]
    num_reused = work.do_missing(
        "checking",
        CheckImages(work, options.stored_size, options.pixel_range, options.dedupe is not None),
        {kept_name(chunk.number): chunk for chunk in chunks},
        spread=on_processes(options.processes),
        progress=progress,
        size_of=lambda chunk: len(chunk.files),
    )
    return Checked([image for chunk in chunks for image in read_checked(work, chunk.number)], num_reused)


@dataclass(frozen=True, slots=True)
class Written:
    """The second pass."""

    shards: list[ShardFile]
    places: list[StoredAt]
    """of each sample"""
    num_reused: int
    """shards that an earlier try had finished"""


def write_shards(
    work: PackFolder,
    folder: str,
    first: int,
    samples: Sequence[Candidate],
    images: Sequence[CheckedImage],
    labels: NDArray[np.int64],
    options: "PackOptions",
    progress: Progress | None,
) -> Written:
    """Write `samples` (sorted by key) to shard-000000.tar …, except for shards that are already finished in `work`.

    folder: their folder in the data set. first: number of existing shards in the data set.
    """
    if options.order == "class":
        order = np.argsort(labels, kind="stable")
    else:
        order = generator(options.seed, "pack").permutation(len(samples))
    numbers = labels.tolist()
    plan = plan_shards(images, numbers, order.tolist(), options.shard_size_mb * 1_000_000, first)
    names = [f"shard-{number:06d}.tar" for number in range(len(plan))]
    contents = {
        name: ShardContent(
            name,
            [
                ShardSample(samples[row].key, numbers[row], images[row], samples[row].source)
                for row in shard.rows
            ],
        )
        for name, shard in zip(names, plan, strict=True)
    }
    num_reused = work.do_missing(
        "packing",
        WriteShards(work),
        contents,
        spread=on_processes(options.processes),
        progress=progress,
        size_of=lambda content: len(content.samples),
    )
    place_of = {row: place for shard in plan for row, place in zip(shard.rows, shard.places, strict=True)}
    return Written(
        shards=[
            ShardFile(f"{folder}/{name}", shard.size_bytes) for name, shard in zip(names, plan, strict=True)
        ],
        places=[place_of[row] for row in range(len(samples))],
        num_reused=num_reused,
    )
