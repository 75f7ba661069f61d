"""What was written to a data set, and what was left out."""

from dataclasses import dataclass

from fsl_dist.data.catalogue import BadSample, Duplicate


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
    duplicates: tuple[Duplicate, ...] = ()
    """near-duplicates that were left out"""
    num_reused: int = 0
    """pieces of work (chunks of checked images, shards) that an earlier try had finished"""
