"""The report on a written data set: counts, and the samples that were left out."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that was left out of the data set."""

    path: str
    """relative to the packed source, or the table's entry as it was written"""
    reason: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A near-duplicate that was left out of the data set."""

    path: str
    """relative to the packed source"""
    kept: str
    """path of the image that stayed; its key where the data set had it before"""
    distance: int
    """bits in which their perceptual hashes differ"""
    label: str
    """class of the one left out"""
    kept_label: str

    @property
    def is_conflict(self) -> bool:
        """Whether the two had different classes."""
        return self.label != self.kept_label


@dataclass(frozen=True, kw_only=True, slots=True)
class WriteReport:
    """What `pack`, `append`, `adopt` or `resplit` wrote."""

    dataset: str
    version: int
    """of the catalogue"""
    num_samples: int
    num_classes: int
    split_counts: dict[str, int]
    """samples of each split that has any"""
    num_shards: int
    size_bytes: int
    """of all shards"""
    bad_samples: tuple[BadSample, ...]
    num_ignored: int
    """files in class folders that are not named like images"""
    warnings: tuple[str, ...]
    fingerprint: str
    notes: tuple[str, ...] = ()
    """how the source was read: as splits or classes, which files were skipped, which shards are concatenated"""
    duplicates: tuple[Duplicate, ...] = ()
    """near-duplicates that were left out"""
    num_reused: int = 0
    """pieces of work (chunks of checked images, shards) that an earlier try had finished"""
