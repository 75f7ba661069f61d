"""Settings of a neighbour index."""

from dataclasses import dataclass
from typing import Literal

from index.errors import ConfigError

Metric = Literal["l2", "inner_product"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How an index is built; the verbs of `fsl-dist index` take these keys without the prefix."""

    kind: Literal["flat"] = "flat"
    """Kind of index: flat is exact."""

    metric: Literal["l2", "inner_product"] = "l2"
    """l2 answers squared Euclidean distances, the smallest first; inner_product products, the largest first."""

    shards: int = 1
    """Number of shard files, at least 1; each can be served by an actor of its own."""

    keep_versions: int = 3
    """Published versions that are kept, the new one included, at least 1."""

    memory_mb: int = 256
    """Vectors that a building process holds at once, in 10⁶ bytes, at least 1. FAISS's index of one shard comes on top."""

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ConfigError(f"index.shards={self.shards} must be at least 1")
        if self.keep_versions < 1:
            raise ConfigError(
                f"index.keep_versions={self.keep_versions} must be at least 1 (the new version)"
            )
        if self.memory_mb < 1:
            raise ConfigError(f"index.memory_mb={self.memory_mb} must be at least 1")
