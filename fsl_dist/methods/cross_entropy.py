"""Cross entropy over the training classes: plain, weighted by class, or class-balanced by sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fsl_dist.methods.method import Batch, BatchLoss, Method, MethodContext, MethodSettings, Traits, on_device
from fsl_dist.samplers.shuffled import class_balanced_batch, shuffled_batch
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor


@settings("method")
class CrossEntropyConfig(MethodSettings):
    """Softmax classifier over the training classes; its embedding is scored like any other."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    balance: Literal["none", "weights", "sampling"] = "none"
    """none; loss weights N/(C·n_c); or batches that draw the class first, then the image"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of each target that is spread evenly over all classes; 0 = none"""

    @property
    def traits(self) -> Traits:
        """The network ends in a classifier."""
        return Traits(has_classifier=True, protocols=("softmax", "knn"))

    def build(self, context: MethodContext) -> CrossEntropy:
        """The method over the training images."""
        return CrossEntropy(context, self)


class CrossEntropy(Method):
    """Shuffled or class-balanced batches and a softmax classifier."""

    metrics = ("train/accuracy",)

    def __init__(self, context: MethodContext, method: CrossEntropyConfig) -> None:
        self.selection = context.selection
        self.labels: NDArray[np.int64] = context.catalogue.labels
        self.balance = method.balance
        self.label_smoothing = method.label_smoothing
        self.batch_size = context.batch_size
        self.seed = context.seed
        self.num_outputs = context.selection.num_classes
        self.weights: Tensor | None = None
        if method.balance == "weights":
            from fsl_dist.losses.cross_entropy import class_weights

            self.weights = class_weights(*on_device(context.device, context.selection.counts))

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
        from fsl_dist.losses.cross_entropy import cross_entropy_loss

        assert isinstance(batch.payload, np.ndarray)
        (targets,) = on_device(outputs.device, batch.payload)
        loss, accuracy = cross_entropy_loss(
            outputs, targets, self.weights, label_smoothing=self.label_smoothing
        )
        return BatchLoss(loss, {"train/accuracy": accuracy})
