"""Pack a source into WebDataset tar shards and a catalogue, as a new data set or appended to one."""

import os
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fsl_dist.data.catalogue import Catalogue, Location
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.division import divide
from fsl_dist.data.ingest.duplicates import drop_duplicates
from fsl_dist.data.ingest.listing import Candidate, Listing, list_folder, list_table
from fsl_dist.data.ingest.next_version import (
    add_version,
    check_new,
    hold_dataset,
    hold_new,
    name_shards,
    partial_of,
    publish_new,
    publish_shards,
)
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack_pieces import check_images, make_plan, write_shards
from fsl_dist.data.ingest.rows import (
    NamedSamples,
    join_columns,
    join_metadata,
    log_notes,
    make_report,
    sort_out,
    warn,
)
from fsl_dist.data.ingest.work_folder import PackFolder
from fsl_dist.data.names.keys import KEY_RULE, make_earlier_key, make_key
from fsl_dist.data.write_report import BadSample, WriteReport
from fsl_dist.errors import RequestError
from index.base import object_cache
from index.base.pieces import Progress

_GIVEN = ("column", "folders")
"""split kinds in which the source gives the split of each sample"""


def pack(
    source: str | Path, out: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Write every readable image of `source` to shards and a catalogue in the new folder `out`.

    Images are stored unchanged, unless `options` resize them or scale their pixels. Unusable ones are listed with the
    reason in the log, the report and the catalogue; near-duplicates are left out if `options` say so; all others are
    packed. The output's bytes depend only on the source and `options`, not on the number of processes. The output is
    written next to `out` and renamed, so `out` is complete or does not exist. A killed or interrupted pack resumes
    with the finished pieces if source and options are the same; otherwise they are removed. After an error in the
    source or the request nothing is left on disk.

    Every image is read twice (once if it is resized) and decoded once.

    Args:
        progress: Called as `progress(stage, done, total)`, in images.

    Raises:
        RequestError: The request is invalid; nothing was written.
        DataError: A file of the source changed meanwhile.
    """
    out = object_cache.working_folder(out)
    check_new(out)
    listing, options = _list_source(Path(source), options)
    with hold_new(out):
        return _write(listing, out, None, options, progress)


def append(
    source: str | Path, dataset: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Add every readable image of `source` to a data set: new shards and the next catalogue version.

    Old versions and their ids do not change. Old samples keep their split; the new ones are divided by the data set's
    own rule and seed, so `options` must leave those at their defaults. Old classes and groups keep their numbers; new
    ones follow. A key that already exists is a bad sample. The report counts the added samples. Otherwise as in
    `pack`; after a kill or an error the data set is unchanged.
    """
    dataset = object_cache.working_folder(dataset)
    with hold_dataset(dataset) as old:
        listing, options = _list_source(Path(source), _with_rule_of(old, options), old)
        return _write(_refuse_known(listing, old), dataset, old, options, progress)


def _write(
    listing: Listing, out: Path, old: Catalogue | None, options: PackOptions, progress: Progress | None
) -> WriteReport:
    """Pack `listing` as the next version of `out`, which contains the rows of `old`.
    The caller holds the lock of `out`."""
    with PackFolder.open(partial_of(out, old), make_plan(listing, options, old)) as work:
        checked = check_images(work, listing, options, progress)
        samples, images, bad = sort_out(listing, checked.results)
        samples, images, duplicates = drop_duplicates(samples, images, options.dedupe, old, progress)
        if options.num_classes is not None:
            samples, images = _keep_largest(samples, images, options.num_classes)
        named = NamedSamples.number(samples, old)
        splits = [sample.split for sample in samples]
        sides, warnings = divide(named.labels, named.units, splits, named.names, options, old)
        warnings = [*listing.warnings, *warnings]
        warn(warnings)
        folder = name_shards(out, old, work.folder.name)
        first = 0 if old is None else len(old.shards)
        written = write_shards(work, folder, first, samples, images, named.labels, options, progress)
        columns = named.columns(samples, images, written.places, sides)
        added = named.describe(
            shards=written.shards, bad_samples=bad, duplicates=duplicates, options=options.record
        )
        if old is None:
            version, fingerprint = 1, publish_new(work.out, out, columns, added)
        else:
            publish_shards(work.shards, out / folder)
            version, columns = old.version + 1, join_columns(old.columns(), columns)
            fingerprint = add_version(out, version, columns, join_metadata(old, added))
    return make_report(
        out,
        version,
        added,
        sides,
        fingerprint,
        warnings,
        num_ignored=listing.num_ignored,
        notes=listing.notes,
        num_reused=checked.num_reused + written.num_reused,
    )


def _keep_largest(
    samples: Sequence[Candidate], images: Sequence[CheckedImage], num_classes: int
) -> tuple[list[Candidate], list[CheckedImage]]:
    """The images of the `num_classes` largest classes; ties are ordered by name."""
    counts = Counter(sample.label for sample in samples)
    if num_classes > len(counts):
        raise RequestError(f"num_classes={num_classes} is more than the {len(counts)} classes that exist")
    kept = set(sorted(counts, key=lambda label: (-counts[label], label))[:num_classes])
    pairs = [(sample, image) for sample, image in zip(samples, images, strict=True) if sample.label in kept]
    return [sample for sample, _ in pairs], [image for _, image in pairs]


def _list_source(
    source: Path, options: PackOptions, old: Catalogue | None = None
) -> tuple[Listing, PackOptions]:
    """(the images in `source`, `options` with the split that its folders give, if they are splits)."""
    if object_cache.place_of(object_cache.working_folder(source)) is not None:
        raise RequestError(f"source '{source}': pack reads images from a disk; copy them there first")
    if not source.is_dir():
        raise RequestError(f"source '{source}': no such folder")
    if options.columns is not None:
        return list_table(source, options.columns), options
    is_given = options.split == "folders"
    listing = list_folder(
        source, True if is_given and options.split_folders is None else options.split_folders
    )
    log_notes(listing)
    if any(sample.split for sample in listing.candidates):
        if old is not None and not is_given:
            raise RequestError(
                f"the folders of source '{source}' give its splits and append=True divides by the data set's own rule "
                f"({old.options.get('split')}); pack it as a separate data set, or use split_folders=False to "
                "read them as classes"
            )
        return listing, options.with_folder_splits(source)
    if is_given:
        raise RequestError(
            f"split_folders=False gives no splits, but those of the data set were given "
            f"({old.options.get('split') if old else 'folders'})"
        )
    return listing, options


def _refuse_known(listing: Listing, old: Catalogue) -> Listing:
    id_of = {key: sample_id for sample_id, key in enumerate(old.keys(np.arange(old.num_samples)))}
    fresh, bad = [], list(listing.bad)
    for sample in listing.candidates:
        if reason := _find_known(sample, id_of, old):
            bad.append(BadSample(sample.path, reason))
        else:
            fresh.append(sample)
    return replace(listing, candidates=fresh, bad=bad)


def _find_known(sample: Candidate, id_of: Mapping[str, int], old: Catalogue) -> str:
    """Why `sample` must not be added to `old`: it exists already, or may exist; empty if it is new."""
    hashed = make_key(sample.key_path, with_hash=True)
    for key in (sample.key, hashed):
        if key in id_of:
            return f"duplicate key '{key}', already in the data set"
    # A file that had no companion of another extension when it was packed, or an earlier rule, gave it this key.
    others = [make_key(sample.key_path)]
    if old.options.get("key_rule") != KEY_RULE:
        others.append(make_earlier_key(sample.key_path))
    for key in others:
        if key not in id_of:
            continue
        if old.options.get("resize") or old.options.get("resize_shorter"):
            return f"duplicate key '{key}': whether this image has it cannot be seen, because images were resized"
        if _has_bytes(sample.file, old.locate([id_of[key]])):
            return f"duplicate key '{key}', already in the data set"
    return ""


def _has_bytes(file: str, stored: Location) -> bool:
    try:
        if os.path.getsize(file) != stored.size[0]:
            return False
        return zlib.crc32(Path(file).read_bytes()) == stored.crc32[0]
    except OSError:  # the check of all images names it
        return False


def _with_rule_of(old: Catalogue, options: PackOptions) -> PackOptions:
    """`options` with the split rule and the size of images that the data set was made with."""
    plain = PackOptions()
    kept = ("split", "num_base", "fractions", "seed", "resize_shorter", "resize", "pixel_range")
    given = {name: getattr(options, name) for name in (*kept, "num_classes")}
    refused = [_describe(name, value) for name, value in given.items() if value != getattr(plain, name)]
    if refused:
        raise RequestError(
            f"append=True divides and resizes by the data set's own rule ({old.options.get('split')}, seed "
            f"{old.options.get('seed')}) and adds every class; leave {' and '.join(refused)} out (`resplit` "
            "divides again)"
        )
    rule: dict[str, Any] = {name: old.options.get(name) for name in kept}
    if rule["split"] in _GIVEN:
        rule["split"] = "column" if options.columns is not None else "folders"
    for name in ("fractions", "resize", "pixel_range"):
        if rule[name] is not None:
            rule[name] = tuple(rule[name])
    return replace(options, **rule)


def _describe(name: str, value: object) -> str:
    if isinstance(value, tuple):
        value = {"resize": "x", "pixel_range": ":"}.get(name, ",").join(map(str, value))
    return f"{name}={value}"
