"""Low-rank updates of a transformer's linear layers (LoRA, Hu et al. 2022), by peft."""

from typing import Any

import torch
from torch import nn

from fsl_dist.errors import ConfigError
from fsl_dist.models.config import BackboneConfig
from index.base.extras import require

# Parts of timm's names for the attention and the MLP of a block.
_ATTENTION, _MLP = "attn", "mlp"


def add_lora(backbone: nn.Module, config: BackboneConfig, sample_shape: tuple[int, ...]) -> None:
    """Add trainable low-rank updates to the linear layers of attention and MLP, in place;
    all else in `backbone` is frozen.

    The updates start at 0, so the features do not change. A layer gets an update if a forward pass calls it; some
    transformers use only a layer's weight, where an update of the layer would have no effect.

    Raises:
        ConfigError: the backbone has no attention with linear layers.
        RequestError: peft is not installed.
    """
    targets = _linear_layers_called(backbone, sample_shape)
    if not any(_ATTENTION in name for name in targets):
        raise ConfigError(
            f"backbone.lora_rank={config.lora_rank} updates linear layers of attention; "
            f"backbone.name={config.name} has none (backbone.lora_rank=0, or a transformer of timm such as "
            "backbone.name=timm:vit_small_patch16_224)"
        )
    require("peft")
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha or 2 * config.lora_rank, target_modules=targets
    )
    was_training = backbone.training
    inject_adapter_in_model(lora, backbone)
    backbone.train(was_training)


def merge_lora(backbone: nn.Module) -> None:
    """Add the low-rank updates to the weights they update, in place; the layers are plain ones again."""
    child: Any  # peft's layers
    for parent in list(backbone.modules()):
        for name, child in list(parent.named_children()):
            if hasattr(child, "lora_A"):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def _linear_layers_called(backbone: nn.Module, sample_shape: tuple[int, ...]) -> list[str]:
    """Names of the linear layers of attention and MLP that a forward pass of `backbone` calls."""
    called: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear) and (_ATTENTION in name or _MLP in name)
    ]
    was_training = backbone.training
    try:
        with torch.no_grad():
            backbone.eval()(torch.zeros(1, *sample_shape))
    finally:
        backbone.train(was_training)
        for hook in hooks:
            hook.remove()
    return called
