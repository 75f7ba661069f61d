"""Pack a source into WebDataset tar shards and a catalogue, in one atomic step."""

import logging
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, BadSample, CatalogueMetadata, write_catalogue
from fsl_dist.data.images import CheckedImage, check_image
from fsl_dist.data.listing import Candidate, TableColumns, list_folder, list_table
from fsl_dist.data.shard_writer import ShardWriter
from fsl_dist.errors import RequestError
from fsl_dist.samplers.split import (
    DividedUnitError,
    SplitAssignment,
    find_divided_unit,
    split_base_novel,
    split_classes,
    split_stratified,
)
from fsl_dist.seeding import generator

logger = logging.getLogger(__name__)

SplitKind = Literal["stratified", "classes", "base-novel", "column"]
Progress = Callable[[str, int, int], None]

_DEFAULT_FRACTIONS: dict[str, tuple[float, ...]] = {"stratified": (0.7, 0.1, 0.2), "classes": (0.6, 0.2, 0.2)}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions:
    """How `pack` reads its source and divides it; field names follow the command's options."""

    columns: TableColumns | None = None
    """table to read instead of class folders; its `unit` is --keep-together, its `split` --split-column"""
    split: SplitKind | Literal[""] = ""
    """empty: the table's split column where one is named, else stratified"""
    num_base: int | None = None
    """base-novel: how many classes, the largest, are base"""
    fractions: tuple[float, ...] | None = None
    """train, val, test, summing to 1; stratified: of images, 0.7,0.1,0.2 unless told; classes: of classes, 0.6,0.2,0.2"""
    seed: int = 0
    """order in the shards, and splits"""
    shard_size_mb: int = 256
    """a shard is closed before it grows beyond this many 10⁶ bytes (one sample may be larger), ≥ 1"""
    threads: int = 0
    """threads that check images; 0: one a core, at most 8"""

    def __post_init__(self) -> None:
        if self.shard_size_mb < 1:
            raise RequestError(f"--shard-size-mb={self.shard_size_mb} must be at least 1")
        has_column = self.columns is not None and bool(self.columns.split)
        if has_column and self.split not in ("", "column"):
            raise RequestError(
                f"--split-column and --split {self.split} both say who goes where; leave one out"
            )
        if self.split == "column" and not has_column:
            raise RequestError(
                "--split column needs --table and --split-column, the column that names the splits"
            )
        if self.split_kind == "base-novel" and self.num_base is None:
            raise RequestError("--split base-novel needs --num-base, the number of base classes")
        if self.split_kind != "base-novel" and self.num_base is not None:
            raise RequestError(f"--num-base={self.num_base} belongs to --split base-novel")
        if self.fractions is not None and self.split_kind not in _DEFAULT_FRACTIONS:
            raise RequestError(
                f"--fractions belongs to --split stratified or classes, not to {self.split_kind}"
            )

    @property
    def split_kind(self) -> SplitKind:
        """The split that is made, defaults resolved."""
        if self.split:
            return self.split
        return "column" if self.columns is not None and self.columns.split else "stratified"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What `pack` wrote."""

    dataset: str
    num_samples: int
    num_classes: int
    split_counts: dict[str, int]
    """samples of each split that has any"""
    num_shards: int
    size_bytes: int
    """of all shards"""
    bad_samples: tuple[BadSample, ...]
    num_ignored: int
    """files in class folders that are not called like images"""
    warnings: tuple[str, ...]
    fingerprint: str


def pack(
    source: str | Path, out: str | Path, options: PackOptions, progress: Progress | None = None
) -> PackReport:
    """Write every readable image of `source` to shards and a catalogue in the new folder `out`.

    Images are stored as they are. Those that cannot be used are named with the reason in the log, the
    report and the catalogue; the rest is packed. The output's bytes depend on the source and `options`
    (but not on its threads) alone. It is written beside `out` and renamed, so `out` is complete or not there.
    `progress(stage, done, total)` is called as the work goes on. Reads every image twice and decodes it once.

    Raises RequestError, with nothing written, where the request cannot be served; DataError where a file
    changes meanwhile.
    """
    source, out = Path(source), Path(out)
    if not source.is_dir():
        raise RequestError(f"source '{source}': no such folder")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(
            f"output '{out}' exists and is not an empty folder; name a new one, or remove it first"
        )
    listing = list_folder(source) if options.columns is None else list_table(source, options.columns)

    samples, images, bad = _check_images(listing.candidates, options.threads, progress)
    bad = listing.bad + bad
    for sample in bad:
        logger.warning("left out '%s': %s", sample.path, sample.reason)
    if not samples:
        raise RequestError(
            f"none of the {len(bad)} files of '{source}' is an image that can be read; nothing to pack"
        )
    if listing.num_ignored:
        logger.info(
            "%d files in class folders are not called like images and were passed over", listing.num_ignored
        )

    class_names, labels = _number([sample.label for sample in samples])
    sides, warnings = _divide(samples, labels, class_names, options)
    for warning in warnings:
        logger.warning("%s", warning)

    # Beside `out`, so that the rename stays on one file system; the number keeps two processes apart.
    partial = out.absolute().parent / f".{out.name}.partial-{os.getpid()}-{time.time_ns()}"
    (partial / "shards").mkdir(parents=True)
    (partial / "catalogue").mkdir()
    writer = ShardWriter(partial, options.shard_size_mb * 1_000_000)
    try:
        order = generator(options.seed, "pack").permutation(len(samples))
        for done, row in enumerate(order.tolist()):
            writer.add(samples[row], images[row], int(labels[row]), row)
            if progress is not None:
                progress("packing", done + 1, len(samples))
        writer.finish()
        fingerprint = _write_rows(partial, samples, images, labels, sides, class_names, writer, bad, options)
        os.replace(partial, out)
    finally:
        writer.close()
        shutil.rmtree(partial, ignore_errors=True)

    counts = np.bincount(sides, minlength=len(SPLITS)).tolist()
    return PackReport(
        dataset=str(out),
        num_samples=len(samples),
        num_classes=len(class_names),
        split_counts={name: count for name, count in zip(SPLITS, counts, strict=True) if count},
        num_shards=len(writer.shards),
        size_bytes=sum(shard.size_bytes for shard in writer.shards),
        bad_samples=tuple(bad),
        num_ignored=listing.num_ignored,
        warnings=tuple(warnings),
        fingerprint=fingerprint,
    )


def _number(names: list[str]) -> tuple[list[str], NDArray[np.int64]]:
    """(sorted distinct names, int64 [n]: position of each name); −1 for an empty name."""
    distinct = sorted({name for name in names if name})
    number = {name: position for position, name in enumerate(distinct)}
    return distinct, np.array([number.get(name, -1) for name in names], dtype=np.int64)


def _check_images(
    candidates: list[Candidate], threads: int, progress: Progress | None
) -> tuple[list[Candidate], list[CheckedImage], list[BadSample]]:
    """Decode every image once; (the good ones, what they are, the bad ones)."""
    threads = threads or min(8, os.cpu_count() or 1)
    good, images, bad = [], [], []
    for done, (candidate, image) in enumerate(_in_order(candidates, threads)):
        if isinstance(image, str):
            bad.append(BadSample(candidate.path, image))
        else:
            good.append(candidate)
            images.append(image)
        if progress is not None:
            progress("checking", done + 1, len(candidates))
    return good, images, bad


def _in_order(candidates: list[Candidate], threads: int) -> Iterator[tuple[Candidate, CheckedImage | str]]:
    """Check on `threads` threads, in order, with few images in memory at a time."""
    running: deque[tuple[Candidate, Future[CheckedImage | str]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="fsl-dist-check") as pool:
        for candidate in candidates:
            running.append((candidate, pool.submit(check_image, candidate.file)))
            if len(running) > 4 * threads:
                first, future = running.popleft()
                yield first, future.result()
        for last, future in running:
            yield last, future.result()


def _divide(
    samples: list[Candidate], labels: NDArray[np.int64], class_names: list[str], options: PackOptions
) -> tuple[NDArray[np.int8], list[str]]:
    """Side of every sample (int8 [n]) and what to warn of."""
    unit_names, units = _number([sample.unit for sample in samples])
    kept = units if unit_names else None
    kind = options.split_kind
    fractions = options.fractions or _DEFAULT_FRACTIONS.get(kind, ())
    try:
        if kind == "column":
            sides = np.array([SPLITS.index(sample.split) for sample in samples], dtype=np.int8)
            divided = find_divided_unit(kept, sides)
            if divided is not None:
                raise DividedUnitError(divided, "two splits in the split column")
            return sides, []
        if kind == "base-novel":
            assigned = split_base_novel(labels, kept, cast(int, options.num_base), options.seed)
        elif kind == "classes":
            assigned = split_classes(labels, kept, fractions, options.seed)
        else:
            assigned = split_stratified(labels, kept, fractions, options.seed)
    except DividedUnitError as error:
        column = options.columns.unit if options.columns is not None else ""
        raise RequestError(
            f"--keep-together={column}: '{unit_names[error.unit]}' has samples of {error.what}; "
            "choose another split or correct the table"
        ) from error
    return assigned.sides, _describe_small_classes(assigned, labels, class_names, kind)


def _describe_small_classes(
    assigned: SplitAssignment, labels: NDArray[np.int64], class_names: list[str], kind: str
) -> list[str]:
    counts = np.bincount(labels)
    return [
        f"class '{class_names[label]}' is too small for --split {kind} ({counts[label]} images): all go to train"
        for label in assigned.small_classes.tolist()
    ]


def _write_rows(
    folder: Path,
    samples: list[Candidate],
    images: list[CheckedImage],
    labels: NDArray[np.int64],
    sides: NDArray[np.int8],
    class_names: list[str],
    writer: ShardWriter,
    bad: list[BadSample],
    options: PackOptions,
) -> str:
    group_names, groups = _number([sample.group for sample in samples])
    blind_group_names, blind_groups = _number([sample.blind_group for sample in samples])
    places = [writer.places[row] for row in range(len(samples))]
    columns = options.columns
    return write_catalogue(
        folder / "catalogue" / "000001.arrow",
        {
            "key": [sample.key for sample in samples],
            "shard": [shard for shard, _ in places],
            "offset": [offset for _, offset in places],
            "size": [image.size_bytes for image in images],
            "label": labels,
            "group": groups,
            "blind_group": blind_groups,
            "split": sides,
            "width": [image.width for image in images],
            "height": [image.height for image in images],
            "crc32": [image.crc32 for image in images],
        },
        CatalogueMetadata(
            class_names=class_names,
            group_names=group_names,
            blind_group_names=blind_group_names,
            shards=writer.shards,
            bad_samples=bad,
            options={
                "source": "folder" if columns is None else "table",
                "columns": None if columns is None else columns.named(),
                "split": options.split_kind,
                "num_base": options.num_base,
                "fractions": options.fractions or _DEFAULT_FRACTIONS.get(options.split_kind),
                "seed": options.seed,
                "shard_size_mb": options.shard_size_mb,
            },
        ),
    )
