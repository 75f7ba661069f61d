"""What the training loop asks of a method: which ids, which loss, which memory.

A method is one file beside this one. The loop knows none of them by name: it asks for the batches of a step,
forwards them wherever they were dealt to, hands back the outputs, and after the optimizer's step lets the
method merge what the batches left in its memory.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.distributed import WorkerGroup
from index.search import LocalIndex


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that go through the network in one call and share one loss."""

    ids: NDArray[np.int64]
    """int64 [num_images]: sample ids; outputs come back in this order"""
    labels: NDArray[np.int64]
    """int64 [num_images]: their classes, spread evenly over batch-norm groups"""
    weight: float = 1.0
    """the loss's share in the step's mean: the number of terms it is a mean of"""
    payload: object = None
    """what the method needs beside the outputs: an episode, a neighbourhood"""


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """A batch's loss and what it leaves behind."""

    loss: Tensor
    """float32 []: mean over the batch's terms"""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """detached scalars, averaged over the step's batches by their weights"""
    update: tuple[Tensor, ...] | None = None
    """detached contribution to the method's memory"""


class TrainingIndex(Protocol):
    """Embeddings of the whole training selection at the present parameters, made when first asked for."""

    dim: int
    """length of an embedding"""

    def open(self) -> LocalIndex:
        """The index, the same on every worker. Collective: all workers call it, or none."""
        ...

    def features(self) -> NDArray[np.float32]:
        """float32 [num_images, feature_dim]: the backbone's features before any head, in the selection's order. Collective."""
        ...

    def start_table(self, folder: Path, num_same: int, num_other: int, weights: Path | None = None) -> None:
        """Begin to fill `folder` with the neighbour table at the present parameters, or at those in `weights`.

        Collective. It is done on return, or goes on beside training.
        """
        ...

    def finish_table(self, folder: Path) -> None:
        """Return once the table in `folder` is whole. Collective."""
        ...


class Method(Protocol):
    """One training method."""

    is_global: bool
    """every batch is split over all workers, embeddings gathered; otherwise whole batches are dealt out"""
    num_outputs: int
    """classes of the classifier the network ends in; 0 = the loss takes embeddings"""
    normalise: bool
    """embeddings on the unit sphere"""
    metrics: tuple[str, ...]
    """names of the metrics `loss` reports"""

    def num_steps(self) -> int:
        """Optimizer steps of an epoch."""
        ...

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Whether `prepare` must run before this step of the epoch."""
        ...

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Renew what the method keeps (prototypes, a neighbour table); returns metrics of it. Collective."""
        ...

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """All batches of a step, the same on every worker: a pure function of the seed, epoch and step."""
        ...

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Loss of a batch from the network's outputs, float [num_images, dim or num_outputs]."""
        ...

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Merge all workers' updates (batch number, contribution) into the memory; returns metrics. Collective."""
        ...

    def state(self) -> dict[str, Tensor | str | int]:
        """What a checkpoint must hold of the method."""
        ...

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Take up what `state` gave."""
        ...


class Memoryless:
    """What a method without prototypes or tables answers to the loop's calls about them."""

    def prepares_at(self, epoch: int, step: int) -> bool:
        """There is nothing to prepare."""
        return False

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Nothing to prepare."""
        return {}

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Nothing to merge."""
        return {}

    def state(self) -> dict[str, Tensor | str | int]:
        """Nothing beyond the network."""
        return {}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Nothing to take up."""
