"""Prototypical clustering networks (PCN) and, with one cluster, prototypical networks (PN, PN*).

The batches are episodes, the loss is `losses.pcn`, the memory is the prototypes of every training class:
k-means sets it at the start of an epoch, Eq. 4 moves it after each step.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.losses.pcn import pcn_episode_loss, update_prototypes
from fsl_dist.methods.config import PCNConfig
from fsl_dist.methods.episodic import Episodes, split_outputs
from fsl_dist.methods.method import Batch, BatchLoss, TrainingIndex
from fsl_dist.methods.prototypes import fit_each_class
from fsl_dist.samplers.episode import Episode


class PCN(Episodes):
    """Episodes, PCN's loss, and a memory of prototypes [num_classes, clusters, dim]."""

    metrics: tuple[str, ...] = (
        "train/accuracy",
        "train/responsibility_perplexity",
        "train/low_responsibility_share",
    )

    def __init__(
        self,
        config: RunConfig,
        method: PCNConfig,
        selection: Selection,
        class_names: list[str],
        device: torch.device,
    ) -> None:
        super().__init__(config, selection, class_names)
        self.method = method
        self.all_classes = selection
        self.starts_of_kmeans = config.evaluation.kmeans_runs
        self.device = device
        self.means = torch.zeros(0, 0, 0, device=device)  # [num_classes, clusters, dim] once prepared
        self.mask = torch.zeros(0, 0, dtype=torch.bool, device=device)  # [num_classes, clusters]
        self.is_padded = True  # whether any of `mask` is False

    def prepares_at(self, epoch: int, step: int) -> bool:
        """The memory is set anew at the start of every epoch."""
        return step == 0

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Per class k-means over all its training images (PCN, section 3.1.1), classes dealt to the workers.

        Seeded by (seed, epoch, class), so the result does not depend on who computes it.
        """
        if self.method.clusters == 1 and self.method.memory == 0:
            # PN: Eq. 4 forgets the old prototype whole, so there is nothing to set.
            return self._start_empty(index.dim)
        neighbours = index.open()
        num_classes, clusters, dim = self.selection.num_classes, self.method.clusters, neighbours.dim
        packed = torch.zeros(num_classes, clusters, dim + 1, dtype=torch.float32)
        row_of_class = np.searchsorted(self.all_classes.labels, self.selection.labels)
        own = range(group.rank, num_classes, group.world_size)
        starts, rows = self.all_classes.starts, row_of_class[own.start :: own.step]
        means = fit_each_class(
            (
                (
                    int(self.all_classes.labels[row]),
                    neighbours.vectors(int(starts[row]), int(starts[row + 1])),
                )
                for row in rows
            ),
            clusters,
            seed=self.seed,
            epoch=epoch,
            starts=self.starts_of_kmeans,
        )
        for position, of_class in zip(own, means, strict=True):
            packed[position, : len(of_class), :dim] = torch.from_numpy(of_class)
            packed[position, : len(of_class), dim] = 1.0
        packed = group.sum_(packed.to(self.device))
        self._set(packed[..., :dim].contiguous(), packed[..., dim] > 0)
        return {"method/clusters_per_class": float(self.mask.sum() / num_classes)}

    def _start_empty(self, dim: int) -> dict[str, float]:
        num_classes = self.selection.num_classes
        self._set(
            torch.zeros(num_classes, 1, dim, device=self.device),
            torch.ones(num_classes, 1, dtype=torch.bool, device=self.device),
        )
        return {}

    def _set(self, means: Tensor, mask: Tensor) -> None:
        # Whether there is padding is asked once, not every step: on a GPU the answer is waited for.
        self.means, self.mask, self.is_padded = means, mask, not bool(mask.all())

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """PCN's Algorithm 1 on one episode, against the prototypes of the step's start."""
        episode, support, query = split_outputs(outputs, batch)
        rows = self._rows_of(episode.classes)
        result = pcn_episode_loss(
            support,
            query,
            self.means[rows],
            self.mask[rows] if self.is_padded else None,
            temperature=self.method.temperature,
            memory=self.method.memory,
            detach_responsibilities=self.method.detach_responsibilities,
            min_responsibility=self.method.min_responsibility,
        )
        metrics = {
            "train/accuracy": result.accuracy,
            "train/responsibility_perplexity": result.responsibility_perplexity,
            "train/low_responsibility_share": result.low_share,
        }
        return BatchLoss(result.loss, metrics, (result.numerators, result.denominators))

    def _rows_of(self, classes: np.ndarray) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.selection.labels, classes)).to(self.device)

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Eq. 4 once for the step: the supports of all its episodes, on all workers, summed and merged."""
        if self.method.memory == 0 and self.method.clusters == 1:
            return {}  # PN keeps nothing
        classes, numerators, denominators = self._sum_updates(batches, updates, group)
        rows = self._rows_of(classes)
        self.means[rows] = update_prototypes(
            self.means[rows],
            numerators,
            denominators,
            self.method.memory,
            min_responsibility=self.method.min_responsibility,
        ).to(self.means.dtype)
        return {}

    def _sum_updates(
        self, batches: list[Batch], updates: list[tuple[int, tuple[Tensor, ...]]], group: WorkerGroup
    ) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """The step's classes, int64 [C]; sums over its supports on all workers: Σ q f [C, M, D] and Σ q [C, M]."""
        episodes = [_episode_of(batch) for batch in batches]
        if len(episodes) == 1 and group.world_size == 1:
            ((_, (numerators, denominators)),) = updates
            return episodes[0].classes, numerators, denominators
        classes = np.unique(np.concatenate([episode.classes for episode in episodes]))
        dim = self.means.shape[-1]
        sums = torch.zeros(len(classes), self.means.shape[1], dim + 1, device=self.device)
        for number, (numerators, denominators) in updates:
            rows = torch.from_numpy(np.searchsorted(classes, episodes[number].classes)).to(self.device)
            contribution = torch.cat([numerators, denominators.unsqueeze(-1)], dim=-1)
            sums.index_add_(0, rows, contribution.to(sums.dtype))
        group.sum_(sums)
        return classes, sums[..., :dim], sums[..., dim]

    def state(self) -> dict[str, Tensor | str | int]:
        """The prototypes and which of them exist."""
        return {"means": self.means, "mask": self.mask}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Take up the prototypes of a checkpoint."""
        means, mask = state["means"], state["mask"]
        assert isinstance(means, Tensor)
        assert isinstance(mask, Tensor)
        self._set(means.to(self.device), mask.to(self.device))


def _episode_of(batch: Batch) -> Episode:
    assert isinstance(batch.payload, Episode)
    return batch.payload
