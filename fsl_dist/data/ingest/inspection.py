"""Statistics of a data set, and a check that its bytes are unchanged since it was packed."""

from dataclasses import dataclass

import numpy as np

from fsl_dist.data.catalogue import SPLITS, Catalogue
from fsl_dist.data.store import ShardStore
from fsl_dist.data.write_report import BadSample, Duplicate
from fsl_dist.errors import DataError, VersionError

# A read of this many samples needs about 10 MB for photographs.
_VERIFY_BATCH = 128

SMALL_CLASS = 5
"""a class with fewer images is flagged: it hardly suffices for k_shot and n_query"""

SIZE_FACTOR = 4
"""an image is flagged whose shorter side is this many times below the median, or the longer one above"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tail:
    """How uneven the class sizes are."""

    largest: int
    """images of the largest class"""
    median: float
    smallest: int
    ratio: float
    """largest / smallest"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitSummary:
    """One split."""

    num_samples: int
    num_classes: int
    tail: Tail
    """over the split's own classes"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSummary:
    """What `summarise` reports."""

    dataset: str
    version: int
    fingerprint: str
    num_samples: int
    num_classes: int
    num_groups: int
    num_blind_groups: int
    num_shards: int
    size_bytes: int
    """of all shards"""
    splits: dict[str, SplitSummary]
    split_rule: str
    """how samples were divided: `stratified`, `classes`, `base-novel`, by a `column`, or by the source's `folders`"""
    tail: Tail
    """over all splits together"""
    class_counts: dict[str, int]
    """images of each class, all splits together, largest first"""
    width: tuple[int, float, int]
    """smallest, median, largest, pixels"""
    height: tuple[int, float, int]
    bad_samples: list[BadSample]
    """left out when the data set was made"""
    duplicates: list[Duplicate]
    """left out as near-duplicates when the data set was made"""
    flags: list[str]
    """warnings to check before training: shards that changed, small classes, unusual sizes"""


def summarise(catalogue: Catalogue) -> DatasetSummary:
    """Summarise one catalogue version. Reads no image."""
    counts = np.bincount(catalogue.labels, minlength=catalogue.num_classes)
    order = np.argsort(-counts, kind="stable")
    sizes = catalogue.image_sizes(np.arange(catalogue.num_samples))
    splits = {}
    for name in catalogue.split_names:
        of_split = catalogue.select(name)
        splits[name] = SplitSummary(
            num_samples=len(of_split), num_classes=of_split.num_classes, tail=_measure_tail(of_split.counts)
        )
    return DatasetSummary(
        dataset=str(catalogue.folder),
        version=catalogue.version,
        fingerprint=catalogue.fingerprint,
        num_samples=catalogue.num_samples,
        num_classes=catalogue.num_classes,
        num_groups=len(catalogue.group_names),
        num_blind_groups=len(catalogue.blind_group_names),
        num_shards=len(catalogue.shards),
        size_bytes=sum(shard.size_bytes for shard in catalogue.shards),
        splits=splits,
        split_rule=str(catalogue.options.get("split", "")),
        tail=_measure_tail(counts[counts > 0]),
        class_counts={catalogue.class_names[label]: int(counts[label]) for label in order},
        height=_spread(sizes[:, 0]),
        width=_spread(sizes[:, 1]),
        bad_samples=catalogue.bad_samples,
        duplicates=catalogue.duplicates,
        flags=[*_flag_shards(catalogue), *_flag_tail(catalogue, counts), *_flag_sizes(catalogue, sizes)],
    )


def _flag_shards(catalogue: Catalogue) -> list[str]:
    """The first shard that is missing or has another size."""
    try:
        ShardStore(catalogue).check_files()
    except DataError as error:
        return [str(error)]
    return []


def _flag_tail(catalogue: Catalogue, counts: np.ndarray) -> list[str]:
    """counts: int64 [num_classes]."""
    small = np.flatnonzero((counts > 0) & (counts < SMALL_CLASS))
    if not len(small):
        return []
    smallest = small[np.argmin(counts[small])]
    return [
        f"{len(small)} of {np.count_nonzero(counts)} classes have fewer than {SMALL_CLASS} images, class "
        f"'{catalogue.class_names[smallest]}' {counts[smallest]}: an episode needs k_shot + n_query of each "
        "(episode.small_classes=replace or skip)"
    ]


