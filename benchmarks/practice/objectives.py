"""What peers minimise: cross entropy, episodes with class means, and the losses of pytorch-metric-learning."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.practice.backbone import DIM

_SMOOTHING = 0.1
_MEMORY_ROWS, _TRIPLET_ROWS = 1_024, 256


class CrossEntropy(nn.Module):
    """A linear classifier with label smoothing."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(DIM, classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of float32 [n, 1280] and int64 [n]."""
        return functional.cross_entropy(self.classifier(embeddings), labels, label_smoothing=_SMOOTHING)


class Episodes(nn.Module):
    """Prototypical episodes (Snell et al. 2017, as easyfsl trains them): the first half of each class's images are
    its support.

    Batches come class by class, equally many images of each. Logits are negative Euclidean distances to class means.
    """

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of float32 [n, 1280] and int64 [n]."""
        classes = len(labels.unique())
        images = embeddings.view(classes, -1, embeddings.shape[1])
        half = images.shape[1] // 2
        means, queries = images[:, :half].mean(1), images[:, half:].flatten(0, 1)
        targets = torch.arange(classes).repeat_interleave(images.shape[1] - half)
        return functional.cross_entropy(-torch.cdist(queries, means), targets)


def triplets() -> nn.Module:
    """Triplet loss with all semi-hard triplets of the batch and a cross-batch memory.

    Its memory is shorter than the other's: the number of triplets grows with its square where there are few classes.
    One triplet for each image, the easiest positive and a semi-hard negative, was worse than the frozen network on
    digits.
    """
    from pytorch_metric_learning import losses, miners

    loss = losses.TripletMarginLoss(margin=0.2)
    miner = miners.TripletMarginMiner(margin=0.2, type_of_triplets="semihard")
    return losses.CrossBatchMemory(loss, DIM, memory_size=_TRIPLET_ROWS, miner=miner)


def supervised_contrastive() -> nn.Module:
    """SupCon with a cross-batch memory."""
    from pytorch_metric_learning import losses

    loss = losses.SupConLoss(temperature=0.1)
    return losses.CrossBatchMemory(loss, DIM, memory_size=_MEMORY_ROWS)


def proxy_anchor(classes: int) -> nn.Module:
    """ProxyAnchor with the margin and the scale of its paper; proxies take the place of a memory."""
    from pytorch_metric_learning import losses

    return losses.ProxyAnchorLoss(classes, DIM, margin=0.1, alpha=32)
