"""Batch-hard triplets on stratified batches: deep kNN's counterpart with the traditional triplet loss."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.selection import Selection
from fsl_dist.losses.batch_hard import batch_hard_loss
from fsl_dist.methods.config import BatchHardConfig
from fsl_dist.methods.method import Batch, BatchLoss
from fsl_dist.methods.stratified import StratifiedBatches


class BatchHard(StratifiedBatches):
    """Each image of a batch with its furthest mate and its nearest image of another class."""

    metrics: tuple[str, ...] = ("train/active_triplets",)

    def __init__(
        self, config: RunConfig, method: BatchHardConfig, selection: Selection, labels: NDArray[np.int64]
    ) -> None:
        super().__init__(config, method, selection, labels)
        self.margin = method.margin

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """The hinge over each image's hardest triplet in the batch."""
        labels, ids = (torch.from_numpy(part).to(outputs.device) for part in (batch.labels, batch.ids))
        loss, active = batch_hard_loss(outputs, labels, ids, self.margin)
        return BatchLoss(loss, {"train/active_triplets": active})
