"""Settings of deep kNN's neighbour search: the section `mining` of a run's settings."""

from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings


@settings("mining")
class MiningConfig:
    """Which images are anchors, and where their neighbours are searched."""

    source: Literal["batch", "dataset"] = "batch"
    """within the global mini-batch, or among all training images"""
    neighbours: Literal["memory", "decoded"] = "memory"
    """dataset only. memory: neighbours are rows of a table of all training images' embeddings, which each step's
    embeddings overwrite; decoded: neighbours are found by the neighbour index, and are decoded and forwarded with the
    anchors"""
    anchor_power: Annotated[float, Field(ge=0, le=1)] = 0.5
    """anchors of class c are drawn in proportion to n_c^power, n_c its number of training images: 1 as sized, 0
    class-balanced. Stratified batches (method.classes_per_batch) are drawn otherwise"""
    refresh_steps: Annotated[int, Field(ge=0)] | Literal["auto"] = "auto"
    """steps between two passes that embed all training images: for the memory's rows, or for the table of decoded
    neighbours. 0: the first step's only; auto: that for memory, every epoch for decoded"""
    refresh_lag: Annotated[int, Field(ge=0)] = 0
    """number of steps after its start at which a pass takes effect, less than the steps between two passes; training
    waits for a late pass. The first pass is awaited at once"""
    run: Literal["inline", "beside"] = "inline"
    """`inline`: the training workers run the passes, between two steps; `beside`: separate Ray actors run them,
    concurrently with training"""
    memory_gb: Annotated[float, Field(gt=0)] = 8.0
    """memory: maximum size of the embeddings per worker, in 10⁹ bytes; the workers share the rows"""
    actors: Annotated[int, Field(ge=1)] = 1
    """`run=beside`: number of actors that share the embedding and the search"""
    cpus: Annotated[int, Field(ge=1)] = 1
    """`run=beside`: CPU cores that each actor reserves in Ray"""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """`run=beside`: GPUs that each actor reserves in Ray; 0: embed on the CPU; below 1: several actors share a GPU"""

    def __post_init__(self) -> None:
        if isinstance(self.refresh_steps, int) and 0 < self.refresh_steps <= self.refresh_lag:
            raise ConfigError(
                f"mining.refresh_lag={self.refresh_lag} must be below mining.refresh_steps={self.refresh_steps}: a "
                "pass takes effect before the next one starts"
            )
        if self.refresh_lag and self.refresh_steps == 0:
            raise ConfigError(
                f"mining.refresh_lag={self.refresh_lag} with mining.refresh_steps=0 delays nothing: the first pass is "
                "waited for, and there is no other pass (mining.refresh_steps=N starts one every N steps)"
            )
        if self.run == "beside" and self.source != "dataset":
            raise ConfigError(
                "mining.run=beside runs the passes of mining.source=dataset; mining.source=batch has none"
            )

    @property
    def is_beside(self) -> bool:
        """Whether Ray actors run the passes, concurrently with training."""
        return self.run == "beside"
