"""The interface of a method: its settings, its traits, and the batches,
loss and memory that the training loop requests.

A method is one module of this folder, or of another distribution (docs/how_to/new_method.md). It contains a settings
class, whose `traits` the rest of the program reads as data, and a `Method`, which the settings build. The loop uses
no names of methods. It requests the batches of a step, forwards them on the workers to which they are assigned, and
passes the outputs to the method's loss. After the optimizer's step the method merges what the batches added to its
memory.

Settings are read before torch is needed, so a method's module imports torch, and its loss, inside the functions that
compute.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from fsl_dist.samplers.episode import EpisodeConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fsl_dist.data.augmentation.mixing import Mixing
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.selection import Selection
    from fsl_dist.distributed import WorkerGroup
    from fsl_dist.methods.mining.config import MiningConfig
    from index.config import IndexConfig
    from index.search import LocalIndex


@dataclass(frozen=True, slots=True)
class PrototypeTraits:
    """How a method with prototypes is scored by them."""

    clusters: int
    """prototypes of a base class, at least 1"""
    novel_clusters: int
    """prototypes of a novel class, at least 1"""
    temperature: float
    """τ of the class scores in training (PCN Eq. 3), above 0"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """The properties of a method that the rest of the program needs, as data."""

    is_episodic: bool = False
    """trains on the episodes of `episode.*`"""
    has_classifier: bool = False
    """the network ends in a classifier over the training classes; protocols `softmax` and `fine_tune` score it"""
    prototypes: PrototypeTraits | None = None
    """of a method that is scored by prototypes in validation, evaluation and prediction"""
    mines_dataset: bool = False
    """has a use for mining.source=dataset"""
    prepares_from_all_images: bool = False
    """`prepare` passes over all training images"""
    protocols: tuple[str, ...] = ("knn",)
    """default evaluation protocols"""
    stop_metric: str = ""
    """validation metric of the best epoch where `training.stop_metric` is empty; empty: knn/mcr@K_p"""
    own_metrics: tuple[str, ...] = ()
    """metrics of `Method.validation`, which a run may stop by"""
    image_setting: str = ""
    """the setting that needs images, so that data.features cannot be used; empty: none does"""
    kept_together: Literal["group", "unit"] = "group"
    """images that are kept together when a part of train is held out:
    those of a group, or of a unit (pack's keep_together)"""


@dataclass(frozen=True, slots=True)
class EpochSize:
    """The batches of an epoch, computed without a data set."""

    steps: int
    """optimizer steps"""
    batches: int
    """batches per step"""
    images: int
    """images of a batch; the most there can be where images may be in it twice"""
    is_global: bool
    """each batch is split over all workers"""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """The quantities that determine the length of an epoch."""

    num_images: int
    """training images"""
    num_workers: int
    batch_size: int
    """training.batch_size"""
    episode: EpisodeConfig
    mining: MiningConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodContext:
    """The arguments from which a method is built, in addition to its settings."""

    catalogue: Catalogue
    selection: Selection
    """the training images"""
    dataset: str
    """data.dataset, for errors"""
    folder: Path
    """the run's folder"""
    seed: int
    num_workers: int
    batch_size: int
    """training.batch_size"""
    kmeans_runs: int
    """evaluation.kmeans_runs: starts of a k-means"""
    episode: EpisodeConfig
    mining: MiningConfig
    device: torch.device


class MethodSettings(ABC):
    """Base of a method's settings: `@settings("method")` on a class with the field `kind: Literal["name"] = "name"`."""

    __slots__ = ()
    kind: str

    @property
    def traits(self) -> Traits:
        """The properties of the method with these settings."""
        return Traits()

    def check_episode(self, episode: EpisodeConfig) -> None:  # noqa: B027  # most methods refuse none
        """Raise ConfigError where `episode.*` does not go with these settings."""

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """The batches of an epoch, for planning: one batch of `training.batch_size` per step, unless overridden."""
        steps = -(-plan.num_images // plan.batch_size)
        return EpochSize(steps, 1, min(plan.batch_size, plan.num_images), is_global=True)

    @abstractmethod
    def build(self, context: MethodContext) -> Method:
        """Build the method for the training images; raises RequestError if it cannot use the data."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Images that go through the network in one call and share one loss."""

    ids: NDArray[np.int64]
    """int64 [num_images]: sample ids; outputs have the same order"""
    labels: NDArray[np.int64]
    """int64 [num_images]: their classes, spread evenly over batch-norm groups"""
    weight: float = 1.0
    """the loss's share in the step's mean: the number of terms it is a mean of"""
    payload: object = None
    """data of the method in addition to the outputs: an episode, a neighbourhood"""
    mixing: Mixing | None = None
    """mixes images 2j and 2j + 1 before they are forwarded; the batch is cut between such pairs only"""

    @property
    def kept_together(self) -> int:
        """Consecutive images that one worker forwards in one call."""
        return 1 if self.mixing is None else 2


@dataclass(frozen=True, slots=True)
class BatchLoss:
    """A batch's loss, metrics and contributions to the memory."""

    loss: Tensor
    """float32 []: mean over the batch's terms"""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """detached scalars, averaged over the step's batches by their weights"""
    update: tuple[Tensor, ...] | None = None
    """detached contribution to the method's memory"""


class TrainingIndex(Protocol):
    """Embeddings of the whole training selection at the current parameters, computed on first use."""

    dim: int
    """length of an embedding"""
    config: IndexConfig
    """`index.*`: how they are searched"""

    def open(self) -> LocalIndex:
        """The index, the same on every worker. Collective: all workers call it, or none."""
        ...

    def features(self) -> NDArray[np.float32]:
        """float32 [num_images, feature_dim]: the backbone's features before any head,
        in the selection's order. Collective."""
        ...

    def start_table(self, folder: Path, num_same: int, num_other: int, weights: Path | None = None) -> None:
        """Begin to fill `folder` with the neighbour table at the present parameters, or at those in `weights`.

        With `num_same` and `num_other` both 0 it is a table of the embeddings themselves. Collective. The table is
        finished on return, or made concurrently with training.
        """
        ...

    def finish_table(self, folder: Path) -> None:
        """Return once the table in `folder` is whole. Collective."""
        ...


Validate = Callable[[NDArray[np.float32]], dict[str, float]]
"""embeddings of the validation images, float32 [n, dim] in the order of their ids,
→ metrics named as `Traits.own_metrics`"""


class Method(ABC):
    """One training method. `num_steps`, `batches` and `loss` are required; the rest is for methods with a state."""

    is_global: bool = True
    """every batch is split over all workers, embeddings gathered; otherwise whole batches are dealt out"""
    num_outputs: int = 0
    """classes of the network's final classifier; 0: the loss takes embeddings"""
    outputs_embeddings: bool = False
    """with a classifier: the loss takes both embeddings and logits"""
    normalise: bool = False
    """embeddings on the unit sphere"""
    metrics: tuple[str, ...] = ()
    """names of the metrics `loss` reports"""

    @abstractmethod
    def num_steps(self) -> int:
        """Optimizer steps per epoch."""

    @abstractmethod
    def batches(self, epoch: int, step: int) -> list[Batch]:
        """All batches of a step, the same on every worker: a pure function of the seed, epoch and step."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Loss of a batch from the network's outputs, float [num_images, dim or num_outputs, or both].
        Collective if `is_global`."""

    def check_embeddings(self, dim: int, index: IndexConfig) -> None:  # noqa: B027  # most methods keep none
        """Raise RequestError if embeddings of `dim` numbers, searched by `index.*`, cannot be stored;
        called before a run starts."""

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Whether `prepare` must run before this step of the epoch."""
        return False

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Rebuild the method's state (prototypes, a neighbour table); return its metrics. Collective."""
        return {}

    def finish_step(
        self,
        global_step: int,
        batches: list[Batch],
        updates: list[tuple[int, tuple[Tensor, ...]]],
        group: WorkerGroup,
    ) -> dict[str, float]:
        """Merge all workers' updates (batch number, contribution) into the memory; returns metrics. Collective."""
        return {}

    def state(self) -> dict[str, Tensor | str | int]:
        """The state of the method for a checkpoint, on the first worker. Collective."""
        return {}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:  # noqa: B027  # most methods keep nothing
        """Restore the result of `state`."""

    def validation(self, stop: Selection) -> Validate | None:
        """A score of the validation images `stop` that only this method has; None if it has none."""
        return None


def on_device(device: torch.device, *arrays: NDArray) -> tuple[Tensor, ...]:
    """The arrays as tensors on `device`."""
    import torch

    return tuple(torch.from_numpy(array).to(device) for array in arrays)
