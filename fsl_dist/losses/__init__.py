"""The papers' equations as pure functions of embeddings."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.losses.batch_hard import batch_hard_loss as batch_hard_loss
    from fsl_dist.losses.cross_entropy import class_weights as class_weights
    from fsl_dist.losses.cross_entropy import cross_entropy_loss as cross_entropy_loss
    from fsl_dist.losses.deep_knn import batch_neighbours as batch_neighbours
    from fsl_dist.losses.deep_knn import deep_knn_loss as deep_knn_loss
    from fsl_dist.losses.nca import few_shot_nca_loss as few_shot_nca_loss
    from fsl_dist.losses.pcn import PCNEpisode as PCNEpisode
    from fsl_dist.losses.pcn import class_scores as class_scores
    from fsl_dist.losses.pcn import pcn_episode_loss as pcn_episode_loss
    from fsl_dist.losses.pcn import update_prototypes as update_prototypes
    from fsl_dist.losses.scatter import ScatterEpisode as ScatterEpisode
    from fsl_dist.losses.scatter import scatter_episode_loss as scatter_episode_loss
    from fsl_dist.losses.scatter import scatter_loss as scatter_loss
    from fsl_dist.losses.triplet import triplet_loss as triplet_loss

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
