"""One run: data, samplers, models, methods, training and evaluation.

What `__all__` names is public and told in docs/api.md; it is loaded when first used, so that `import fsl_dist` costs
nothing. Neighbours are the package `index`.
"""

import importlib
from typing import TYPE_CHECKING

from fsl_dist.errors import ConfigError, DataError, FslDistError, RequestError, TrainingError, VersionError

if TYPE_CHECKING:
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.config import DataConfig
    from fsl_dist.data.ingest.adopt import AdoptOptions, adopt
    from fsl_dist.data.ingest.listing import TableColumns
    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import append, pack
    from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
    from fsl_dist.data.ingest.rows import WriteReport
    from fsl_dist.data.loader import FeatureSource, ImageSource, Loader, Request, open_source
    from fsl_dist.data.selection import Selection
    from fsl_dist.data.split import holdout
    from fsl_dist.losses.batch_hard import batch_hard_loss
    from fsl_dist.losses.cross_entropy import class_weights, cross_entropy_loss
    from fsl_dist.losses.deep_knn import batch_neighbours, deep_knn_loss
    from fsl_dist.losses.nca import few_shot_nca_loss
    from fsl_dist.losses.pcn import PCNEpisode, class_scores, pcn_episode_loss, update_prototypes
    from fsl_dist.losses.scatter import ScatterEpisode, scatter_episode_loss, scatter_loss
    from fsl_dist.losses.triplet import triplet_loss
    from fsl_dist.methods.method import Batch, BatchLoss, Method, MethodContext, MethodSettings, Traits
    from fsl_dist.methods.stratified import StratifiedBatches
    from fsl_dist.models.backbones import build_network
    from fsl_dist.models.config import BackboneConfig
    from fsl_dist.models.embedding import Network
    from fsl_dist.samplers.episode import Episode, EpisodeConfig, draw_episode, fit_selection
    from fsl_dist.samplers.neighbourhood import (
        Neighbourhood,
        anchors_of_step,
        anchors_per_step,
        gather_neighbourhood,
    )
    from fsl_dist.samplers.scan import scan_batches, share_of_rank
    from fsl_dist.samplers.shuffled import class_balanced_batch, shuffled_batch, shuffled_steps
    from fsl_dist.samplers.stratified import stratified_batch, stratified_steps
    from fsl_dist.samplers.triplet import TripletKeys, draw_triplets, gather_images, sampling_keys

