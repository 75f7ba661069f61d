"""Few-shot NCA on stratified batches: what episodes are compared with when none are drawn."""

import torch
from torch import Tensor

from fsl_dist.losses.nca import few_shot_nca_loss
from fsl_dist.methods.method import Batch, BatchLoss
from fsl_dist.methods.stratified import StratifiedBatches


class FewShotNCA(StratifiedBatches):
    """Each image of a batch draws a neighbour among the others; the loss is how seldom it is a mate."""

    metrics: tuple[str, ...] = ("train/mate_probability",)

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """Few-shot NCA over the whole batch."""
        loss, probability = few_shot_nca_loss(outputs, torch.from_numpy(batch.labels).to(outputs.device))
        return BatchLoss(loss, {"train/mate_probability": probability})
