"""Pack a source into WebDataset tar shards and a catalogue; append one to a data set that is there."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import BadSample, Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.data.division import SplitOptions, divide, divide_added
from fsl_dist.data.duplicates import Dedupe, drop_duplicates
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.listing import Candidate, Listing, TableColumns, list_folder, list_table
from fsl_dist.data.next_version import STAGING, add_version, check_new, hold_dataset, name_appended
from fsl_dist.data.resize import StoredSize
from fsl_dist.data.rows import (
    NamedSamples,
    Progress,
    WriteReport,
    check_samples,
    join_columns,
    make_report,
    warn,
)
from fsl_dist.data.shard_writer import ShardWriter
from fsl_dist.data.source_images import SourceImages
from fsl_dist.errors import RequestError
from fsl_dist.seeding import generator
from index.storage import create_folder, hold_lock, remove_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class PackOptions(SplitOptions):
    """How `pack` reads its source, divides and writes it; field names follow the command's options."""

    columns: TableColumns | None = None
    """table to read instead of class folders; its `unit` is --keep-together, its `split` --split-column"""
    order: Literal["mixed", "class"] = "mixed"
    """order of bytes in the shards; mixed: shuffled over the whole source; class: each class's bytes side by side"""
    shard_size_mb: int = 256
    """a shard is closed before it grows beyond this many 10⁶ bytes (one sample may be larger), ≥ 1"""
    resize_shorter: int | None = None
    """pixels of the shorter side at which larger images are stored, ≥ 1; None: as they are"""
    resize: tuple[int, int] | None = None
    """(height, width) in pixels at which larger images are stored, ≥ 1, in place of `resize_shorter`"""
    dedupe: Dedupe | None = None
    """near-duplicates to leave out: `name`: those with one file name; `phash`: all; None: none"""
    threads: int = 0
    """threads that check and resize images; 0: one a core, at most 8"""

    def __post_init__(self) -> None:
        if self.shard_size_mb < 1:
            raise RequestError(f"--shard-size-mb={self.shard_size_mb} must be at least 1")
        _ = self.stored_size
        SplitOptions.__post_init__(self)

    @property
    def stored_size(self) -> StoredSize:
        """The size at which images are stored; RequestError where the options contradict each other."""
        return StoredSize(shorter=self.resize_shorter, exact=self.resize)

    @property
    def split_source(self) -> tuple[str, str]:
        return "--split-column (of --table)", self.columns.split if self.columns is not None else ""

    @property
    def record(self) -> dict[str, object]:
        """What the catalogue keeps of these options."""
        return {
            "source": "folder" if self.columns is None else "table",
            "columns": None if self.columns is None else self.columns.named(),
            **self.rule,
            "order": self.order,
            "shard_size_mb": self.shard_size_mb,
            **self.stored_size.record,
            "dedupe": self.dedupe,
        }


