"""A method of one's own: the supervised contrastive loss (Khosla et al. 2020) on stratified batches."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fsl_dist import Batch, BatchLoss, ConfigError, StratifiedBatches


@dataclass(frozen=True, kw_only=True, slots=True)
class SupConConfig:
    """Every image of a batch picks its mates by a softmax over cosines."""

    kind: Literal["supcon"] = "supcon"
    temperature: float = 0.1
    """divides the cosines, above 0"""
    classes_per_batch: int = 9
    """classes in a batch, at least 2"""
    normalise: bool = True
    """embeddings on the unit sphere"""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(f"method.temperature={self.temperature} must be above 0")

    def build(self, config, catalogue, selection, device):
        """The method over the training selection."""
        return SupCon(config, self, selection, catalogue.labels)


class SupCon(StratifiedBatches):
    """The sampler, the split over workers and the gathering of embeddings are inherited; the loss is ours."""

    metrics = ("train/mates",)

    def __init__(self, config, method, selection, labels):
        super().__init__(config, method, selection, labels)
        self.temperature = method.temperature

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Loss of the whole batch; every worker has all of its embeddings and computes the same."""
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        return supcon_loss(outputs, labels, self.temperature)


def supcon_loss(embeddings: Tensor, labels: Tensor, temperature: float) -> BatchLoss:
    """Mean over images with a mate of −mean over its mates of log softmax (their Eq. 2).

    embeddings: [n, dim] of length 1; labels: int64 [n]. An image's softmax is over all other images.
    """
    is_itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    is_mate = (labels[:, None] == labels[None, :]) & ~is_itself
    logits = (embeddings @ embeddings.T / temperature).masked_fill(is_itself, float("-inf"))
    log_shares = logits.log_softmax(dim=1).masked_fill(~is_mate, 0.0)
    mates = is_mate.sum(dim=1)
    of_image = -log_shares.sum(dim=1) / mates.clamp_min(1)
    loss = of_image.sum() / (mates > 0).sum().clamp_min(1)
    return BatchLoss(loss, {"train/mates": mates.float().mean()})
