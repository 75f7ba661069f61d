"""Batch-hard triplets on stratified batches: deep kNN's counterpart with the traditional triplet loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fsl_dist.methods.method import Batch, BatchLoss, MethodContext, MethodSettings, on_device
from fsl_dist.methods.stratified import StratifiedBatches
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor


@settings("method")
class BatchHardConfig(MethodSettings):
    """Triplets of an image, its furthest image of the same class and its nearest of another, in stratified batches."""

    kind: Literal["batch_hard"] = "batch_hard"
    margin: Annotated[float, Field(gt=0)] = 1.0
    """α of the triplet loss, in units of distance, above 0; deep kNN's own by default"""
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: Annotated[int, Field(ge=2)] = 9
    """classes in a batch"""

    def build(self, context: MethodContext) -> BatchHard:
        """The method over the training images."""
        return BatchHard(context, self)


class BatchHard(StratifiedBatches):
    """Each image of a batch with its furthest image of the same class and its nearest of another."""

    metrics = ("train/active_triplets",)

    def __init__(self, context: MethodContext, method: BatchHardConfig) -> None:
        super().__init__(context, num_classes=method.classes_per_batch, normalise=method.normalise)
        self.margin = method.margin

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """The hinge over each image's hardest triplet in the batch."""
        from fsl_dist.losses.batch_hard import batch_hard_loss

        labels, ids = on_device(outputs.device, batch.labels, batch.ids)
        loss, active = batch_hard_loss(outputs, labels, ids, self.margin)
        return BatchLoss(loss, {"train/active_triplets": active})