def pack(
    source: str | Path, out: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Write every readable image of `source` to shards and a catalogue in the new folder `out`.

    Images are stored as they are, unless `options` resize them. Those that cannot be used are named with the
    reason in the log, the report and the catalogue; the rest is packed, without near-duplicates where `options` say so. The output's bytes depend on the source and
    `options` (but not on its threads) alone. It is written beside `out` and renamed, so `out` is complete or not there;
    what a killed try left beside it is removed.
    `progress(stage, done, total)` is called as the work goes on. Reads every image twice, or once where it is
    resized, and decodes it once.

    Raises RequestError, with nothing written, where the request cannot be served; DataError where a file
    changes meanwhile.
    """
    source, out = Path(source), Path(out)
    check_new(out)
    listing = _list_source(source, options)
    with SourceImages(options.stored_size, out, has_fingerprints=options.dedupe is not None) as stored:
        samples, images, bad = check_samples(listing, stored.check, options.threads, progress)
        samples, images, duplicates = drop_duplicates(samples, images, options.dedupe)
        named = NamedSamples.number(samples)
        sides, warnings = divide(
            named.labels, named.units, [sample.split for sample in samples], named.names, options
        )
        warn(warnings)

        # Beside `out`, so that the rename stays on one file system. The lock dies with its process, so what lies under
        # this name once it is held was left by a killed one.
        partial = out.absolute().parent / f".{out.name}.partial"
        with hold_lock(partial.with_name(f".{out.name}.lock")):
            check_new(out)
            create_folder(partial)
            try:
                writer = _write_shards(
                    partial, "shards", samples, images, stored, named.labels, options, progress
                )
                (partial / "catalogue").mkdir()
                metadata = CatalogueMetadata(
                    class_names=named.class_names,
                    group_names=named.group_names,
                    blind_group_names=named.blind_group_names,
                    unit_names=named.unit_names,
                    shards=writer.shards,
                    bad_samples=bad,
                    duplicates=duplicates,
                    options=options.record,
                )
                places = [writer.places[row] for row in range(len(samples))]
                fingerprint = write_catalogue(
                    partial / "catalogue" / "000001.arrow",
                    named.columns(samples, images, places, sides),
                    metadata,
                )
                os.replace(partial, out)
            finally:
                remove_folder(partial)
    return make_report(
        out, 1, metadata, sides, writer.shards, bad, listing.num_ignored, warnings, fingerprint, duplicates
    )


def append(
    source: str | Path, dataset: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Add every readable image of `source` to a data set: new shards and the next catalogue version.

    Old versions stay as they are, with their ids. Old samples keep their split; the new ones are divided by
    the data set's own rule and seed, so `options` must leave those at their defaults. Old classes and groups
    keep their numbers, new ones follow. A key that the data set has is a bad sample. The report counts what was
    added. Raises as `pack` does; killed or failed, it leaves the data set as it was.
    """
    source, dataset = Path(source), Path(dataset)
    with hold_dataset(dataset) as old:
        options = _with_rule_of(old, options)
        known = set(old.keys(np.arange(old.num_samples)))
        listing = _refuse_known(_list_source(source, options), known)
        with SourceImages(
            options.stored_size, dataset, has_fingerprints=options.dedupe is not None
        ) as stored:
            samples, images, bad = check_samples(listing, stored.check, options.threads, progress)
            samples, images, duplicates = drop_duplicates(samples, images, options.dedupe, old, progress)
            named = NamedSamples.number(samples, old)
            sides, warnings = divide_added(
                old, named.labels, named.units, [sample.split for sample in samples], named.names, options
            )
            warn(warnings)
            version = old.version + 1
            folder, staging = name_appended(version), dataset / STAGING
            create_folder(staging)
            try:
                writer = _write_shards(
                    staging, folder, samples, images, stored, named.labels, options, progress
                )
                os.replace(staging / folder, dataset / folder)
            finally:
                remove_folder(staging)
        first = len(old.shards)
        written = [writer.places[row] for row in range(len(samples))]
        places = [replace(place, shard=first + place.shard) for place in written]
        added = named.columns(samples, images, places, sides)
        metadata = CatalogueMetadata(
            class_names=named.class_names,
            group_names=named.group_names,
            blind_group_names=named.blind_group_names,
            unit_names=named.unit_names,
            shards=[*old.shards, *writer.shards],
            bad_samples=[*old.bad_samples, *bad],
            duplicates=[*old.duplicates, *duplicates],
            options=old.options,
        )
        fingerprint = add_version(dataset, version, join_columns(old.columns(), added), metadata)
    return make_report(
        dataset,
        version,
        metadata,
        sides,
        writer.shards,
        bad,
        listing.num_ignored,
        warnings,
        fingerprint,
        duplicates,
    )


def _list_source(source: Path, options: PackOptions) -> Listing:
    if not source.is_dir():
        raise RequestError(f"source '{source}': no such folder")
    return list_folder(source) if options.columns is None else list_table(source, options.columns)


def _refuse_known(listing: Listing, known: set[str]) -> Listing:
    fresh, bad = [], list(listing.bad)
    for sample in listing.candidates:
        if sample.key in known:
            bad.append(BadSample(sample.path, f"duplicate key '{sample.key}', in the data set already"))
        else:
            fresh.append(sample)
    return Listing(fresh, bad, listing.num_ignored)


def _with_rule_of(old: Catalogue, options: PackOptions) -> PackOptions:
    """`options` with the split rule and the size of images that the data set was made with."""
    given: dict[str, Any] = {
        name: old.options.get(name) for name in ("split", "num_base", "fractions", "seed")
    }
    if options.stored_size != StoredSize():
        raise RequestError(
            "--append resizes images as the data set was packed; leave --resize and --resize-shorter out"
        )
    given |= {name: old.options.get(name) for name in ("resize_shorter", "resize")}
    plain = SplitOptions()
    if (options.split, options.num_base, options.fractions, options.seed) != (
        plain.split,
        plain.num_base,
        plain.fractions,
        plain.seed,
    ):
        raise RequestError(
            f"--append divides by the data set's own rule ({given['split']}, seed {given['seed']}); "
            "leave --split, --num-base, --fractions and --seed out, or divide anew afterwards with `fsl-dist resplit`"
        )
    for name in ("fractions", "resize"):
        if given[name] is not None:
            given[name] = tuple(given[name])
    return replace(options, **given)


def _write_shards(
    folder: Path,
    subfolder: str,
    samples: Sequence[Candidate],
    images: Sequence[CheckedImage],
    source: SourceImages,
    labels: NDArray[np.int64],
    options: PackOptions,
    progress: Progress | None,
) -> ShardWriter:
    """Write `samples` (sorted by key) to `folder`/`subfolder` in the order that is asked for."""
    if options.order == "class":
        order = np.argsort(labels, kind="stable")
    else:
        order = generator(options.seed, "pack").permutation(len(samples))
    writer = ShardWriter(folder, options.shard_size_mb * 1_000_000, subfolder)
    try:
        for done, row in enumerate(order.tolist()):
            sample = samples[row]
            writer.add(sample.key, source.read(sample, images[row]), int(labels[row]), row)
            if progress is not None:
                progress("packing", done + 1, len(samples))
        writer.finish()
    finally:
        writer.close()
    return writer
