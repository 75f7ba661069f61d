"""The optimizer of a run: which parameters learn, and how fast each of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fsl_dist.errors import ConfigError, TrainingError
from fsl_dist.models.embedding import Network
from fsl_dist.models.layers import layer_numbers
from fsl_dist.training.config import TrainingConfig


def group_parameters(
    network: Network,
    *,
    lr_factor: float = 1.0,
    linear_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> list[dict]:
    """Return the trainable parameters as an optimizer's groups:
    `params`, `lr_factor`, and `decays` (use of weight decay).

    Heads and classifier have `head_lr_factor`, layer l of the backbone's L layers `lr_factor`·`layer_decay`^(L − l),
    with l counted from 0 (BEiT, Bao et al. 2022). The backbone's linear layers and fc7 have `linear_lr_factor` times
    that, if it is not 1 (AlexNet, VGG). Biases and the parameters of norms, which have one dimension, do not decay,
    nor do those that timm lists (position embeddings). Parameters with equal values of both form one group, and empty
    groups are left out. A `lr_factor` of 0 disables the gradient of the backbone's parameters (`requires_grad`), so
    it must be applied before DDP.

    Raises ConfigError if there are no trainable parameters.
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
    factors = {
        parameter: head_lr_factor
        for module in (network.map_head, network.head, network.classifier)
        for parameter in _trainable(module)
    }
    numbers = layer_numbers(network.backbone) if layer_decay != 1 else {}
    num_layers = max(numbers.values(), default=-1) + 1
    spared = _spared(network.backbone)
    for name, parameter in network.backbone.named_parameters():
        if parameter.requires_grad:
            decay = layer_decay ** (num_layers - numbers.get(name, num_layers))
            factors[parameter] = lr_factor * decay * (linear_lr_factor if parameter in linear else 1.0)
    factors.update(dict.fromkeys(_trainable(network.fc7), lr_factor * linear_lr_factor))
    groups: dict[tuple[float, bool], dict] = {}
    for parameter, factor in factors.items():
        decays = parameter.ndim > 1 and parameter not in spared
        new = {"params": [], "lr_factor": factor, "decays": decays}
        groups.setdefault((factor, decays), new)["params"].append(parameter)
    if not groups:
        raise ConfigError(
            "backbone.lr_factor=0 or backbone.freeze leaves nothing to train: this network is its backbone alone "
            "(backbone.embedding_dim=N or backbone.map_head=N adds a head)"
        )
    return list(groups.values())


def _spared(backbone: nn.Module) -> set[nn.Parameter]:
    """The parameters of `backbone` that timm spares weight decay."""
    list_names: Any = getattr(getattr(backbone, "model", None), "no_weight_decay", None)
    names = {f"model.{name}" for name in list_names()} if list_names is not None else set()
    return {parameter for name, parameter in backbone.named_parameters() if name in names}


def build_optimizer(
    network: Network,
    settings: TrainingConfig,
    *,
    lr_factor: float = 1.0,
    linear_lr_factor: float = 1.0,
    head_lr_factor: float = 1.0,
    layer_decay: float = 1.0,
) -> torch.optim.Optimizer:
    """Create AdamW, Adam or SGD over `group_parameters`,
    each group with the learning rate `settings.lr` times its `lr_factor`.

    AdamW decays only the groups with `decays` (Loshchilov & Hutter 2019: by lr · weight_decay per step); the L2 of
    Adam and SGD applies to all. A group keeps its factor as `lr_factor`, also in the optimizer's state_dict. torch
    needs some 2 s for the first optimizer of a process, because it imports the compiler.
    """
    groups = group_parameters(
        network,
        lr_factor=lr_factor,
        linear_lr_factor=linear_lr_factor,
        head_lr_factor=head_lr_factor,
        layer_decay=layer_decay,
    )
    for group in groups:
        group["weight_decay"] = settings.decay if group["decays"] or settings.optimizer != "adamw" else 0.0
    optimizer: torch.optim.Optimizer
    # Fused on the CPU too, which torch does not choose by itself: an MLP's step took 0.8 of the time.
    match settings.optimizer:
        case "adamw":
            optimizer = torch.optim.AdamW(groups, settings.lr, fused=True)
        case "adam":
            optimizer = torch.optim.Adam(groups, settings.lr, fused=True)
        case "sgd":
            optimizer = torch.optim.SGD(groups, settings.lr, settings.momentum, fused=True)
    set_learning_rate(optimizer, settings.lr)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of `group_parameters` its share of the learning rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


_CHANGEABLE = ("weight_decay", "momentum")
"""settings of a group that may change when a run resumes; its learning rate is set at each step"""


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict, folder: Path) -> None:
    """Load the state of an optimizer, from the checkpoint in RUN/checkpoints/… `folder`;
    its settings remain the run's own.

    Raises TrainingError if its groups of parameters differ.
    """
    own = [{key: group[key] for key in _CHANGEABLE if key in group} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        raise TrainingError(
            f"{folder} has the state of another optimizer, of an earlier version or other backbone settings: {error} "
            f"(backbone.weights={folder.parent.parent} starts a new run from its network)"
        ) from error
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)


def clip_gradient(network: nn.Module, clip_norm: float) -> Tensor:
    """Scale the gradient of all parameters down to the L2 norm `clip_norm` if it is longer (0: never).

    With several workers, it is applied after DDP has averaged the gradient, so all have the same.

    Returns:
        The norm before, float [].
    """
    parameters = [parameter for parameter in network.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if clip_norm > 0:
        clip_grads_with_norm_(parameters, clip_norm, norm)
    return norm


def _trainable(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else [p for p in module.parameters() if p.requires_grad]
