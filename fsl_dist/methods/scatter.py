"""Deep clustering by episodes: the multivariate scatter loss on the support, cross entropy on the query."""

from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.losses.scatter import scatter_episode_loss
from fsl_dist.methods.config import ScatterConfig
from fsl_dist.methods.episodic import Episodes, split_outputs
from fsl_dist.methods.method import Batch, BatchLoss, Memoryless


class Scatter(Episodes, Memoryless):
    """Episodes and a loss of two terms; prototypes are the support's means, and nothing is kept of them."""

    def __init__(
        self, config: RunConfig, method: ScatterConfig, selection: Selection, class_names: list[str]
    ) -> None:
        super().__init__(config, selection, class_names)
        self.method = method
        self.metrics: tuple[str, ...] = (
            *(("train/scatter", "train/scatter_clamped") if method.scatter_weight > 0 else ()),
            *(("train/cross_entropy", "train/accuracy") if method.scatter_weight < 1 else ()),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Eq. 3 on one episode; a term that is not computed is not reported either."""
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
