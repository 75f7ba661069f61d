"""Few-shot NCA on stratified batches: what episodes are compared with when none are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fsl_dist.methods.method import Batch, BatchLoss, MethodContext, MethodSettings, on_device
from fsl_dist.methods.stratified import StratifiedBatches
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor


@settings("method")
class FewShotNCAConfig(MethodSettings):
    """Neighbourhood components analysis on stratified batches: a neighbour is drawn by a softmax over −distance²."""

    kind: Literal["few_shot_nca"] = "few_shot_nca"
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: Annotated[int, Field(ge=2)] = 9
    """classes in a batch"""

    def build(self, context: MethodContext) -> FewShotNCA:
        """The method over the training images."""
        return FewShotNCA(context, num_classes=self.classes_per_batch, normalise=self.normalise)


class FewShotNCA(StratifiedBatches):
    """Each image of a batch draws a neighbour; the loss is the negative log-probability that it has the same class."""

    metrics = ("train/mate_probability",)

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Few-shot NCA over the whole batch."""
        from fsl_dist.losses.nca import few_shot_nca_loss

        (labels,) = on_device(outputs.device, batch.labels)
        loss, probability = few_shot_nca_loss(outputs, labels)
        return BatchLoss(loss, {"train/mate_probability": probability})
