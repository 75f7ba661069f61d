"""The shared part of episodic methods: several episodes per step,
distributed over the workers or each split over all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fsl_dist.methods.method import Batch, EpochPlan, EpochSize, Method, MethodContext
from fsl_dist.samplers.episode import Episode, draw_episode, fit_selection

if TYPE_CHECKING:
    from torch import Tensor


class Episodes(Method):
    """Episodes as batches; loss and memory are the subclass's."""

    def __init__(self, context: MethodContext) -> None:
        self.episode = context.episode
        self.seed = context.seed
        self.per_step = context.episode.per_step or context.num_workers
        self.is_global = context.episode.scope == "global"
        self.selection = fit_selection(
            context.selection, context.episode, list(context.catalogue.class_names)
        )

    def num_steps(self) -> int:
        """An epoch has `episode.per_epoch` episodes in total, for any number of workers."""
        return -(-self.episode.per_epoch // self.per_step)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """Episodes step·per_step … of the epoch, fewer in a last step that `per_epoch` truncates."""
        first = step * self.per_step
        return [
            self._batch(
                draw_episode(self.selection, self.episode, seed=self.seed, epoch=epoch, number=number)
            )
            for number in range(first, min(first + self.per_step, self.episode.per_epoch))
        ]

    def _batch(self, episode: Episode) -> Batch:
        # Images class by class, support before query: [n_way, k_shot + n_query].
        ids = np.concatenate([episode.support, episode.query], axis=1)
        labels = np.repeat(episode.classes, ids.shape[1])
        return Batch(ids.reshape(-1), labels, weight=float(episode.query.size), payload=episode)


def split_outputs(outputs: Tensor, batch: Batch) -> tuple[Episode, Tensor, Tensor]:
    """An episode and its outputs [n_way · (k_shot + n_query), D] as support [n_way, k_shot,
    D] and query [n_way, n_query, D]."""
    episode = batch.payload
    assert isinstance(episode, Episode)
    k_shot = episode.support.shape[1]
    by_class = outputs.reshape(len(episode.classes), -1, outputs.shape[-1])
    return episode, by_class[:, :k_shot], by_class[:, k_shot:]


def count_episodes(plan: EpochPlan) -> EpochSize:
    """The number of episodes of an epoch, computed without a data set."""
    episode = plan.episode
    per_step = min(episode.per_step or plan.num_workers, episode.per_epoch)
    images = episode.n_way * episode.images_per_class
    return EpochSize(-(-episode.per_epoch // per_step), per_step, images, is_global=episode.scope == "global")
