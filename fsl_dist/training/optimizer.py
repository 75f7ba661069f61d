"""The optimizer of a run: which parameters learn, and how fast each of them."""

import torch
from torch import nn

from fsl_dist.errors import ConfigError
from fsl_dist.models.embedding import Network
from fsl_dist.training.config import TrainingConfig


def build_optimizer(
    network: Network, settings: TrainingConfig, *, lr_factor: float = 1.0, fused: bool = False
) -> torch.optim.Optimizer:
    """Adam or SGD over two groups: head and classifier at `settings.lr`, the backbone at `lr_factor` times that.

    A group without parameters is left out; with a factor of 1 all parameters are one group. A factor of 0 takes the
    gradient away from the backbone's parameters (`requires_grad`), so it must come before DDP. A group keeps its
    factor as `lr_factor`, in the optimizer's state_dict too.

    Raises ConfigError where nothing is left to train.
    """
    if lr_factor == 0:
        network.backbone.requires_grad_(False)
    fresh = [*_trainable(network.head), *_trainable(network.classifier)]
    transferred = _trainable(network.backbone)
    factors = {1.0: [*transferred, *fresh]} if lr_factor == 1 else {1.0: fresh, lr_factor: transferred}
    groups = [{"params": params, "lr_factor": factor} for factor, params in factors.items() if params]
    if not groups:
        raise ConfigError(
            "backbone.lr_factor=0 leaves nothing to train: this network is its backbone alone "
            "(backbone.embedding_dim=N adds a head)"
        )
    optimizer: torch.optim.Optimizer
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, settings.lr, weight_decay=settings.weight_decay, fused=fused)
    else:
        optimizer = torch.optim.SGD(
            groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=fused
        )
    set_learning_rate(optimizer, settings.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of `build_optimizer` its share of the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _trainable(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]
