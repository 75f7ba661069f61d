"""Cross entropy over the training classes: plain, weighted by class, or class-balanced by sampling."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.losses.cross_entropy import class_weights, cross_entropy_loss
from fsl_dist.methods.config import CrossEntropyConfig
from fsl_dist.methods.method import Batch, BatchLoss, Memoryless
from fsl_dist.samplers.shuffled import class_balanced_batch, shuffled_batch


class CrossEntropy(Memoryless):
    """Shuffled or class-balanced batches, a softmax classifier, and no memory."""

    is_global = True
    normalise = False
    metrics: tuple[str, ...] = ("train/accuracy",)

    def __init__(
        self,
        config: RunConfig,
        method: CrossEntropyConfig,
        selection: Selection,
        labels: NDArray[np.int64],
        device: torch.device,
    ) -> None:
        self.selection = selection
        self.labels = labels
        self.balance = method.balance
        self.batch_size = config.training.batch_size
        self.seed = config.run.seed
        self.num_outputs = selection.num_classes
        self.weights = (
            class_weights(torch.from_numpy(selection.counts)).to(device)
            if method.balance == "weights"
            else None
        )

    def num_steps(self) -> int:
        """An epoch is ⌈images / batch⌉ steps."""
        return -(-len(self.selection) // self.batch_size)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One batch a step."""
        draw = class_balanced_batch if self.balance == "sampling" else shuffled_batch
        ids = draw(self.selection, batch_size=self.batch_size, seed=self.seed, epoch=epoch, step=step)
        labels = self.labels[ids]
        return [Batch(ids, labels, payload=np.searchsorted(self.selection.labels, labels))]

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Softmax cross entropy of the classifier's logits."""
        assert isinstance(batch.payload, np.ndarray)
        targets = torch.from_numpy(batch.payload).to(outputs.device)
        loss, accuracy = cross_entropy_loss(outputs, targets, self.weights)
        return BatchLoss(loss, {"train/accuracy": accuracy})
