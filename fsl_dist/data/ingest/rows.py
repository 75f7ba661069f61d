"""From listed samples to catalogue rows: checked images, numbered names, the report."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, Catalogue, CatalogueMetadata, ShardFile
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.division import number_names
from fsl_dist.data.ingest.listing import Candidate, Listing
from fsl_dist.data.ingest.shard_writer import StoredAt
from fsl_dist.data.write_report import BadSample, Duplicate, WriteReport
from fsl_dist.errors import RequestError

logger = logging.getLogger(__name__)

Columns = Mapping[str, Sequence[Any] | NDArray[Any]]
"""One sequence for each field of the catalogue."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedSamples:
    """Names of a list of samples, and their numbers (int64 [n], −1 for none)."""

    class_names: list[str]
    labels: NDArray[np.int64]
    group_names: list[str]
    groups: NDArray[np.int64]
    blind_group_names: list[str]
    blind_groups: NDArray[np.int64]
    unit_names: list[str]
    units: NDArray[np.int64]

    @classmethod
    def number(cls, samples: Sequence[Candidate], old: Catalogue | None = None) -> "NamedSamples":
        """Number the names of `samples`; names in `old` keep their numbers."""
        class_names, labels = number_names([s.label for s in samples], old.class_names if old else ())
        group_names, groups = number_names([s.group for s in samples], old.group_names if old else ())
        blind_group_names, blind_groups = number_names(
            [s.blind_group for s in samples], old.blind_group_names if old else ()
        )
        unit_names, units = number_names([s.unit for s in samples], old.unit_names if old else ())
        return cls(
            class_names=class_names,
            labels=labels,
            group_names=group_names,
            groups=groups,
            blind_group_names=blind_group_names,
            blind_groups=blind_groups,
            unit_names=unit_names,
            units=units,
        )

    def describe(
        self,
        *,
        shards: list[ShardFile],
        bad_samples: list[BadSample],
        options: dict[str, object],
        duplicates: Sequence[Duplicate] = (),
    ) -> CatalogueMetadata:
        """The catalogue metadata of these samples and of the way they were made."""
        return CatalogueMetadata(
            class_names=self.class_names,
            group_names=self.group_names,
            blind_group_names=self.blind_group_names,
            unit_names=self.unit_names,
            shards=shards,
            bad_samples=bad_samples,
            duplicates=list(duplicates),
            options=options,
        )

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """(of classes, of units)."""
        return self.class_names, self.unit_names

    def columns(
        self,
        samples: Sequence[Candidate],
        images: Sequence[CheckedImage],
        places: Sequence[StoredAt],
        sides: NDArray[np.int8],
    ) -> Columns:
        """Catalogue columns of these samples, which are stored at `places`."""
        masks = [image.mask for image in images]
        return {
            "key": [sample.key for sample in samples],
            "shard": [place.shard for place in places],
            "offset": [place.offset for place in places],
            "size": [image.size_bytes for image in images],
            "label": self.labels,
            "group": self.groups,
            "blind_group": self.blind_groups,
            "unit": self.units,
            "split": sides,
            "width": [image.width for image in images],
            "height": [image.height for image in images],
            "crc32": [image.crc32 for image in images],
            "mask_offset": [place.mask_offset for place in places],
            "mask_size": [0 if mask is None else mask.size_bytes for mask in masks],
            "mask_crc32": [0 if mask is None else mask.crc32 for mask in masks],
        }


def log_bad(bad: Sequence[BadSample]) -> None:
    """Log the samples that are left out: one warning for all, and a line for each."""
    for sample in bad:
        logger.info("left out '%s': %s", sample.path, sample.reason)
    if bad:
        logger.warning("left out %d samples; the first, '%s': %s", len(bad), bad[0].path, bad[0].reason)


def log_notes(listing: Listing) -> None:
    """Log how the source was read."""
    for note in listing.notes:
        logger.info("%s", note)


def warn(warnings: Sequence[str]) -> None:
    """Log each of `warnings`."""
    for warning in warnings:
        logger.warning("%s", warning)


def sort_out(
    listing: Listing, checked: Sequence[CheckedImage | str]
) -> tuple[list[Candidate], list[CheckedImage], list[BadSample]]:
    """(the good samples, their images, the bad ones, which are logged).

    checked: the result for each candidate, or why it cannot be used. Raises RequestError if none is good.
    """
    samples, images, bad = [], [], list(listing.bad)
    for candidate, image in zip(listing.candidates, checked, strict=True):
        if isinstance(image, str):
            bad.append(BadSample(candidate.path, image))
        else:
            samples.append(candidate)
            images.append(image)
    log_bad(bad)
    if not samples:
        raise RequestError(
            f"none of the {len(bad)} samples can be used; the first, '{bad[0].path}': {bad[0].reason}"
        )
    if listing.num_ignored:
        logger.info("%d files that are not named like images were ignored", listing.num_ignored)
    return samples, images, bad


def make_report(
    dataset: Path,
    version: int,
    written: CatalogueMetadata,
    sides: NDArray[np.int8],
    fingerprint: str,
    warnings: Sequence[str],
    *,
    num_ignored: int = 0,
    notes: Sequence[str] = (),
    num_reused: int = 0,
) -> WriteReport:
    """The report on the rows with these `sides` (int8 [n]); written: their shards, bad samples and duplicates."""
    counts = np.bincount(sides, minlength=len(SPLITS)).tolist()
    return WriteReport(
        dataset=str(dataset),
        version=version,
        num_samples=len(sides),
        num_classes=len(written.class_names),
        split_counts={name: count for name, count in zip(SPLITS, counts, strict=True) if count},
        num_shards=len(written.shards),
        size_bytes=sum(shard.size_bytes for shard in written.shards),
        bad_samples=tuple(written.bad_samples),
        num_ignored=num_ignored,
        notes=tuple(notes),
        warnings=tuple(warnings),
        fingerprint=fingerprint,
        duplicates=tuple(written.duplicates),
        num_reused=num_reused,
    )


def join_columns(first: Columns, second: Columns) -> Columns:
    """The rows of `first`, then those of `second`."""
    joined: dict[str, Sequence[Any] | NDArray[Any]] = {
        name: np.concatenate([values, second[name]]) for name, values in first.items() if name != "key"
    }
    return {**joined, "key": [*first["key"], *second["key"]]}


def join_metadata(old: Catalogue, added: CatalogueMetadata) -> CatalogueMetadata:
    """The catalogue metadata after samples that are numbered after those of `old` were added to it."""
    return replace(
        added,
        shards=[*old.shards, *added.shards],
        bad_samples=[*old.bad_samples, *added.bad_samples],
        duplicates=[*old.duplicates, *added.duplicates],
        options=old.options,
    )
