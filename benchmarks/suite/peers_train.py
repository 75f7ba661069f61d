"""Training steps as one writes them by hand: plain PyTorch, tensors in memory, one process."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional


def bare_network(name: str, channels: int, dim: int) -> nn.Module:
    """The network of that name as one writes it: torch's default memory format and layers."""
    if name.startswith("resnet18"):
        from torchvision.models import resnet18

        network = resnet18()
        network.fc = nn.Identity()
        return network
    if name == "mlp":
        return nn.Sequential(
            nn.Linear(dim, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128),
        )  # fmt: skip
    blocks = []
    for before in (channels, 64, 64, 64):
        blocks += [nn.Conv2d(before, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten())


def bare_optimizer(network: nn.Module, method: str, *, fused: bool | None = None) -> torch.optim.Optimizer:
    """The optimizer of the method's settings; `fused` is torch's own default unless named."""
    if method == "pcn":
        return torch.optim.Adam(network.parameters(), lr=1e-6, weight_decay=1e-5, fused=fused)
    return torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, weight_decay=1e-5, fused=fused)


class BarePCN:
    """PCN's Algorithm 1, memory 0.5."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        memory: Tensor,
        *,
        shots: int,
        temperature: float,
    ) -> None:
        """memory: prototypes float32 [classes, M, D], none of them padding; shots: support images per class."""
        self.network, self.optimizer = network, optimizer
        self.memory, self.shots, self.temperature = memory.clone(), shots, temperature

    def step(self, images: Tensor, classes: Tensor) -> Tensor:
        """One step; images class by class, support first; classes: int64 [n_way], rows of the memory. Returns the
        loss."""
        self.optimizer.zero_grad()
        embeddings = self.network(images).view(len(classes), len(images) // len(classes), -1)
        support, query = embeddings[:, : self.shots], embeddings[:, self.shots :].flatten(0, 1)
        old = self.memory[classes]
        shares = functional.softmax(-torch.cdist(support, old).square() / self.temperature, dim=-1)
        sums = shares.transpose(1, 2) @ support
        new = 0.5 * old + 0.5 * sums / shares.sum(1).unsqueeze(-1)
        distances = torch.cdist(query, new.flatten(0, 1)).square().view(len(query), *new.shape[:2])
        scores = -(functional.softmax(-distances / self.temperature, dim=-1) * distances).sum(-1)
        targets = torch.arange(len(classes)).repeat_interleave(len(query) // len(classes))
        loss = functional.cross_entropy(scores, targets)
        loss.backward()
        self.optimizer.step()
        self.memory[classes] = new.detach()
        return loss.detach()


class BareDeepKNN:
    """Deep kNN mined in the batch: 5 nearest of the class (6 images per class or more), 5 nearest others, margin 1."""

    def __init__(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.network, self.optimizer = network, optimizer

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; labels: int64 [n]. Returns the loss."""
        self.optimizer.zero_grad()
        embeddings = self.network(images)
        with torch.no_grad():
            distances = torch.cdist(embeddings, embeddings)
            same = labels[:, None] == labels
            itself = torch.eye(len(labels), dtype=torch.bool)
            near = distances.masked_fill(~same | itself, float("inf")).topk(5, largest=False).indices
            far = distances.masked_fill(same, float("inf")).topk(5, largest=False).indices
        to_same = (embeddings[:, None] - embeddings[near]).norm(dim=-1)
        to_other = (embeddings[:, None] - embeddings[far]).norm(dim=-1)
        loss = (to_same[:, :, None] - to_other[:, None] + 1.0).relu().mean()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def copy_of(network: nn.Module) -> nn.Module:
    """The same network with parameters of its own."""
    return copy.deepcopy(network)
