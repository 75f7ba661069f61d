"""The weights a backbone starts from: files, downloads, and how their names meet the backbone's."""

import re
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn

from fsl_dist.errors import RequestError
from fsl_dist.models.config import TIMM, BackboneConfig
from fsl_dist.models.embedding import Network

# The classifier of a weights file is for the classes it was trained on; what a backbone has of it, it keeps.
_CLASSIFIER_PREFIXES = ("fc.", "classifier.", "head.", "heads.")
# torchvision's DenseNet files are older than its code: `norm.1` there is `norm1` here.
_OLD_DENSENET_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# The weights of each architecture by name and not by "DEFAULT": what a run starts from must not move with a release.
_TIMM_WEIGHTS = {"resnet50_v2": "resnetv2_50.a1h_in1k", "se_resnet50": "seresnet50.ra2_in1k"}
_NAMED_IN_ERROR = 3


def load_initial(network: Network, config: BackboneConfig) -> None:
    """Copy the weights that `config` names, if any, into the network's backbone, and into its map head and fc7.

    A map head is taken along where both networks have one, and stays as drawn where the weights have none. Raises
    RequestError where the weights cannot be had or do not fit.
    """
    loaded: Mapping[str, Tensor]
    if config.weights:
        source, loaded = f"backbone.weights={config.weights}", _read_tensors(config.weights)
    elif config.pretrained and not config.name.startswith(TIMM):  # timm loads what it builds
        source = "backbone.pretrained=true"
        loaded = _from_timm(config.name) if config.name in _TIMM_WEIGHTS else _from_torchvision(config.name)
    else:
        return
    own = _part_of(loaded, "backbone.") or loaded
    if config.name.startswith(TIMM):
        _load_timm(network.backbone, _part_of(own, "model.") or own, config, source)
    else:
        load_weights(network.backbone, own, config, source=source)
    if network.map_head is not None:
        _load_map_head(network.map_head, _part_of(loaded, "map_head."), source)
    if network.fc7 is not None:
        _load_fc7(network.fc7, loaded, source)


def _load_timm(
    backbone: nn.Module, loaded: Mapping[str, Tensor], config: BackboneConfig, source: str
) -> None:
    from fsl_dist.models.timm_backbone import TimmBackbone, timm_names

    assert isinstance(backbone, TimmBackbone)
    own = backbone.model.state_dict()
    kept = {
        key: value
        for key, value in timm_names(backbone.model, loaded).items()
        if key in own or not key.startswith(backbone.passed_over)
    }
    load_weights(backbone.model, kept, config, source=source)


def _load_map_head(head: nn.Module, given: Mapping[str, Tensor], source: str) -> None:
    own = head.state_dict()
    if not given:
        return
    if {name: value.shape for name, value in given.items()} != {
        name: value.shape for name, value in own.items()
    }:
        raise RequestError(
            f"{source} has a map head of {len(given['conv.bias'])} maps, this run has backbone.map_head="
            f"{len(own['conv.bias'])} (the same number takes it along)"
        )
    head.load_state_dict(given)


def _load_fc7(fc7: nn.Module, loaded: Mapping[str, Tensor], source: str) -> None:
    """From a run with fc7, or from AlexNet's own file, where it is the fifth layer of `classifier`."""
    given = _part_of(loaded, "fc7.linear.") or _part_of(loaded, "classifier.4.")
    linear = fc7.get_submodule("linear")
    if any(
        name not in given or given[name].shape != value.shape for name, value in linear.state_dict().items()
    ):
        raise RequestError(
            f"{source} has no fc7 of 4096 by 4096 to start from (AlexNet's own file has; backbone.fc7=false goes without)"
        )
    linear.load_state_dict({name: given[name] for name in linear.state_dict()})


def _part_of(loaded: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix`, without it."""
    return {key.removeprefix(prefix): value for key, value in loaded.items() if key.startswith(prefix)}


def _read_tensors(path: str) -> dict[str, Tensor]:
    """Tensors by name of a `.safetensors` file or of one that `torch.save` wrote, read without unpickling code."""
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
        loaded = loaded.get("average") or loaded["network"]  # a checkpoint of a run
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise RequestError(
            f"backbone.weights={path} does not hold a state_dict, which is names and tensors only "
            "(torch.save(model.state_dict(), PATH) writes one)"
        )
    return dict(loaded)


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
        return load_state_dict_from_hf(repository, filename="model.safetensors")
    except Exception as error:  # the hub's client and its transport have errors of their own
        reason = str(error).strip().partition("\n")[0]
        raise RequestError(
            f"backbone.pretrained=true could not fetch timm's weights of {name}: {reason} (offline: fetch "
            f"model.safetensors of {repository} from the Hugging Face hub elsewhere, then "
            "backbone.weights=PATH backbone.pretrained=false)"
        ) from error


def load_weights(
    backbone: nn.Module, loaded: Mapping[str, Tensor], config: BackboneConfig, *, source: str
) -> None:
    """Copy `loaded` (tensors by name) into `backbone`; every tensor must be there and fit, a classifier's are passed over.

    source: what an error calls them. Raises RequestError naming what is missing, unexpected or of a wrong shape.
    """
    own = backbone.state_dict()
    renamed = {_OLD_DENSENET_NAME.sub(r"\1\2.", key): value for key, value in loaded.items()}
    given = {
        key: value for key, value in renamed.items() if key in own or not key.startswith(_CLASSIFIER_PREFIXES)
    }
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
