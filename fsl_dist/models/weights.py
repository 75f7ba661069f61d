"""The initial weights of a backbone: files, downloads, and the matching of their names with the backbone's."""

import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout

import torch
from torch import Tensor, nn

from fsl_dist.errors import RequestError
from fsl_dist.finite import NOT_FINITE, find_negative_variance, find_non_finite
from fsl_dist.models.config import TIMM, BackboneConfig
from fsl_dist.models.downloads import check_reachable, hub_in_reach
from fsl_dist.models.embedding import Network
from fsl_dist.models.weight_files import count_names, first_few, read_weights

# First parts of the names of heads, which belong to the task that a file was trained for, and of extra networks of
# contrastive training. The backbone's own tensors of these names are kept.
_HEADS = frozenset((
    "fc", "classifier", "head", "heads", "head_dist", "linear", "mlp_head", "projector", "projection", "projection_head",
    "proj_head", "predictor", "prototypes", "queue", "queue_ptr", "n_averaged", "map_head", "fc7",
))  # fmt: skip
# If a file has several networks with the same names: the average first, then the one that is trained by gradients.
_PREFERRED = ("teacher", "ema", "encoder_q", "base_encoder", "online", "student")
_RUN_BACKBONE = re.compile(r"backbone\.(model\.)?$")
# torchvision's DenseNet files are older than its code: `norm.1` in the file is `norm1` in the code.
_OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# The weights of each architecture by name and not by "DEFAULT": the initial weights of a run must not change with a
# release.
_TIMM_WEIGHTS = {"resnet50_v2": "resnetv2_50.a1h_in1k", "se_resnet50": "seresnet50.ra2_in1k"}


def load_initial(network: Network, config: BackboneConfig) -> str:
    """Copy the weights that `config` selects, if any, into the network's backbone, and into its map head and fc7.

    A map head is loaded if both networks have one, and stays random if the file has none.

    Args:
        network: with random weights.
        config: the `backbone.*` settings.

    Returns:
        A sentence for the log: how the tensors of `config.weights` were found, and which were ignored. May be empty.

    Raises:
        RequestError: the weights are not available, do not fit, or are not finite.
    """
    loaded: Mapping[str, Tensor]
    found: tuple[str, ...] = ()
    if config.weights:
        named = source = f"backbone.weights={config.weights}"
        file = read_weights(config.weights, _backbone_of(network, config).state_dict())
        loaded, found = file.tensors, file.found
        source += f" ({file.entry})" if file.entry else ""
    elif config.pretrained and not config.name.startswith(TIMM):  # timm loads what it builds
        source = "backbone.pretrained=true"
        loaded = _from_timm(config.name) if config.name in _TIMM_WEIGHTS else _from_torchvision(config.name)
    else:
        return ""
    prefix = _find_prefix(loaded, _backbone_of(network, config).state_dict(), source)
    own = _part_of(loaded, prefix)
    _check_plain(own, prefix, source)
    if config.name.startswith(TIMM):
        passed_over = _load_timm(network.backbone, own, config, source)
    else:
        passed_over = load_weights(network.backbone, own, config, source=source)
    left = {prefix + key for key in passed_over} | {key for key in loaded if not key.startswith(prefix)}
    beside = _RUN_BACKBONE.sub("", prefix)  # prefix of the heads in a run's network
    if network.map_head is not None:
        left -= _load_map_head(
            network.map_head, _part_of(loaded, f"{beside}map_head."), source, f"{beside}map_head."
        )
    if network.fc7 is not None:
        left -= _load_fc7(network.fc7, loaded, (f"{beside}fc7.linear.", f"{prefix}classifier.4."), source)
    if bad := find_non_finite(network):
        raise RequestError(
            f"{source}: the tensor {bad} {NOT_FINITE}, as those of a run that diverged do (an earlier checkpoint "
            "of that run)"
        )
    if bad := find_negative_variance(network):
        raise RequestError(
            f"{source}: the tensor {bad} contains a variance below 0, which no batch norm can have learned "
            "(the file is damaged: fetch it again)"
        )
    if not config.weights:
        return ""
    if prefix:
        found = (*found, f"names without '{prefix}'")
    if left:
        in_order = [key for key in loaded if key in left]
        found = (*found, f"tensors ignored: {first_few(in_order)}")
    return f"{named}: {'; '.join(found)}" if found else ""


