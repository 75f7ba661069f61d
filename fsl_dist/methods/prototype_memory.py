"""PCN's memory: the prototypes of every training class, set by k-means and moved after each step (PCN Eq. 4)."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.losses.pcn import update_prototypes
from fsl_dist.methods.prototypes import fit_each_class
from fsl_dist.samplers.episode import Episode
from index.search import LocalIndex

Update = tuple[Tensor, ...]
"""an episode's Σ q f [n_way, M, D] and Σ q [n_way, M] over its support"""


class PrototypeMemory:
    """Prototypes [num_classes, M, D] of the classes `labels`, and which of them exist."""

    def __init__(self, labels: NDArray[np.int64], clusters: int, device: torch.device) -> None:
        self.labels = labels
        self.clusters = clusters
        self.device = device
        self._set(torch.zeros(0, 0, 0, device=device), torch.zeros(0, 0, dtype=torch.bool, device=device))

    def _set(self, means: Tensor, mask: Tensor) -> None:
        self.means = means  # [num_classes, M, D] once set
        self.mask = mask  # [num_classes, M]
        # Whether there is padding is computed once, not at every step: on a GPU it needs a synchronisation.
        self.is_padded = not bool(mask.all())

    def empty(self, dim: int) -> None:
        """One prototype per class, at the origin: the initial value for a prototypical network (PN),
        which never reads it."""
        num_classes = len(self.labels)
        self._set(
            torch.zeros(num_classes, 1, dim, device=self.device),
            torch.ones(num_classes, 1, dtype=torch.bool, device=self.device),
        )

    def fit(
        self,
        neighbours: LocalIndex,
        images: Selection,
        group: WorkerGroup,
        *,
        seed: int,
        epoch: int,
        starts: int,
    ) -> float:
        """K-means of each class over all its training images (PCN, section 3.1.1), classes dealt to the workers.

        Seeded by (seed, epoch, class), so the result does not depend on who computes it. Collective.

        Returns:
            Prototypes of a class, on average.
        """
        num_classes, dim = len(self.labels), neighbours.dim
        packed = torch.zeros(num_classes, self.clusters, dim + 1, dtype=torch.float32)
        own = range(group.rank, num_classes, group.world_size)
        rows = np.searchsorted(images.labels, self.labels)[own.start :: own.step]
        means = fit_each_class(
            (
                (
                    int(images.labels[row]),
                    neighbours.vectors(int(images.starts[row]), int(images.starts[row + 1])),
                )
                for row in rows
            ),
            self.clusters,
            seed=seed,
            epoch=epoch,
            starts=starts,
        )
        for position, of_class in zip(own, means, strict=True):
            packed[position, : len(of_class), :dim] = torch.from_numpy(of_class)
            packed[position, : len(of_class), dim] = 1.0
        packed = group.sum_(packed.to(self.device))
        self._set(packed[..., :dim].contiguous(), packed[..., dim] > 0)
        return float(self.mask.sum() / num_classes)

    def of(self, classes: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Prototypes [C, M, D] of `classes`, and which exist, bool [C, M]; None where all of the memory's do."""
        rows = self._rows_of(classes)
        return self.means[rows], self.mask[rows] if self.is_padded else None

    def merge(
        self,
        episodes: list[Episode],
        updates: list[tuple[int, Update]],
        group: WorkerGroup,
        *,
        memory: float,
        min_responsibility: float,
    ) -> None:
        """Apply Eq. 4 once per step to the summed supports of all its episodes on all workers. Collective."""
        classes, numerators, denominators = self._sum(episodes, updates, group)
        rows = self._rows_of(classes)
        self.means[rows] = update_prototypes(
            self.means[rows], numerators, denominators, memory, min_responsibility=min_responsibility
        ).to(self.means.dtype)

    def _sum(
        self, episodes: list[Episode], updates: list[tuple[int, Update]], group: WorkerGroup
    ) -> tuple[NDArray[np.int64], Tensor, Tensor]:
        """The step's classes, int64 [C]; sums over its supports on all workers: Σ q f [C, M, D] and Σ q [C, M]."""
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

    def _rows_of(self, classes: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(np.searchsorted(self.labels, classes)).to(self.device)

    def state(self) -> dict[str, Tensor | str | int]:
        """The state for a checkpoint."""
        return {"means": self.means, "mask": self.mask}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Restore the prototypes of a checkpoint."""
        means, mask = state["means"], state["mask"]
        assert isinstance(means, Tensor)
        assert isinstance(mask, Tensor)
        self._set(means.to(self.device), mask.to(self.device))
