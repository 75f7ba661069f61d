"""Samplers: the sample ids of a batch, as pure functions of (seed, epoch, step)."""

from typing import TYPE_CHECKING

from index.base.lazy import public_names

if TYPE_CHECKING:
    from fsl_dist.samplers.class_power import ClassPowerDraws as ClassPowerDraws
    from fsl_dist.samplers.episode import Episode as Episode
    from fsl_dist.samplers.episode import EpisodeConfig as EpisodeConfig
    from fsl_dist.samplers.episode import draw_episode as draw_episode
    from fsl_dist.samplers.episode import fit_selection as fit_selection
    from fsl_dist.samplers.neighbourhood import Neighbourhood as Neighbourhood
    from fsl_dist.samplers.neighbourhood import anchors_per_step as anchors_per_step
    from fsl_dist.samplers.neighbourhood import gather_neighbourhood as gather_neighbourhood
    from fsl_dist.samplers.scan import scan_batches as scan_batches
    from fsl_dist.samplers.scan import share_of_rank as share_of_rank
    from fsl_dist.samplers.shuffled import class_balanced_batch as class_balanced_batch
    from fsl_dist.samplers.shuffled import shuffled_batch as shuffled_batch
    from fsl_dist.samplers.shuffled import shuffled_steps as shuffled_steps
    from fsl_dist.samplers.stratified import stratified_batch as stratified_batch
    from fsl_dist.samplers.stratified import stratified_steps as stratified_steps
    from fsl_dist.samplers.triplet import TripletKeys as TripletKeys
    from fsl_dist.samplers.triplet import draw_triplets as draw_triplets
    from fsl_dist.samplers.triplet import gather_images as gather_images
    from fsl_dist.samplers.triplet import sampling_keys as sampling_keys

if not TYPE_CHECKING:
    __getattr__, __dir__, __all__ = public_names(__name__, __file__)
