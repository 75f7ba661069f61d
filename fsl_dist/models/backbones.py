"""The backbones: which network turns a sample into features, and with which weights it starts."""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.batch_norm import apply_batch_norm
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.embedding import FullPrecisionLinear, GlobalAverage, Network
from fsl_dist.models.same_padding import apply_same_padding

# The classifier of a weights file is for the classes it was trained on; every backbone here ends before it.
_CLASSIFIER_PREFIXES = ("fc.", "classifier.")
_NAMED_IN_ERROR = 3


def build_network(
    config: BackboneConfig, *, sample_shape: tuple[int, ...], num_classes: int = 0, normalise: bool = False
) -> Network:
    """The network of `config` for samples of `sample_shape`, (channels, height, width) or (dim,).

    Random weights come from torch's global generator, which the caller seeds. `batch_norm="auto"` is left as
    `batch` (see `resolve_batch_norm`). Grey images meet torchvision's networks by a first convolution summed over
    its input channels: the same as showing the grey image three times.

    Raises ConfigError where the architecture cannot take such samples, RequestError where weights do not fit.
    """
    backbone, feature_dim = _build_backbone(config, sample_shape)
    if config.weights:
        _load(backbone, read_state_dict(config.weights), config, source=f"backbone.weights={config.weights}")
    elif config.pretrained:
        _load(backbone, _download(config.name), config, source="backbone.pretrained=true")
    network = Network(
        backbone, feature_dim, head_dim=config.embedding_dim, num_classes=num_classes, normalise=normalise
    )
    apply_batch_norm(network, "batch" if config.batch_norm == "auto" else config.batch_norm)
    return network


def _build_backbone(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Module (float [n, *sample_shape] → [n, feature_dim]) and its feature_dim."""
    if config.name == "mlp":
        return _mlp(torch.Size(sample_shape).numel(), config.hidden), config.hidden[-1]
    if len(sample_shape) != 3:
        raise ConfigError(
            f"backbone.name={config.name} needs images (channels, height, width); the samples are {sample_shape} "
            "(backbone.name=mlp takes vectors)"
        )
    channels = sample_shape[0]
    if config.name == "conv4":
        if min(sample_shape[1:]) < 16:
            raise ConfigError(
                f"backbone.name=conv4 halves an image four times and needs 16 px or more; the samples are "
                f"{sample_shape[1]}×{sample_shape[2]} px (larger images, or backbone.name=mlp)"
            )
        return _conv4(channels, config.width), config.width
    if channels not in (1, 3):
        raise ConfigError(
            f"backbone.name={config.name} takes images of 1 or 3 channels; the samples have {channels} "
            "(backbone.name=conv4 takes any number)"
        )
    from torchvision import models

    match config.name:
        case "mobilenet_v2":
            features = models.mobilenet_v2().features
            features[0][0] = _for_channels(features[0][0], channels)
            if config.padding == "same":
                apply_same_padding(features)
            return nn.Sequential(OrderedDict(features=features, pool=GlobalAverage())), 1280
        case "resnet18":
            return _headless_resnet(models.resnet18(), channels), 512
        case "resnet50":
            return _headless_resnet(models.resnet50(), channels), 2048


def _conv4(channels: int, width: int) -> nn.Module:
    """Four blocks of convolution, batch norm, ReLU and pooling (Snell, Swersky & Zemel 2017), then the mean.

    At 28 px the map is one pixel and the mean is the flattening of that paper; larger images keep `width` features.
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
    return nn.Sequential(*blocks, GlobalAverage())


def _mlp(input_dim: int, hidden: tuple[int, ...]) -> nn.Module:
    """Layers of `hidden` widths with batch norm and ReLU between them; the last runs in full precision."""
    widths = (input_dim, *hidden)
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, FullPrecisionLinear(widths[-2], widths[-1]))


def _headless_resnet(resnet: nn.Module, channels: int) -> nn.Module:
    """torchvision's ResNet up to the pooled features (no classifier), for `channels` input channels."""
    assert isinstance(resnet.conv1, nn.Conv2d)
    resnet.conv1 = _for_channels(resnet.conv1, channels)
    resnet.avgpool = GlobalAverage()
    resnet.fc = nn.Identity()
    return resnet


def _for_channels(first: nn.Conv2d, channels: int) -> nn.Conv2d:
    """`first`, a convolution of colour images, made one of `channels` 1 by a sum over its input channels, or left."""
    if channels != first.in_channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
    return first


def read_state_dict(path: str) -> dict[str, Tensor]:
    """Tensors of a weights file by name: `.safetensors`, or what `torch.save` wrote, read without unpickling code.

    Of a file that holds a whole `Network`, or a run's checkpoint, the backbone's part is taken. Raises RequestError
    naming the file.
    """
    if not Path(path).is_file():
        raise RequestError(f"backbone.weights={path}: there is no such file")
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each format has its own errors, all meaning that the file cannot be used
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"backbone.weights={path} does not read as a state_dict: {reason} "
            "(torch.save(model.state_dict(), PATH) writes one)"
        ) from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("network"), Mapping):
        loaded = loaded["network"]  # a checkpoint of a run
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise RequestError(
            f"backbone.weights={path} does not hold a state_dict, which is names and tensors only "
            "(torch.save(model.state_dict(), PATH) writes one)"
        )
    prefix = "backbone."
    if any(key.startswith(prefix) for key in loaded):
        return {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}
    return dict(loaded)


def _download(name: str) -> Mapping[str, Tensor]:
    """torchvision's ImageNet weights, from its cache or its site."""
    from torchvision import models

    # The best set of each, by name and not by "DEFAULT": what a run starts from must not move with a release.
    weights = {
        "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V2,
        "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
        "resnet50": models.ResNet50_Weights.IMAGENET1K_V2,
    }[name]
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged download
        raise RequestError(
            f"backbone.pretrained=true could not fetch torchvision's weights of {name}: {error} "
            f"(offline: fetch {weights.url} elsewhere, then backbone.weights=PATH backbone.pretrained=false)"
        ) from error


def _load(backbone: nn.Module, loaded: Mapping[str, Tensor], config: BackboneConfig, *, source: str) -> None:
    """Copy `loaded` into `backbone`; every tensor must be there and fit, a classifier's are passed over."""
    own = backbone.state_dict()
    given = {key: value for key, value in loaded.items() if not key.startswith(_CLASSIFIER_PREFIXES)}
    for key, value in given.items():
        is_colour_for_grey = key in own and value.ndim == 4 and own[key].shape[1] == 1 and value.shape[1] == 3
        if is_colour_for_grey:
            given[key] = value.sum(dim=1, keepdim=True)
    # Files from before torch 0.4.1 do not count batches; the count plays no part with a fixed momentum.
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    misshapen = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape
    ]
    named = (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
    complaints = [f"{what} {_first_few(keys)}" for what, keys in named if keys]
    if complaints:
        raise RequestError(
            f"{source} does not fit backbone.name={config.name}: {'; '.join(complaints)} "
            "(backbone.name must be the architecture the file was saved from)"
        )
    backbone.load_state_dict(given, strict=False)


def _first_few(keys: list[str]) -> str:
    more = len(keys) - _NAMED_IN_ERROR
    return ", ".join(keys[:_NAMED_IN_ERROR]) + (f" and {more} more" if more > 0 else "")
