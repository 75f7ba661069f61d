"""What methods on stratified batches share: one batch a step, split over all workers, its embeddings gathered."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.methods.method import Batch, Memoryless
from fsl_dist.samplers.stratified import stratified_batch, stratified_steps


class StratifiedSettings(Protocol):
    """What a method's settings must hold to draw stratified batches."""

    @property
    def normalise(self) -> bool:
        """Embeddings on the unit sphere."""
        ...

    @property
    def classes_per_batch(self) -> int:
        """Classes in a batch."""
        ...


class StratifiedBatches(Memoryless):
    """Batches of a few classes in equal numbers; the loss on their embeddings is the subclass's.

    method: settings with `normalise` and `classes_per_batch`; labels: int64 [num_samples], of all samples by id.
    """

    is_global = True
    num_outputs = 0

    def __init__(
        self,
        config: RunConfig,
        method: StratifiedSettings,
        selection: Selection,
        labels: NDArray[np.int64],
    ) -> None:
        self.normalise = method.normalise
        self.num_classes = method.classes_per_batch
        self.selection = selection
        self.labels = labels
        self.seed = config.run.seed
        self.batch_size = config.training.batch_size

    def num_steps(self) -> int:
        """An epoch is ⌈images / batch⌉ steps."""
        return stratified_steps(self.selection, self.batch_size)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One stratified batch a step."""
        ids = stratified_batch(
            self.selection,
            batch_size=self.batch_size,
            num_classes=self.num_classes,
            seed=self.seed,
            epoch=epoch,
            step=step,
        )
        return [Batch(ids, self.labels[ids])]
