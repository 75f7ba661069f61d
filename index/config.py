"""Settings of a neighbour index."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

from index.base.errors import ConfigError

Metric = Literal["l2", "inner_product", "cosine"]
Kind = Literal["flat", "ivf_flat", "ivf_pq", "hnsw", "factory"]
Device = Literal["auto", "cpu", "gpu"]

# Which kinds a setting belongs to; at its default it belongs to all.
KINDS_OF = {
    "factory": ("factory",),
    "nlist": ("ivf_flat", "ivf_pq"),
    "nprobe": ("ivf_flat", "ivf_pq", "factory"),
    "pq_m": ("ivf_pq",),
    "pq_bits": ("ivf_pq",),
    "hnsw_m": ("hnsw",),
    "ef_construction": ("hnsw",),
    "ef_search": ("hnsw", "factory"),
    "k_factor": ("ivf_flat", "ivf_pq", "hnsw", "factory"),
    "train_size": ("ivf_flat", "ivf_pq", "factory"),
}
# Largest values; what is above costs memory or time that no search is worth.
_AT_MOST = {"pq_bits": 12, "hnsw_m": 512, "k_factor": 1000}


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How an index is built; the verbs of `fsl-dist index` take these keys without the prefix."""

    kind: Kind = "flat"
    """Kind of index. flat is exact; ivf_flat is, where it probes every cluster; ivf_pq, hnsw and factory are not."""

    factory: str = ""
    """FAISS's own description of the index, such as OPQ16,IVF256,PQ16; kind=factory alone, which needs it."""

    metric: Metric = "l2"
    """l2 answers squared Euclidean distances, the smallest first; inner_product products, the largest first; cosine products of vectors
    divided by their lengths."""

    device: Device = "auto"
    """Where vectors are searched: gpu needs a GPU that FAISS sees; auto is cpu. Training and adding run on the CPU."""

    nlist: int = 0
    """Clusters of ivf_flat and ivf_pq; 0 is 4 times the square root of the number of vectors, at most a 39th of it."""

    nprobe: int = 0
    """Clusters that a query looks into, of nlist; 0 is a 16th of them. `fsl-dist index tune` finds a better number."""

    pq_m: int = 0
    """Bytes of code a vector, if pq_bits is 8; it must divide the dimension. 0 is the largest that leaves 4 numbers or more a byte."""

    pq_bits: int = 0
    """Bits a code, 1 to 12; 0 is 8, or fewer where there are fewer than 10,000 vectors to train on."""

    hnsw_m: int = 0
    """Links a vector in the graph, 2 to 512; 0 is 32."""

    ef_construction: int = 0
    """Candidates held while a vector is linked; 0 is 200."""

    ef_search: int = 0
    """Candidates held while a query walks the graph; 0 is 64."""

    k_factor: int = 0
    """k_factor · k + 10 candidates are judged by their true distances, 1 to 1000; 0 is 4 for ivf_pq and factory, else 1."""

    train_size: int = 0
    """Vectors drawn to train on; 0 is 64 a cluster."""

    shards: int = 1
    """Number of shard files, at least 1; each can be served by an actor of its own."""

    keep_versions: int = 3
    """Published versions that are kept, the new one included, at least 1."""

    memory_mb: int = 256
    """Vectors that a building process holds at once, in 10⁶ bytes, at least 1. FAISS's index of one shard comes on top."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kinds = getattr(self, field.name), KINDS_OF.get(field.name)
            if kinds is None:
                continue
            if value != field.default and self.kind not in kinds:
                raise ConfigError(
                    f"index.{field.name} belongs to {' or '.join(f'index.kind={kind}' for kind in kinds)}; "
                    f"this index has index.kind={self.kind}"
                )
            if isinstance(value, int):
                self._check_number(field.name, value)
        if self.kind == "factory" and not self.factory:
            raise ConfigError(
                "index.kind=factory needs index.factory, such as index.factory=OPQ16,IVF256,PQ16"
            )
        if self.nlist and self.nprobe > self.nlist:
            raise ConfigError(
                f"index.nprobe={self.nprobe} is above index.nlist={self.nlist}; a query cannot look into more "
                "clusters than there are"
            )
        if self.shards < 1:
            raise ConfigError(f"index.shards={self.shards} must be at least 1")
        if self.keep_versions < 1:
            raise ConfigError(
                f"index.keep_versions={self.keep_versions} must be at least 1 (the new version)"
            )
        if self.memory_mb < 1:
            raise ConfigError(f"index.memory_mb={self.memory_mb} must be at least 1")

    @staticmethod
    def _check_number(name: str, value: int) -> None:
        least = 2 if name == "hnsw_m" and value else 0
        most = _AT_MOST.get(name)
        if value < least or (most is not None and value > most):
            limits = f"{least or 1} to {most}" if most is not None else f"at least {least or 1}"
            raise ConfigError(f"index.{name}={value} must be {limits}, or 0 for the rule")
