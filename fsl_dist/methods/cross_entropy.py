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

    from fsl_dist.data.augmentation.mixing import Mixing


@settings("method")
class CrossEntropyConfig(MethodSettings):
    """Softmax classifier over the training classes; its embedding is evaluated like any other."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """α of the Beta distribution by which pairs of images are blended (Mixup); 0: not; 0.2 is usual"""
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    """α of pasting a box of one image of a pair into the other (CutMix); 0: off; 1 is usual; with mixup, one of the
    two per pair"""
    balance: Literal["none", "weights", "sampling"] = "none"
    """none; loss weights N/(C·n_c); or batches that draw the class first, then the image"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """share of each target that is spread evenly over all classes; 0 = none"""

    @property
    def traits(self) -> Traits:
        """The network ends in a classifier."""
        return Traits(
            has_classifier=True,
            protocols=("softmax", "knn"),
            image_setting=f"method.cutmix={self.cutmix}" if self.cutmix else "",
        )

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
        self.mixup, self.cutmix = method.mixup, method.cutmix
        self.num_outputs = context.selection.num_classes
        self.weights: Tensor | None = None
        if method.balance == "weights":
            from fsl_dist.losses.cross_entropy import class_weights

            self.weights = class_weights(*on_device(context.device, context.selection.counts))

    def num_steps(self) -> int:
        """An epoch has ⌈images / batch⌉ steps."""
        return -(-len(self.selection) // self.batch_size)

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One batch per step."""
        draw = class_balanced_batch if self.balance == "sampling" else shuffled_batch
        ids = draw(self.selection, batch_size=self.batch_size, seed=self.seed, epoch=epoch, step=step)
        labels = self.labels[ids]
        mixing = None
        if self.mixup or self.cutmix:
            from fsl_dist.data.augmentation.mixing import draw_mixing

            mixing = draw_mixing(ids, seed=self.seed, epoch=epoch, mixup=self.mixup, cutmix=self.cutmix)
        return [Batch(ids, labels, payload=np.searchsorted(self.selection.labels, labels), mixing=mixing)]

    def _mixed_loss(self, outputs: Tensor, batch: Batch, mixing: Mixing) -> BatchLoss:
        from fsl_dist.losses.cross_entropy import mixed_cross_entropy_loss

        assert isinstance(batch.payload, np.ndarray)
        targets, partners, shares = on_device(
            outputs.device, batch.payload, batch.payload[mixing.partner], mixing.share
        )
        loss, accuracy = mixed_cross_entropy_loss(
            outputs, targets, partners, shares, self.weights, label_smoothing=self.label_smoothing
        )
        return BatchLoss(loss, {"train/accuracy": accuracy})

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Softmax cross entropy of the classifier's logits; of mixed images by the shares of their two classes."""
        if batch.mixing is not None:
            return self._mixed_loss(outputs, batch, batch.mixing)
        from fsl_dist.losses.cross_entropy import cross_entropy_loss

        assert isinstance(batch.payload, np.ndarray)
        (targets,) = on_device(outputs.device, batch.payload)
        loss, accuracy = cross_entropy_loss(
            outputs, targets, self.weights, label_smoothing=self.label_smoothing
        )
        return BatchLoss(loss, {"train/accuracy": accuracy})
