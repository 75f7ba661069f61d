"""Settings of a neighbour index."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from index.base.errors import ConfigError
from index.base.settings import settings

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


@settings("index")
class IndexConfig:
    """How an index is built (the `index.*` keys)."""

    kinds_of: ClassVar[Mapping[str, tuple[str, ...]]] = KINDS_OF
    """For `lay_over`."""

    kind: Kind = "flat"
    """Kind of index. flat is exact; ivf_flat is exact if it probes every cluster;
    ivf_pq, hnsw and factory are approximate."""

    factory: str = ""
    """FAISS's own description of the index, such as OPQ16,IVF256,PQ16; kind=factory alone, which needs it."""

    metric: Metric = "l2"
    """l2 answers squared Euclidean distances, the smallest first; inner_product products, the largest first; cosine
    products of vectors divided by their lengths."""

    device: Device = "auto"
    """Where vectors are searched: gpu needs a GPU that FAISS sees; auto is cpu. Training and adding run on the CPU."""

    nlist: Annotated[int, Field(ge=0)] = 0
    """Clusters of ivf_flat and ivf_pq; 0 is 4 times the square root of the number of vectors, at most a 39th of it."""

    nprobe: Annotated[int, Field(ge=0)] = 0
    """Clusters that are searched per query, of nlist; 0 is a 16th of them. `index.tune` finds a better number."""

    pq_m: Annotated[int, Field(ge=0)] = 0
    """Bytes of code a vector, if pq_bits is 8; it must divide the dimension. 0 is the largest that leaves 4 numbers
    or more a byte."""

    pq_bits: Annotated[int, Field(ge=0, le=12)] = 0
    """Bits per code; 0 is 8, or fewer if there are fewer than 10,000 vectors to train on."""

    hnsw_m: Literal[0] | Annotated[int, Field(ge=2, le=512)] = 0
    """Links a vector in the graph; 0 is 32."""

    ef_construction: Annotated[int, Field(ge=0)] = 0
    """Candidates that are kept while a vector is linked; 0 is 200."""

    ef_search: Annotated[int, Field(ge=0)] = 0
    """Candidates that are kept while a query walks the graph; 0 is 64."""

    k_factor: Annotated[int, Field(ge=0, le=1000)] = 0
    """k_factor · k + 10 candidates are ranked by their true distances; 0 is 4 for ivf_pq and factory, otherwise 1."""

    train_size: Annotated[int, Field(ge=0)] = 0
    """Vectors drawn to train on; 0 is 64 a cluster."""

    shards: Annotated[int, Field(ge=1)] = 1
    """Number of shard files; each can be served by a separate actor."""

    keep_versions: Annotated[int, Field(ge=1)] = 3
    """Published versions that are kept, including the new one."""

    memory_mb: Annotated[int, Field(ge=1)] = 256
    """Memory for vectors per building process, in 10⁶ bytes. The FAISS index of one shard needs additional memory."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            kinds = KINDS_OF.get(field.name, (self.kind,))
            if getattr(self, field.name) != field.default and self.kind not in kinds:
                raise ConfigError(
                    f"index.{field.name} belongs to {' or '.join(f'index.kind={kind}' for kind in kinds)}; "
                    f"this index has index.kind={self.kind}"
                )
        if self.kind == "factory" and not self.factory:
            raise ConfigError(
                "index.kind=factory needs index.factory, such as index.factory=OPQ16,IVF256,PQ16"
            )
        if self.nlist and self.nprobe > self.nlist:
            raise ConfigError(
                f"index.nprobe={self.nprobe} is above index.nlist={self.nlist}; a query cannot search more "
                "clusters than exist"
            )
