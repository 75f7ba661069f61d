"""The shared part of methods on stratified batches:
one batch per step, split over all workers, its embeddings gathered."""

import numpy as np
from numpy.typing import NDArray

from fsl_dist.methods.method import Batch, Method, MethodContext
from fsl_dist.samplers.stratified import stratified_batch, stratified_steps


class StratifiedBatches(Method):
    """Batches of `num_classes` classes in equal numbers; the loss on their embeddings is the subclass's."""

    def __init__(self, context: MethodContext, *, num_classes: int, normalise: bool) -> None:
        self.normalise = normalise
        self.num_classes = num_classes
        self.selection = context.selection
        self.labels: NDArray[np.int64] = context.catalogue.labels
        self.seed = context.seed
        self.batch_size = context.batch_size

    def num_steps(self) -> int:
        """An epoch has ⌈images / batch⌉ steps."""
        return stratified_steps(self.selection, self.batch_size)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One stratified batch per step."""
        ids = stratified_batch(
            self.selection,
            batch_size=self.batch_size,
            num_classes=self.num_classes,
            seed=self.seed,
            epoch=epoch,
            step=step,
        )
        return [Batch(ids, self.labels[ids])]