_ROOM_OF = {
    "AdoptOptions": "fsl_dist.data.ingest.adopt",
    "ResplitOptions": "fsl_dist.data.ingest.resplit",
    "WriteReport": "fsl_dist.data.ingest.rows",
    "adopt": "fsl_dist.data.ingest.adopt",
    "append": "fsl_dist.data.ingest.pack",
    "resplit": "fsl_dist.data.ingest.resplit",
    "BackboneConfig": "fsl_dist.models.config",
    "Batch": "fsl_dist.methods.method",
    "BatchLoss": "fsl_dist.methods.method",
    "Catalogue": "fsl_dist.data.catalogue",
    "DataConfig": "fsl_dist.data.config",
    "Episode": "fsl_dist.samplers.episode",
    "EpisodeConfig": "fsl_dist.samplers.episode",
    "FeatureSource": "fsl_dist.data.loader",
    "ImageSource": "fsl_dist.data.loader",
    "Loader": "fsl_dist.data.loader",
    "Method": "fsl_dist.methods.method",
    "MethodContext": "fsl_dist.methods.method",
    "MethodSettings": "fsl_dist.methods.method",
    "Traits": "fsl_dist.methods.method",
    "Neighbourhood": "fsl_dist.samplers.neighbourhood",
    "Network": "fsl_dist.models.embedding",
    "PCNEpisode": "fsl_dist.losses.pcn",
    "PackOptions": "fsl_dist.data.ingest.pack",
    "Request": "fsl_dist.data.loader",
    "ScatterEpisode": "fsl_dist.losses.scatter",
    "Selection": "fsl_dist.data.selection",
    "StratifiedBatches": "fsl_dist.methods.stratified",
    "TableColumns": "fsl_dist.data.ingest.listing",
    "TripletKeys": "fsl_dist.samplers.triplet",
    "anchors_of_step": "fsl_dist.samplers.neighbourhood",
    "anchors_per_step": "fsl_dist.samplers.neighbourhood",
    "batch_hard_loss": "fsl_dist.losses.batch_hard",
    "batch_neighbours": "fsl_dist.losses.deep_knn",
    "build_network": "fsl_dist.models.backbones",
    "class_balanced_batch": "fsl_dist.samplers.shuffled",
    "class_scores": "fsl_dist.losses.pcn",
    "class_weights": "fsl_dist.losses.cross_entropy",
    "cross_entropy_loss": "fsl_dist.losses.cross_entropy",
    "deep_knn_loss": "fsl_dist.losses.deep_knn",
    "draw_episode": "fsl_dist.samplers.episode",
    "draw_triplets": "fsl_dist.samplers.triplet",
    "few_shot_nca_loss": "fsl_dist.losses.nca",
    "fit_selection": "fsl_dist.samplers.episode",
    "gather_images": "fsl_dist.samplers.triplet",
    "gather_neighbourhood": "fsl_dist.samplers.neighbourhood",
    "holdout": "fsl_dist.data.split",
    "open_source": "fsl_dist.data.loader",
    "pack": "fsl_dist.data.ingest.pack",
    "pcn_episode_loss": "fsl_dist.losses.pcn",
    "sampling_keys": "fsl_dist.samplers.triplet",
    "scan_batches": "fsl_dist.samplers.scan",
    "scatter_episode_loss": "fsl_dist.losses.scatter",
    "scatter_loss": "fsl_dist.losses.scatter",
    "share_of_rank": "fsl_dist.samplers.scan",
    "shuffled_batch": "fsl_dist.samplers.shuffled",
    "shuffled_steps": "fsl_dist.samplers.shuffled",
    "stratified_batch": "fsl_dist.samplers.stratified",
    "stratified_steps": "fsl_dist.samplers.stratified",
    "triplet_loss": "fsl_dist.losses.triplet",
    "update_prototypes": "fsl_dist.losses.pcn",
}

__all__ = [
    "AdoptOptions",
    "BackboneConfig",
    "Batch",
    "BatchLoss",
    "Catalogue",
    "ConfigError",
    "DataConfig",
    "DataError",
    "Episode",
    "EpisodeConfig",
    "FeatureSource",
    "FslDistError",
    "ImageSource",
    "Loader",
    "Method",
    "MethodContext",
    "MethodSettings",
    "Neighbourhood",
    "Network",
    "PCNEpisode",
    "PackOptions",
    "Request",
    "RequestError",
    "ResplitOptions",
    "ScatterEpisode",
    "Selection",
    "StratifiedBatches",
    "TableColumns",
    "TrainingError",
    "Traits",
    "TripletKeys",
    "VersionError",
    "WriteReport",
    "adopt",
    "anchors_of_step",
    "anchors_per_step",
    "append",
    "batch_hard_loss",
    "batch_neighbours",
    "build_network",
    "class_balanced_batch",
    "class_scores",
    "class_weights",
    "cross_entropy_loss",
    "deep_knn_loss",
    "draw_episode",
    "draw_triplets",
    "few_shot_nca_loss",
    "fit_selection",
    "gather_images",
    "gather_neighbourhood",
    "holdout",
    "open_source",
    "pack",
    "pcn_episode_loss",
    "resplit",
    "sampling_keys",
    "scan_batches",
    "scatter_episode_loss",
    "scatter_loss",
    "share_of_rank",
    "shuffled_batch",
    "shuffled_steps",
    "stratified_batch",
    "stratified_steps",
    "triplet_loss",
    "update_prototypes",
]


def __getattr__(name: str) -> object:
    if name not in _ROOM_OF:
        raise AttributeError(f"module 'fsl_dist' has no attribute '{name}'")
    return getattr(importlib.import_module(_ROOM_OF[name]), name)
