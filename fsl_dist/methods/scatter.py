"""Deep clustering by episodes: the multivariate scatter loss on the support, cross entropy on the query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from fsl_dist.methods.episodic import Episodes, count_episodes, split_outputs
from fsl_dist.methods.method import (
    Batch,
    BatchLoss,
    EpochPlan,
    EpochSize,
    MethodContext,
    MethodSettings,
    Traits,
)
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.samplers.episode import EpisodeConfig


@settings("method")
class ScatterConfig(MethodSettings):
    """Deep clustering: prototypical episodes with the multivariate scatter loss;
    scored by clusters of unknown classes."""

    kind: Literal["scatter"] = "scatter"
    scatter_weight: Annotated[float, Field(ge=0, le=1)] = 0.1
    """share of the scatter loss in the loss, 0 … 1; the rest is cross entropy (α of deep clustering Eq. 3). The paper
    selects it by validation CA, and finds 0.1 for ConvNeXt-B on EU Moths"""
    distance: Literal["euclidean", "squared"] = "euclidean"
    """of a query to its prototypes in the cross entropy: as deep clustering Eq.
    2 has it, or squared as in prototypical networks"""

    @property
    def traits(self) -> Traits:
        """Trained on episodes, validated and scored by clusters of classes that may be new."""
        return Traits(is_episodic=True, protocols=("kmeans", "spectral"), stop_metric="kmeans/ca")

    def check_episode(self, episode: EpisodeConfig) -> None:
        """The scatter of a class needs two images of it."""
        if self.scatter_weight > 0 and episode.k_shot < 2:
            raise ConfigError(
                f"episode.k_shot={episode.k_shot} with method.scatter_weight={self.scatter_weight:g}: one image has no "
                "scatter about its mean, so that term would be 0 (episode.k_shot=2 or more, or method.scatter_weight=0)"
            )

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """An epoch has `episode.per_epoch` episodes."""
        return count_episodes(plan)

    def build(self, context: MethodContext) -> Scatter:
        """The method over the training images."""
        return Scatter(context, self)


class Scatter(Episodes):
    """Episodes and a loss of two terms; prototypes are the support's means and are not stored."""

    def __init__(self, context: MethodContext, method: ScatterConfig) -> None:
        super().__init__(context)
        self.method = method
        self.metrics = (
            *(("train/scatter", "train/scatter_clamped") if method.scatter_weight > 0 else ()),
            *(("train/cross_entropy", "train/accuracy") if method.scatter_weight < 1 else ()),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Eq. 3 on one episode; a term that is not computed is not reported either."""
        from fsl_dist.losses.scatter import scatter_episode_loss

        _, support, query = split_outputs(outputs, batch)
        result = scatter_episode_loss(
            support, query, scatter_weight=self.method.scatter_weight, distance=self.method.distance
        )
        terms = {
            "train/scatter": result.scatter,
            "train/scatter_clamped": result.is_clamped,
            "train/cross_entropy": result.cross_entropy,
            "train/accuracy": result.accuracy,
        }
        return BatchLoss(result.loss, {name: value for name, value in terms.items() if value is not None})
