"""What methods on episodes share: some episodes a step, dealt to the workers or each split over all of them."""

import numpy as np
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.methods.method import Batch
from fsl_dist.samplers.episode import Episode, draw_episode, fit_selection


class Episodes:
    """Episodes as batches; loss and memory are the subclass's."""

    num_outputs = 0
    normalise = False

    def __init__(self, config: RunConfig, selection: Selection, class_names: list[str]) -> None:
        self.episode = config.episode
        self.seed = config.run.seed
        self.per_step = config.episode.per_step or config.workers.num
        self.is_global = config.episode.scope == "global"
        self.selection = fit_selection(selection, config.episode, class_names)

    def num_steps(self) -> int:
        """An epoch is `episode.per_epoch` episodes in all, whatever the number of workers."""
        return -(-self.episode.per_epoch // self.per_step)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """Episodes step·per_step … of the epoch, fewer in a last step that `per_epoch` cuts short."""
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
    """An episode and its outputs [n_way · (k_shot + n_query), D] as support [n_way, k_shot, D] and query [n_way, n_query, D]."""
    episode = batch.payload
    assert isinstance(episode, Episode)
    k_shot = episode.support.shape[1]
    by_class = outputs.reshape(len(episode.classes), -1, outputs.shape[-1])
    return episode, by_class[:, :k_shot], by_class[:, k_shot:]
