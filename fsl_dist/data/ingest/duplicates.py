"""Near-duplicates: left out while packing, or listed for an existing data set."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.fingerprints import Fingerprints
from fsl_dist.data.images import CheckedImage
from fsl_dist.data.ingest.listing import Candidate
from fsl_dist.data.ingest.near_pairs import NEAR, NEAR_BY_NAME, NearPairs, find_near, read_fingerprints
from fsl_dist.data.names.keys import without_hash
from fsl_dist.data.write_report import Duplicate
from fsl_dist.errors import RequestError
from index.base.pieces import Progress

logger = logging.getLogger(__name__)

Dedupe = Literal["name", "phash"]
"""which near-duplicates `pack` leaves out: only those with one file name, or all"""

MAX_LISTED = 10_000
"""pairs that `NearDuplicates` lists; it counts all"""
# Pairs that a terminal shows.
_NUM_SHOWN = 20


def drop_duplicates(
    samples: Sequence[Candidate],
    images: Sequence[CheckedImage],
    dedupe: Dedupe | None,
    old: Catalogue | None = None,
    progress: Progress | None = None,
) -> tuple[list[Candidate], list[CheckedImage], list[Duplicate]]:
    """(samples to keep, their images, samples that are left out, by path). The order is kept;
    without `dedupe` all are kept.

    In the order of paths, an image is left out if it is a near-duplicate of a kept image, or of one in `old`, whose
    images are decoded for that (only those of the same name, with dedupe by name). The first such image is reported
    as the kept one. Needs images with fingerprints. Raises RequestError if no image is left.
    """
    if dedupe is None:
        return list(samples), list(images), []
    order = sorted(range(len(samples)), key=lambda row: samples[row].path)
    names = [_file_name(samples[row].key) for row in order]
    encoded = [images[row].fingerprint for row in order]
    contents = [(images[row].crc32, images[row].size_bytes) for row in order]
    old_ids = np.zeros(0, dtype=np.int64)
    if old is not None:
        old_names = [_file_name(key) for key in old.keys(np.arange(old.num_samples))]
        wanted = set(names)
        compared = [i for i, name in enumerate(old_names) if dedupe == "phash" or name in wanted]
        old_ids, old_encoded, old_contents = read_fingerprints(
            old, np.array(compared, dtype=np.int64), progress
        )
        names = [*(old_names[i] for i in old_ids), *names]
        encoded, contents = [*old_encoded, *encoded], [*old_contents, *contents]
    prints = Fingerprints(encoded, contents)
    if dedupe == "phash":
        pairs = find_near(prints, NEAR)
    else:
        pairs = find_near(prints, NEAR_BY_NAME, _group_by_name(names))
    num_old = len(old_ids)
    left_out = _leave_out(pairs, num_old)
    duplicates = []
    for row in sorted(left_out):
        kept, distance = left_out[row]
        sample = samples[order[row - num_old]]
        if old is not None and kept < num_old:
            kept_id = int(old_ids[kept])
            kept_name, kept_label = old.keys([kept_id])[0], old.label_name(int(old.labels[kept_id]))
        else:
            stayed = samples[order[kept - num_old]]
            kept_name, kept_label = stayed.path, stayed.label
        duplicates.append(Duplicate(sample.path, kept_name, distance, sample.label, kept_label))
    _log(duplicates, dedupe)
    stay = sorted(set(range(len(samples))) - {order[row - num_old] for row in left_out})
    if not stay:
        raise RequestError(
            f"dedupe={dedupe} leaves none of the {len(samples)} images: the data set has near-duplicates of all, the "
            f"first '{duplicates[0].path}' of '{duplicates[0].kept}'; there is nothing to append"
        )
    return [samples[row] for row in stay], [images[row] for row in stay], duplicates


def _file_name(key: str) -> str:
    return without_hash(key).rpartition("/")[2].casefold()


def _group_by_name(names: Sequence[str]) -> list[NDArray[np.int64]]:
    """Rows (int64, ascending) of each name that comes more than once."""
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        rows_of[name].append(row)
    return [np.array(rows, dtype=np.int64) for rows in rows_of.values() if len(rows) > 1]


def _leave_out(blocks: Iterable[NearPairs], num_old: int) -> dict[int, tuple[int, int]]:
    """Row left out → (kept row, distance): each row from `num_old` on that is near a kept one."""
    left_out: dict[int, tuple[int, int]] = {}
    for pairs in blocks:
        for row, other, distance in zip(
            pairs.rows.tolist(), pairs.others.tolist(), pairs.distances.tolist(), strict=True
        ):
            kept = (other, distance)
            if pairs.are_copies:
                kept = left_out.get(other, kept)
            if row >= num_old and row not in left_out and kept[0] not in left_out:
                left_out[row] = kept
    return left_out


def _log(duplicates: Sequence[Duplicate], dedupe: Dedupe) -> None:
    conflicts = [duplicate for duplicate in duplicates if duplicate.is_conflict]
    for duplicate in conflicts:
        logger.warning(
            "label conflict: '%s' (class '%s') is a near-duplicate of '%s' (class '%s') and left out",
            duplicate.path,
            duplicate.label,
            duplicate.kept,
            duplicate.kept_label,
        )
    logger.info(
        "dedupe=%s left out %d near-duplicates, %d of them of another class than the image kept",
        dedupe,
        len(duplicates),
        len(conflicts),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicate:
    """Two images of a data set that are nearly the same."""

    first: str
    """key of the one with the lower id"""
    first_split: str
    first_label: str
    """name of its class"""
    second: str
    second_split: str
    second_label: str
    distance: int
    """bits in which their perceptual hashes differ"""


@dataclass(frozen=True, kw_only=True, slots=True)
class NearDuplicates:
    """The near-duplicates in a data set."""

    num_compared: int
    """images"""
    num_unreadable: int
    """images that could not be compared"""
    num_pairs: int
    num_across_splits: int
    """pairs whose images are in different splits"""
    num_across_classes: int
    """pairs whose images have different classes"""
    pairs: list[NearDuplicate]
    """across splits first, then across classes, then by distance and id; at most `MAX_LISTED`"""

    @property
    def flags(self) -> list[str]:
        """Warnings to check before training."""
        flags = []
        for count, where, harm, is_across in (
            (
                self.num_across_splits,
                "splits",
                "scores on one split count what was learned from the other",
                lambda pair: pair.first_split != pair.second_split,
            ),
            (
                self.num_across_classes,
                "classes",
                "one of the labels is likely wrong",
                lambda pair: pair.first_label != pair.second_label,
            ),
        ):
            if count:
                pair = next((pair for pair in self.pairs if is_across(pair)), self.pairs[0])
                flags.append(
                    f"{count} pairs of near-duplicates are in different {where}, such as '{pair.first}' "
                    f"({pair.first_split}, class '{pair.first_label}') and '{pair.second}' ({pair.second_split}, "
                    f"class '{pair.second_label}'): {harm} (`pack` with dedupe=phash leaves out the later one)"
                )
        if self.num_unreadable:
            flags.append(f"{self.num_unreadable} images could not be compared (verify=True names them)")
        return flags


def find_near_duplicates(catalogue: Catalogue, progress: Progress | None = None) -> NearDuplicates:
    """Find all pairs of near-duplicates of a data set; decodes each image once.
    DataError if a shard is missing or truncated."""
    ids, encoded, contents = read_fingerprints(catalogue, np.arange(catalogue.num_samples), progress)
    splits, labels = catalogue.splits[ids], catalogue.labels[ids]
    counts = np.zeros(3, dtype=np.int64)
    listed = np.zeros((0, 5), dtype=np.int64)
    for pairs in find_near(Fingerprints(encoded, contents), NEAR):
        same_split = splits[pairs.rows] == splits[pairs.others]
        same_label = labels[pairs.rows] == labels[pairs.others]
        counts += np.array([len(same_split), np.sum(~same_split), np.sum(~same_label)])
        found = np.stack([same_split, same_label, pairs.distances, pairs.others, pairs.rows], axis=1)
        listed = np.concatenate([listed, found])
        listed = listed[np.lexsort(listed.T[::-1])][:MAX_LISTED]
    first, second = ids[listed[:, 3]], ids[listed[:, 4]]
    return NearDuplicates(
        num_compared=len(ids),
        num_unreadable=catalogue.num_samples - len(ids),
        num_pairs=int(counts[0]),
        num_across_splits=int(counts[1]),
        num_across_classes=int(counts[2]),
        pairs=[
            NearDuplicate(
                first=catalogue.keys([one])[0],
                first_split=SPLITS[catalogue.splits[one]],
                first_label=catalogue.label_name(int(catalogue.labels[one])),
                second=catalogue.keys([other])[0],
                second_split=SPLITS[catalogue.splits[other]],
                second_label=catalogue.label_name(int(catalogue.labels[other])),
                distance=distance,
            )
            for one, other, distance in zip(
                first.tolist(), second.tolist(), listed[:, 2].tolist(), strict=True
            )
        ],
    )


def describe_near_duplicates(found: NearDuplicates) -> str:
    """The result as lines for a terminal."""
    lines = [
        f"compared    {found.num_compared} images: {found.num_pairs} pairs of near-duplicates, "
        f"{found.num_across_splits} across splits, {found.num_across_classes} across classes"
    ]
    lines += [
        f"  {pair.first} ({pair.first_split}, {pair.first_label})  {pair.second} ({pair.second_split}, "
        f"{pair.second_label})  distance {pair.distance}"
        for pair in found.pairs[:_NUM_SHOWN]
    ]
    if found.num_pairs > _NUM_SHOWN:
        lines.append(f"  … {found.num_pairs - _NUM_SHOWN} more; the JSON result lists up to {MAX_LISTED}")
    return "\n".join(lines)