def _backbone_of(network: Network, config: BackboneConfig) -> nn.Module:
    """The module whose names are those of a file."""
    is_timm = config.name.startswith(TIMM)
    return network.backbone.get_submodule("model") if is_timm else network.backbone


def _check_plain(tensors: Mapping[str, Tensor], prefix: str, source: str) -> None:
    """Raise RequestError for tensors whose numbers are not there or not stored one by one."""
    for key, value in tensors.items():
        kind = ""
        if value.is_meta:
            kind = "on the device meta, that is without its numbers"
        elif value.is_quantized:
            kind = "quantized"
        elif value.is_nested or value.layout != torch.strided:
            kind = f"not dense ({'nested' if value.is_nested else value.layout})"
        if kind:
            raise RequestError(f"{source}: the tensor {prefix}{key} is {kind} (a file of dense tensors)")


def _find_prefix(loaded: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> str:
    """The prefix of a network's own names in `loaded`: "", "module.", "model.backbone." …; the most frequent one.

    Raises RequestError if several networks of a file match equally well, and none is known as the one to use.
    """
    counts = count_names(loaded, own)
    most = max(counts.values(), default=0)
    if 2 * most < len(own):  # names of another architecture, or of an original release, which timm knows
        is_wrapped = all(key.startswith("module.") for key in loaded) and counts["module."] >= counts[""]
        return "module." if is_wrapped else ""
    alike = [prefix for prefix, count in counts.items() if count == most]
    for word in _PREFERRED:
        alike = [prefix for prefix in alike if word in prefix] or alike
        if len(alike) == 1:
            return alike[0]
    named = ", ".join(f"'{prefix}'" for prefix in alike)
    raise RequestError(
        f"{source} has {len(alike)} networks with these names, with the prefixes {named} (a file with the tensors "
        "of one of them)"
    )


def _load_timm(
    backbone: nn.Module, loaded: Mapping[str, Tensor], config: BackboneConfig, source: str
) -> list[str]:
    from fsl_dist.models.timm_backbone import TimmBackbone, timm_names

    assert isinstance(backbone, TimmBackbone)
    own = backbone.model.state_dict()
    try:
        named = timm_names(backbone.model, loaded)
    except Exception as error:  # timm expects the names and shapes of its own files
        raise RequestError(
            f"{source} does not fit backbone.name={config.name}: timm cannot read its names "
            f"({type(error).__name__}: {error}) (backbone.name must be the architecture the file was saved from)"
        ) from error
    is_kept = {key: key in own or not key.startswith(backbone.passed_over) for key in named}
    kept = {key: value for key, value in named.items() if is_kept[key]}
    passed_over = load_weights(backbone.model, kept, config, source=source)
    return [*passed_over, *(key for key in named if not is_kept[key])]


def _load_map_head(head: nn.Module, given: Mapping[str, Tensor], source: str, prefix: str) -> set[str]:
    """The names of the loaded tensors, which begin with `prefix` in the file; empty if the file has no map head."""
    own = head.state_dict()
    if not given:
        return set()
    if {name: value.shape for name, value in given.items()} != {
        name: value.shape for name, value in own.items()
    }:
        raise RequestError(
            f"{source} has a map head of {len(given['conv.bias'])} maps, this run has backbone.map_head="
            f"{len(own['conv.bias'])} (the same number loads it)"
        )
    head.load_state_dict(given)
    return {prefix + name for name in given}


def _load_fc7(
    fc7: nn.Module, loaded: Mapping[str, Tensor], prefixes: tuple[str, ...], source: str
) -> set[str]:
    """The names of the loaded tensors: of a run's fc7, or of AlexNet's own file,
    the fifth layer of its `classifier`."""
    prefix = next((prefix for prefix in prefixes if _part_of(loaded, prefix)), "")
    given = _part_of(loaded, prefix)
    linear = fc7.get_submodule("linear")
    if any(
        name not in given or given[name].shape != value.shape for name, value in linear.state_dict().items()
    ):
        raise RequestError(
            f"{source} has no fc7 of 4096 by 4096 to start from (AlexNet's own file has one; backbone.fc7=false "
            "works without)"
        )
    linear.load_state_dict({name: given[name] for name in linear.state_dict()})
    return {prefix + name for name in linear.state_dict()}


def _part_of(loaded: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}


def _from_torchvision(name: str) -> Mapping[str, Tensor]:
    """torchvision's ImageNet weights, from its cache or its site."""
    from torchvision import models

    weights = {
        "alexnet": models.AlexNet_Weights.IMAGENET1K_V1,
        "convnext_base": models.ConvNeXt_Base_Weights.IMAGENET1K_V1,
        "densenet121": models.DenseNet121_Weights.IMAGENET1K_V1,
        "efficientnet_b3": models.EfficientNet_B3_Weights.IMAGENET1K_V1,
        "mobilenet_v2": models.MobileNet_V2_Weights.IMAGENET1K_V2,
        "resnet18": models.ResNet18_Weights.IMAGENET1K_V1,
        "resnet50": models.ResNet50_Weights.IMAGENET1K_V2,
        "vgg19": models.VGG19_Weights.IMAGENET1K_V1,
        "vit_b_16": models.ViT_B_16_Weights.IMAGENET1K_V1,
    }[name]
    try:
        check_reachable(weights.url)
        with redirect_stdout(sys.stderr):  # a download is announced, and stdout may be for JSON
            return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network; a damaged download
        raise RequestError(
            f"backbone.pretrained=true could not fetch torchvision's weights of {name}: {error} "
            f"(offline: fetch {weights.url} elsewhere, then backbone.weights=PATH backbone.pretrained=false)"
        ) from error


def _from_timm(name: str) -> Mapping[str, Tensor]:
    """timm's ImageNet weights, from the Hugging Face hub or its cache."""
    from timm.models import load_state_dict_from_hf

    repository = f"timm/{_TIMM_WEIGHTS[name]}"
    try:
        with hub_in_reach():
            return load_state_dict_from_hf(repository, filename="model.safetensors")
    except Exception as error:  # the hub's client and its transport raise their own errors
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"backbone.pretrained=true could not fetch timm's weights of {name}: {reason} (offline: fetch "
            f"model.safetensors of {repository} from the Hugging Face hub elsewhere, then "
            "backbone.weights=PATH backbone.pretrained=false)"
        ) from error