def _flag_sizes(catalogue: Catalogue, sizes: np.ndarray) -> list[str]:
    """sizes: int64 [num_samples, 2] (height, width)."""
    shorter, longer = sizes.min(axis=1), sizes.max(axis=1)
    flags = []
    for side, rule, odd, median in (
        (
            "shorter",
            f"below 1/{SIZE_FACTOR} of",
            shorter * SIZE_FACTOR < np.median(shorter),
            np.median(shorter),
        ),
        ("longer", f"above {SIZE_FACTOR} times", longer > SIZE_FACTOR * np.median(longer), np.median(longer)),
    ):
        if odd.any():
            first = int(np.argmax(odd))
            height, width = sizes[first]
            flags.append(
                f"{np.count_nonzero(odd)} images have a {side} side {rule} the median ({median:g} "
                f"pixels), such as '{catalogue.keys([first])[0]}' ({width} × {height})"
            )
    return flags


def _measure_tail(counts: np.ndarray) -> Tail:
    return Tail(
        largest=int(counts.max()),
        median=float(np.median(counts)),
        smallest=int(counts.min()),
        ratio=float(counts.max() / counts.min()),
    )


def _spread(values: np.ndarray) -> tuple[int, float, int]:
    return int(values.min()), float(np.median(values)), int(values.max())


def find_damage(catalogue: Catalogue, threads: int = 2) -> list[BadSample]:
    """Read every sample again, compare its checksum, and name those that differ (path = the key).

    Also hashes the catalogue itself (named as its file). Reads the whole data set once, in shard order.
    """
    damaged = []
    try:
        catalogue.check_fingerprint()
    except VersionError as error:
        damaged.append(BadSample(f"catalogue/{catalogue.version:06d}.arrow", str(error)))
    where = catalogue.locate(np.arange(catalogue.num_samples))
    order = np.lexsort((where.offset, where.shard))
    store = ShardStore(catalogue, threads=threads)
    try:
        for start in range(0, len(order), _VERIFY_BATCH):
            batch = order[start : start + _VERIFY_BATCH]
            try:
                store.read(batch)
                store.read_masks(batch)
            except DataError:
                damaged += _find_damaged_samples(catalogue, store, batch)
    finally:
        store.close()
    return damaged


def _find_damaged_samples(catalogue: Catalogue, store: ShardStore, ids: np.ndarray) -> list[BadSample]:
    """Check samples one by one, after a batch contained damage."""
    damaged = []
    for sample_id in ids:
        try:
            store.read(sample_id[None])
            store.read_masks(sample_id[None])
        except DataError as error:
            damaged.append(BadSample(catalogue.keys(sample_id[None])[0], str(error)))
    return damaged


def describe(summary: DatasetSummary) -> str:
    """The summary as lines for a terminal."""
    tail = summary.tail
    lines = [
        f"data set    {summary.dataset}, catalogue version {summary.version}",
        f"samples     {summary.num_samples} in {summary.num_shards} shards, {summary.size_bytes / 1e6:.1f} MB",
        f"classes     {summary.num_classes}: {tail.largest} … {tail.smallest} images, median {tail.median:g}, "
        f"ratio {tail.ratio:.1f}",
        f"groups      {summary.num_groups}, blind groups {summary.num_blind_groups}",
        f"widths      {summary.width[0]} … {summary.width[2]}, median {summary.width[1]:g} pixels",
        f"heights     {summary.height[0]} … {summary.height[2]}, median {summary.height[1]:g} pixels",
    ]
    if summary.split_rule:
        lines.append(f"{'split':<11} {summary.split_rule}")
    for name in SPLITS:
        split = summary.splits.get(name)
        if split is not None:
            lines.append(
                f"{name:<11} {split.num_samples} samples of {split.num_classes} classes, "
                f"{split.tail.largest} … {split.tail.smallest} per class"
            )
    lines += [f"{'look at':<11} {flag}" for flag in summary.flags]
    names = list(summary.class_counts)
    shown = names if len(names) <= 12 else [*names[:6], "…", *names[-6:]]
    lines += ["", *(name if name == "…" else f"{summary.class_counts[name]:>8}  {name}" for name in shown)]
    if summary.bad_samples:
        lines += ["", f"left out when packed: {len(summary.bad_samples)}"]
        lines += [f"  {bad.path}: {bad.reason}" for bad in summary.bad_samples]
    if summary.duplicates:
        lines += ["", f"left out as near-duplicates: {len(summary.duplicates)}"]
        lines += [
            f"  {duplicate.path}: {'of another class, ' if duplicate.is_conflict else ''}near {duplicate.kept}, "
            f"distance {duplicate.distance}"
            for duplicate in summary.duplicates
        ]
    return "\n".join(lines)
