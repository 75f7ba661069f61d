"""Pack a source into WebDataset tar shards and a catalogue; append one to a data set that is there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fsl_dist.data.catalogue import BadSample, Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.division import SplitOptions, divide, divide_added
from fsl_dist.data.ingest.duplicates import drop_duplicates
from fsl_dist.data.ingest.listing import Candidate, Listing, list_folder, list_table
from fsl_dist.data.ingest.next_version import (
    STAGING,
    add_version,
    check_new,
    hold_dataset,
    name_appended,
    publish_new,
    publish_shards,
    work_beside,
)
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.pack_pieces import check_images, make_plan, write_shards
from fsl_dist.data.ingest.rows import (
    NamedSamples,
    Progress,
    WriteReport,
    join_columns,
    make_report,
    sort_out,
    warn,
)
from fsl_dist.data.ingest.work_folder import WorkFolder
from fsl_dist.data.resize import StoredSize
from fsl_dist.errors import RequestError
from index.base import object_cache
from index.base.files import create_folder, hold_lock


def pack(
    source: str | Path, out: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Write every readable image of `source` to shards and a catalogue in the new folder `out`.

    Images are stored as they are, unless `options` resize them. Those that cannot be used are named with the
    reason in the log, the report and the catalogue; the rest is packed, without near-duplicates where `options` say so.
    The output's bytes depend on the source and `options` (but not on its processes) alone. It is written beside `out`
    and renamed, so `out` is complete or not there. What a killed or interrupted try had finished beside it is taken over where source and options are the same,
    else removed; after an error that lies in the source or the request nothing is left.
    `progress(stage, done, total)` is called as the work goes on. Reads every image twice, or once where it is
    resized, and decodes it once.

    Raises RequestError, with nothing written, where the request cannot be served; DataError where a file
    changes meanwhile.
    """
    source, out = Path(source), object_cache.working_folder(out)
    check_new(out)
    listing = _list_source(source, options)
    # The lock dies with its process, so what lies under this name once it is held was left by a killed one.
    partial = work_beside(out)
    with hold_lock(partial.with_name(f".{out.name}.lock")):
        check_new(out)
        with WorkFolder.open(partial, make_plan(listing, options)) as work:
            checked = check_images(work, listing, options, progress)
            samples, images, bad = sort_out(listing, checked.results)
            samples, images, duplicates = drop_duplicates(samples, images, options.dedupe)
            if options.num_classes is not None:
                samples, images = _keep_largest(samples, images, options.num_classes)
            named = NamedSamples.number(samples)
            sides, warnings = divide(
                named.labels, named.units, [sample.split for sample in samples], named.names, options
            )
            warn(warnings)
            written = write_shards(work, "shards", samples, images, named.labels, options, progress)
            metadata = CatalogueMetadata(
                class_names=named.class_names,
                group_names=named.group_names,
                blind_group_names=named.blind_group_names,
                unit_names=named.unit_names,
                shards=written.shards,
                bad_samples=bad,
                duplicates=duplicates,
                options=options.record,
            )
            create_folder(work.out / "catalogue")
            fingerprint = write_catalogue(
                work.out / "catalogue" / "000001.arrow",
                named.columns(samples, images, written.places, sides),
                metadata,
            )
            publish_new(work.out, out)
    num_reused = checked.num_reused + written.num_reused
    return make_report(
        out,
        1,
        metadata,
        sides,
        written.shards,
        bad,
        listing.num_ignored,
        warnings,
        fingerprint,
        duplicates,
        num_reused,
    )


def append(
    source: str | Path, dataset: str | Path, options: PackOptions, progress: Progress | None = None
) -> WriteReport:
    """Add every readable image of `source` to a data set: new shards and the next catalogue version.

    Old versions stay as they are, with their ids. Old samples keep their split; the new ones are divided by
    the data set's own rule and seed, so `options` must leave those at their defaults. Old classes and groups
    keep their numbers, new ones follow. A key that the data set has is a bad sample. The report counts what was
    added. Raises as `pack` does; killed or failed, it leaves the data set as it was, and goes on as `pack` does.
    """
    source, dataset = Path(source), object_cache.working_folder(dataset)
    with hold_dataset(dataset) as old:
        options = _with_rule_of(old, options)
        known = set(old.keys(np.arange(old.num_samples)))
        listing = _refuse_known(_list_source(source, options), known)
        with WorkFolder.open(dataset / STAGING, make_plan(listing, options, old)) as work:
            checked = check_images(work, listing, options, progress)
            samples, images, bad = sort_out(listing, checked.results)
            samples, images, duplicates = drop_duplicates(samples, images, options.dedupe, old, progress)
            named = NamedSamples.number(samples, old)
            sides, warnings = divide_added(
                old, named.labels, named.units, [sample.split for sample in samples], named.names, options
            )
            warn(warnings)
            version = old.version + 1
            folder = name_appended(version)
            if object_cache.place_of(dataset) is not None:
                folder += f"-{work.path.name}"  # of these pieces alone, whoever else appends
            written = write_shards(work, folder, samples, images, named.labels, options, progress)
            publish_shards(work.out / folder, dataset / folder)
            first = len(old.shards)
            places = [replace(place, shard=first + place.shard) for place in written.places]
            added = named.columns(samples, images, places, sides)
            metadata = CatalogueMetadata(
                class_names=named.class_names,
                group_names=named.group_names,
                blind_group_names=named.blind_group_names,
                unit_names=named.unit_names,
                shards=[*old.shards, *written.shards],
                bad_samples=[*old.bad_samples, *bad],
                duplicates=[*old.duplicates, *duplicates],
                options=old.options,
            )
            fingerprint = add_version(dataset, version, join_columns(old.columns(), added), metadata)
    num_reused = checked.num_reused + written.num_reused
    return make_report(
        dataset,
        version,
        metadata,
        sides,
        written.shards,
        bad,
        listing.num_ignored,
        warnings,
        fingerprint,
        duplicates,
        num_reused,
    )


def _keep_largest(
    samples: Sequence[Candidate], images: Sequence[CheckedImage], num_classes: int
) -> tuple[list[Candidate], list[CheckedImage]]:
    """The images of the `num_classes` classes with the most of them; by name where they have equally many."""
    counts = Counter(sample.label for sample in samples)
    if num_classes > len(counts):
        raise RequestError(
            f"--num-classes={num_classes} asks for more classes than the {len(counts)} there are"
        )
    kept = set(sorted(counts, key=lambda label: (-counts[label], label))[:num_classes])
    pairs = [(sample, image) for sample, image in zip(samples, images, strict=True) if sample.label in kept]
    return [sample for sample, _ in pairs], [image for _, image in pairs]


def _list_source(source: Path, options: PackOptions) -> Listing:
    if object_cache.place_of(object_cache.working_folder(source)) is not None:
        raise RequestError(f"source '{source}': pack reads images from a disk; copy them there first")
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
    if options.num_classes is not None:
        raise RequestError("--append adds every class; leave --num-classes out")
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
