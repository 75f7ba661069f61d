"""The optimizer of a run: which parameters learn, and how fast each of them."""

import torch
from torch import nn

from fsl_dist.errors import ConfigError
from fsl_dist.models.embedding import Network
from fsl_dist.training.config import TrainingConfig


def group_parameters(
    network: Network, *, lr_factor: float = 1.0, linear_lr_factor: float = 1.0
) -> list[dict]:
    """What learns, as an optimizer's groups: `params` and their `lr_factor`; heads and classifier have 1, the backbone `lr_factor`.

    The backbone's linear layers and fc7 have `lr_factor`·`linear_lr_factor`, if that is not 1 (AlexNet, VGG). Layers
    of the same factor are one group, and a group without parameters is left out. A `lr_factor` of 0 takes the gradient
    away from the backbone's parameters (`requires_grad`), so it must come before DDP.

    Raises ConfigError where nothing is left to train.
    """
    if lr_factor == 0:
        for transferred in (network.backbone, network.fc7):
            if transferred is not None:
                transferred.requires_grad_(False)
    linear = {
        parameter
        for module in network.backbone.modules()
        if isinstance(module, nn.Linear)
        for parameter in module.parameters()
    }
    linear.update(_trainable(network.fc7))
    groups: list[dict] = [{"params": [], "lr_factor": 1.0}]
    for parameter in (*_trainable(network.backbone), *_trainable(network.fc7)):
        factor = lr_factor * (linear_lr_factor if parameter in linear else 1.0)
        _group_of(groups, factor)["params"].append(parameter)
    groups[0]["params"] += [
        *_trainable(network.map_head),
        *_trainable(network.head),
        *_trainable(network.classifier),
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ConfigError(
            "backbone.lr_factor=0 leaves nothing to train: this network is its backbone alone "
            "(backbone.embedding_dim=N or backbone.map_head=N adds a head)"
        )
    return groups


def build_optimizer(
    network: Network,
    settings: TrainingConfig,
    *,
    lr_factor: float = 1.0,
    linear_lr_factor: float = 1.0,
) -> torch.optim.Optimizer:
    """Adam or SGD over `group_parameters`, each group at `settings.lr` times its `lr_factor`.

    A group keeps its factor as `lr_factor`, in the optimizer's state_dict too. torch makes its first optimizer of a process
    in some 2 s: it imports the compiler.
    """
    groups = group_parameters(network, lr_factor=lr_factor, linear_lr_factor=linear_lr_factor)
    optimizer: torch.optim.Optimizer
    # Fused on the CPU too, which torch does not choose by itself: an MLP's step took 0.8 of the time.
    if settings.optimizer == "adam":
        optimizer = torch.optim.Adam(groups, settings.lr, weight_decay=settings.weight_decay, fused=True)
    else:
        optimizer = torch.optim.SGD(
            groups, settings.lr, settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    set_learning_rate(optimizer, settings.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of `group_parameters` its share of the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def _group_of(groups: list[dict], factor: float) -> dict:
    """The group of `factor` among `groups`, added where there is none."""
    found = next((group for group in groups if group["lr_factor"] == factor), None)
    if found is None:
        found = {"params": [], "lr_factor": factor}
        groups.append(found)
    return found


def _trainable(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]
