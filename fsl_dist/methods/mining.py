"""Where deep kNN finds its neighbours: the section `mining` of a run's settings."""

from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from index.base.settings import settings


@settings("mining")
class MiningConfig:
    """Where deep kNN finds an anchor's neighbours."""

    source: Literal["batch", "dataset"] = "batch"
    """within the global mini-batch, or over all training images by the neighbour index"""
    run: Literal["inline", "beside"] = "inline"
    """inline: the training workers refresh the table themselves, between two steps; beside: Ray actors with
    resources of their own do, concurrently with training"""
    anchors: Literal["shuffled", "near"] = "shuffled"
    """dataset: which anchors make a step. shuffled: any; near: such as have neighbours in common, so that a step decodes
    fewer images (training.batch_size can be larger, docs/deep_knn.md)"""
    refresh_steps: Annotated[int, Field(ge=0)] = 0
    """steps between two refreshes of the neighbour table; 0 = at the start of every epoch"""
    refresh_lag: Annotated[int, Field(ge=0)] = 0
    """steps after its start at which a refresh takes effect, below the steps between two refreshes; training waits
    for a table that is late. The first one is waited for at once"""
    actors: Annotated[int, Field(ge=1)] = 1
    """beside: actors that share the embedding and the search"""
    cpus: Annotated[int, Field(ge=1)] = 1
    """beside: CPU cores each actor asks Ray for"""
    gpus: Annotated[float, Field(ge=0)] = 0.0
    """beside: GPUs each actor asks Ray for; 0 = it embeds on the CPU, below 1 = several share a GPU"""

    def __post_init__(self) -> None:
        if 0 < self.refresh_steps <= self.refresh_lag:
            raise ConfigError(
                f"mining.refresh_lag={self.refresh_lag} must be below mining.refresh_steps={self.refresh_steps}: a "
                "refresh takes effect before the next one starts"
            )
        if self.run == "beside" and self.source != "dataset":
            raise ConfigError(
                "mining.run=beside refreshes the table of mining.source=dataset; mining.source=batch has none"
            )
        if self.anchors == "near" and self.source != "dataset":
            raise ConfigError(
                "mining.anchors=near goes by the neighbour table of mining.source=dataset; mining.source=batch has none"
            )

    @property
    def is_beside(self) -> bool:
        """Whether Ray actors mine concurrently with training."""
        return self.run == "beside"
