"""The layers of a backbone in order: for freezing the first of them,
and for learning rates that fall towards the input."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fsl_dist.errors import ConfigError
from fsl_dist.models.batch_norm import freeze_batch_norms

# Layers of torchvision's ViT: the patches, each block, and the last norm with the last block.
_VIT_LAYERS = {
    "stem": r"class_token|conv_proj|encoder\.pos_embedding",
    "blocks": [(r"encoder\.layers\.encoder_layer_(\d+)", None), (r"encoder\.ln", (99999,))],
}


def layer_numbers(backbone: nn.Module) -> dict[str, int]:
    """Return the layer of each parameter of `backbone`, by the parameter's name,
    counted from 0 at the input without gaps.

    A layer is the stem, or a residual or transformer block. timm's networks define them; for other networks they are
    the members of their sequences, where a norm belongs to the layer before it.
    """
    is_wrapped = hasattr(getattr(backbone, "model", None), "group_matcher")
    model = backbone.get_submodule("model") if is_wrapped else backbone
    matcher = _matcher_of(model)
    if matcher is None:
        return _count_sequences(backbone)
    from timm.models import group_parameters

    prefix = "model." if is_wrapped else ""
    return {prefix + name: number for name, number in group_parameters(model, matcher, reverse=True).items()}


def _matcher_of(model: Any) -> object:
    """timm's description of the layers of `model`, None if it has none."""
    if hasattr(model, "group_matcher"):
        return model.group_matcher(coarse=False)
    names = [name for name, _ in model.named_parameters()]
    return _VIT_LAYERS if any(name.startswith("encoder.layers.encoder_layer_") for name in names) else None


def _count_sequences(backbone: nn.Module) -> dict[str, int]:
    numbers = {name: 0 for name, _ in backbone.named_parameters(recurse=False)}
    number = -1

    def visit(module: nn.Module, prefix: str) -> None:
        nonlocal number
        if isinstance(module, nn.Sequential) or module is backbone:
            for name, child in module.named_children():
                visit(child, f"{prefix}{name}.")
            return
        own = dict(module.named_parameters())
        is_norm = all(parameter.ndim <= 1 for parameter in own.values())
        if not own:
            return
        number = max(0, number if is_norm else number + 1)
        numbers.update({prefix + name: number for name in own})

    visit(backbone, "")
    return numbers


def freeze_layers(backbone: nn.Module, num_layers: int) -> None:
    """Freeze the first `num_layers` layers of `backbone` (-1: all of it), in place.

    Their parameters get no gradient, and their batch norms use and keep their running statistics, regardless of later
    calls of `apply_batch_norm`. Raises ConfigError if the backbone has fewer layers.
    """
    numbers = layer_numbers(backbone)
    has = max(numbers.values(), default=-1) + 1
    if num_layers > has:
        raise ConfigError(
            f"backbone.freeze={num_layers} is more than the {has} layers of this backbone "
            f"(backbone.freeze={has} or -1 freezes all of it)"
        )
    frozen = {name for name, number in numbers.items() if num_layers < 0 or number < num_layers}
    for name, parameter in backbone.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    freeze_batch_norms(
        backbone,
        [
            name
            for name, module in backbone.named_modules()
            if isinstance(module, _BatchNorm) and (num_layers < 0 or f"{name}.weight" in frozen)
        ],
    )