def load_weights(
    backbone: nn.Module, loaded: Mapping[str, Tensor], config: BackboneConfig, *, source: str
) -> list[str]:
    """Copy `loaded` (tensors by name, any float dtype) into `backbone`; all of its tensors must exist and fit.

    source: description for errors. Returns the names of heads that were ignored. Raises RequestError naming missing or
    unexpected tensors, or those of a wrong shape or dtype; then nothing is copied.
    """
    own = backbone.state_dict()
    renamed = {_OLD_DENSENET_NAME.sub(r"\1\2.", key): value for key, value in loaded.items()}
    passed_over = [key for key in renamed if key not in own and key.partition(".")[0] in _HEADS]
    given = {key: value for key, value in renamed.items() if key not in passed_over}
    for key, value in given.items():
        is_colour_for_grey = key in own and value.ndim == 4 and own[key].shape[1] == 1 and value.shape[1] == 3
        if is_colour_for_grey:
            given[key] = value.to(own[key].dtype).sum(dim=1, keepdim=True)
    # Files from before torch 0.4.1 do not count batches; the count plays no part with a fixed momentum.
    missing = [key for key in own if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in own]
    both = [key for key in own if key in given]
    misshapen = [
        f"{key} {list(given[key].shape)} for {list(own[key].shape)}"
        for key in both
        if given[key].shape != own[key].shape
    ]
    other_numbers = [
        f"{key} {given[key].dtype} for {own[key].dtype}"
        for key in both
        if given[key].is_floating_point() != own[key].is_floating_point()
    ]
    named = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("wrong shape", misshapen),
        ("wrong dtype", other_numbers),
    )
    complaints = [f"{what} {first_few(keys)}" for what, keys in named if keys]
    if complaints:
        raise RequestError(
            f"{source} does not fit backbone.name={config.name}: {'; '.join(complaints)} "
            "(backbone.name must be the architecture the file was saved from)"
        )
    backbone.load_state_dict(given, strict=False)
    return passed_over
