"""The backbones: which network turns a sample into features, and with which weights it starts."""

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

from fsl_dist.errors import ConfigError
from fsl_dist.models.batch_norm import apply_batch_norm, set_momentum
from fsl_dist.models.config import BACKBONES, GROUP, TIMM, BackboneConfig
from fsl_dist.models.embedding import FullPrecisionLinear, GlobalAverage, MapBackbone, MapModule, Network
from fsl_dist.models.imagenet_backbones import alexnet_fc7, imagenet_backbone
from fsl_dist.models.layers import freeze_layers
from fsl_dist.models.lora import add_lora
from fsl_dist.models.weights import load_initial
from fsl_dist.plugins import find_plugins, load_plugin

# Number of maps before pooling, if it differs from the number of features.
_NUM_MAPS = {"alexnet": 256, "vgg19": 512}
# Smallest image side in pixels that leaves at least one pixel after all strides and poolings without padding.
_LEAST_SIZE = {"conv4": 16, "alexnet": 63, "convnext_base": 32, "densenet121": 29, "vgg19": 32}


def build_network(
    config: BackboneConfig,
    *,
    sample_shape: tuple[int, ...],
    num_classes: int = 0,
    normalise: bool = False,
    outputs_embeddings: bool = False,
) -> Network:
    """Build the network that `config` describes.

    Random weights come from torch's global generator, which the caller seeds. `batch_norm="auto"` is treated as
    `batch` (see `resolve_batch_norm`). For grey images, the first convolution of torchvision's networks is summed
    over its input channels, which is equivalent to repeating the grey channel three times.

    Args:
        config: the `backbone.*` settings.
        sample_shape: (channels, height, width) of images, or (dim,) of vectors.
        num_classes: outputs of a classifier on the embedding; 0 for none.
        normalise: scale embeddings to length 1.
        outputs_embeddings: with a classifier, `forward` returns both embeddings and logits.

    Returns:
        The network, in training mode on the CPU.

    Raises:
        ConfigError: the architecture does not support such samples.
        RequestError: weights do not fit.
    """
    backbone, feature_dim = _build_backbone(config, sample_shape)
    if config.map_head:
        if not isinstance(backbone, MapModule):
            raise ConfigError(
                f"backbone.map_head={config.map_head} needs feature maps; backbone.name={config.name} has none"
            )
        num_maps = getattr(backbone, "num_maps", _NUM_MAPS.get(config.name, feature_dim))
        backbone, feature_dim = backbone.pooled(), num_maps
    network = Network(
        backbone,
        feature_dim,
        head_dim=config.embedding_dim,
        map_dim=config.map_head,
        num_classes=num_classes,
        normalise=normalise,
        outputs_embeddings=outputs_embeddings,
        fc7=alexnet_fc7() if config.fc7 and num_classes else None,
    )
    network.weights_note = load_initial(network, config)
    if config.lora_rank:
        add_lora(network.backbone, config, sample_shape)
    set_momentum(network, config.batch_norm_momentum)
    apply_batch_norm(network, "batch" if config.batch_norm == "auto" else config.batch_norm)
    if config.freeze:
        freeze_layers(network.backbone, config.freeze)
    # Convolutions follow their weights: on a CPU a Conv4 step took 0.8 of the time, MobileNetV2 0.7, ResNets the same.
    return network.to(memory_format=torch.channels_last)


def _build_backbone(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Module (float [n, *sample_shape] → [n, feature_dim]) and its feature_dim."""
    is_timm = config.name.startswith(TIMM)
    if config.name not in BACKBONES and not is_timm:
        return _plugin(config, sample_shape)
    if config.name == "mlp":
        return _mlp(torch.Size(sample_shape).numel(), config.hidden), config.hidden[-1]
    if len(sample_shape) != 3:
        raise ConfigError(
            f"backbone.name={config.name} needs images (channels, height, width); the samples are {sample_shape} "
            "(backbone.name=mlp accepts vectors)"
        )
    if is_timm:
        from fsl_dist.models.timm_backbone import timm_backbone

        return timm_backbone(config, sample_shape)
    _check_size(config.name, sample_shape)
    channels = sample_shape[0]
    if config.name == "conv4":
        return _conv4(channels, config.width), config.width
    if channels not in (1, 3):
        raise ConfigError(
            f"backbone.name={config.name} needs images of 1 or 3 channels; the samples have {channels} "
            "(backbone.name=conv4 accepts any number)"
        )
    return imagenet_backbone(config, sample_shape)


def _plugin(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """A network from another distribution (docs/how_to/new_backbone.md)."""
    build = load_plugin(find_plugins(GROUP)[config.name], "backbone.name")
    built = build(config, sample_shape)
    if not (isinstance(built, tuple) and len(built) == 2 and isinstance(built[0], nn.Module)):
        raise ConfigError(
            f"backbone.name={config.name} must return (module, feature_dim); it returned a {type(built).__name__}"
        )
    return built


def _check_size(name: str, sample_shape: tuple[int, ...]) -> None:
    """Raise ConfigError where images of `sample_shape` (channels, height, width) are too small, or of a wrong shape."""
    height, width = sample_shape[1:]
    least = _LEAST_SIZE.get(name, 1)
    if min(height, width) < least:
        raise ConfigError(
            f"backbone.name={name} needs images of {least} px or more; the samples are {height}×{width} px "
            "(larger images, another backbone.name, or backbone.name=mlp)"
        )
    if name == "vit_b_16" and (height != width or height % 16):
        raise ConfigError(
            f"backbone.name=vit_b_16 cuts square images into patches of 16 px; the samples are {height}×{width} px "
            "(a data.image_size divisible by 16)"
        )


def _conv4(channels: int, width: int) -> nn.Module:
    """Four blocks of convolution, batch norm, ReLU and pooling (Snell, Swersky & Zemel 2017), then the mean.

    At 28 px the map is one pixel, and the mean equals the flattening of that paper; larger images also give `width`
    features.
    """
    blocks = [
        nn.Sequential(
            nn.Conv2d(before, width, kernel_size=3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        for before in (channels, width, width, width)
    ]
    named = {str(number): block for number, block in enumerate(blocks)}
    return MapBackbone(OrderedDict(**named, pool=GlobalAverage()))


def _mlp(input_dim: int, hidden: tuple[int, ...]) -> nn.Module:
    """Layers of `hidden` widths with batch norm and ReLU between them; the last one runs in full precision."""
    widths = (input_dim, *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, FullPrecisionLinear(widths[-2], widths[-1]))
