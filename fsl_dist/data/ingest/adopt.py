"""Catalogue existing WebDataset shards in place: no byte of them is rewritten."""

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from fsl_dist.data.catalogue import ShardFile
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.division import SplitOptions, divide
from fsl_dist.data.ingest.next_version import check_new, hold_new, partial_of, publish_new
from fsl_dist.data.ingest.rows import NamedSamples, log_notes, make_report, sort_out, warn
from fsl_dist.data.ingest.shard_writer import StoredAt
from fsl_dist.data.ingest.shards.member_images import CheckMembers, MemberFile
from fsl_dist.data.ingest.shards.shard_paths import find_shards
from fsl_dist.data.ingest.shards.wds_samples import SampleKeys, ShardListing, list_shards
from fsl_dist.data.ingest.source_images import CHUNK_SIZE
from fsl_dist.data.names.readings import doubt_words
from fsl_dist.data.write_report import WriteReport
from index.base import object_cache
from index.base.files import create_folder, remove_folder
from index.base.pieces import Progress
from index.base.processes import on_processes


@dataclass(frozen=True, kw_only=True, slots=True)
class AdoptOptions(SplitOptions):
    """How `adopt` reads shards and divides their samples."""

    keys: SampleKeys = field(default_factory=SampleKeys)
    relative: bool = False
    """name the shards relative to the data set's folder, so that both can be moved together; otherwise by absolute
    paths. Shards inside that folder are always named relative to it"""
    processes: int = 0
    """processes that check images; 0: one per core; 1: this process alone"""

    @property
    def split_source(self) -> tuple[str, str]:
        return "split_key", self.keys.split


def adopt(
    shards: str, out: str | Path, options: AdoptOptions, progress: Progress | None = None
) -> WriteReport:
    """Write a catalogue of the samples in `shards` (a folder or a pattern, see `find_shards`) to folder `out`.

    `out` must be new or empty, or contain the shards and no catalogue yet. Every image and mask is decoded once.
    Unusable ones are listed with the reason in the log, the report and the catalogue. The catalogue contains each
    shard's size and each image's checksum, so a shard that changes later is detected when it is read. The catalogue
    appears in one step. Raises RequestError, with nothing written, for an invalid request, and DataError if no shard
    can be used.
    """
    out = object_cache.on_disk(out, "adopt")
    object_cache.on_disk(shards, "adopt")
    paths = find_shards(shards)
    is_inside = out.is_dir() and all(_is_below(path, out) for path in paths.paths)
    check_new(out, has_shards=is_inside)
    found = list_shards(paths, options.keys)
    log_notes(found.listing)
    samples, images, bad = sort_out(found.listing, _check_images(found, options.processes, progress))
    named = NamedSamples.number(samples)
    sides, warnings = divide(
        named.labels, named.units, [sample.split for sample in samples], named.names, options
    )
    warnings = [
        *doubt_words("labels", named.class_names),
        *doubt_words("keep_together", named.unit_names),
        *warnings,
    ]
    warn(warnings)
    metadata = named.describe(
        shards=[
            ShardFile(_name_shard(Path(shard.name), out, options.relative), shard.size_bytes)
            for shard in found.shards
        ],
        bad_samples=bad,
        options={"source": "shards", "keys": asdict(options.keys), **options.rule},
    )
    found_at = [found.places[sample.key] for sample in samples]
    places = [StoredAt(place.shard, place.offset, place.mask_offset) for place in found_at]
    with hold_new(out, has_shards=is_inside):
        partial = partial_of(out)
        create_folder(partial)
        try:
            columns = named.columns(samples, images, places, sides)
            fingerprint = publish_new(partial, out, columns, metadata)
        finally:
            remove_folder(partial)
    listing = found.listing
    return make_report(
        out,
        1,
        metadata,
        sides,
        fingerprint,
        warnings,
        num_ignored=listing.num_ignored,
        notes=listing.notes,
    )


def _check_images(found: ShardListing, processes: int, progress: Progress | None) -> list[CheckedImage | str]:
    """Decode every image once: what each candidate is, or why it cannot be used."""
    candidates = found.listing.candidates
    files = [MemberFile(sample.source, found.places[sample.key]) for sample in candidates]
    chunks = [files[start : start + CHUNK_SIZE] for start in range(0, len(files), CHUNK_SIZE)]
    results: list[list[CheckedImage | str]] = [[] for _ in chunks]
    done = 0
    for position, checked in on_processes(processes)(CheckMembers(), chunks):
        results[position] = checked
        done += len(checked)
        if progress is not None:
            progress("checking", done, len(files))
    return [image for checked in results for image in checked]


def _is_below(path: Path, folder: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(folder))


def _name_shard(path: Path, out: Path, relative: bool) -> str:
    if _is_below(path, out):
        return os.path.relpath(path, out)
    # `..` in a path is followed on the disk, behind links: hence real paths.
    return (
        os.path.relpath(os.path.realpath(path), os.path.realpath(out)) if relative else os.path.abspath(path)
    )
