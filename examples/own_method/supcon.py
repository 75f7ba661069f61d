"""A custom method: the supervised contrastive loss (Khosla et al. 2020) on stratified batches."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fsl_dist.methods import Batch, BatchLoss, MethodContext, MethodSettings, StratifiedBatches, settings


@settings("method")
class SupConConfig(MethodSettings):
    """Every image of a batch picks the others of its class by a softmax over cosines."""

    kind: Literal["supcon"] = "supcon"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """divides the cosines"""
    classes_per_batch: Annotated[int, Field(ge=2)] = 9
    """classes in a batch"""

    def build(self, context: MethodContext) -> "SupCon":
        """The method over the training images."""
        return SupCon(context, self)


class SupCon(StratifiedBatches):
    """The sampler, the split over workers and the gathering of embeddings are inherited; the loss is ours."""

    metrics = ("train/positives",)

    def __init__(self, context: MethodContext, method: SupConConfig) -> None:
        super().__init__(context, num_classes=method.classes_per_batch, normalise=True)
        self.temperature = method.temperature

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Loss of the whole batch; every worker has all of its embeddings and computes the same."""
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        return supcon_loss(outputs, labels, self.temperature)


def supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> BatchLoss:
    """Mean over images with a positive of −mean over its positives of log softmax (their Eq. 2).

    embeddings: [n, dim] of length 1; labels: int64 [n]. An image's softmax is over all other images.
    """
    is_itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    is_positive = (labels[:, None] == labels[None, :]) & ~is_itself
    logits = (embeddings @ embeddings.T / temperature).masked_fill(is_itself, float("-inf"))
    log_shares = logits.log_softmax(dim=1).masked_fill(~is_positive, 0.0)
    positives = is_positive.sum(dim=1)
    of_image = -log_shares.sum(dim=1) / positives.clamp_min(1)
    loss = of_image.sum() / (positives > 0).sum().clamp_min(1)
    return BatchLoss(loss, {"train/positives": positives.float().mean()})
