"""Networks of timm by name: built for the images of a run, with the input of their pretrained configuration."""

import difflib
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn

from fsl_dist.errors import ConfigError, RequestError
from fsl_dist.models.config import TIMM, BackboneConfig
from fsl_dist.models.downloads import hub_in_reach
from fsl_dist.models.embedding import GlobalAverage, MapModule

_NUM_NEAREST = 3


class TimmBackbone(nn.Module):
    """A network of timm up to the features that its classifier reads; its parameters are under `model.`."""

    passed_over: tuple[str, ...] = ()
    """prefixes of tensors in files of the whole network that this one does not have"""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model  # timm's interface: forward_features, forward_head

    def forward(self, samples: Tensor) -> Tensor:
        """Features float [n, feature_dim] of `samples` (float [n, channels, height, width]);
        pooled in at least float32."""
        encoded = self.model.forward_features(samples)
        with torch.autocast(samples.device.type, enabled=False):
            return self.model.forward_head(encoded.to(torch.promote_types(encoded.dtype, torch.float32)))


class TimmMapBackbone(TimmBackbone, MapModule):
    """A timm network whose last stage is a feature map:
    convolutional networks, and transformers with stages such as Swin."""

    def __init__(self, model: nn.Module, num_maps: int, after_maps: list[str]) -> None:
        """`after_maps`: the children of `model` that its maps do not need."""
        super().__init__(model)
        self.num_maps = num_maps
        self.after_maps = after_maps
        self.pool: GlobalAverage | None = None

    def forward(self, samples: Tensor) -> Tensor:
        """Features float [n, feature_dim], or the means of the maps after `pooled`."""
        return super().forward(samples) if self.pool is None else self.pool(self.feature_maps(samples))

    def feature_maps(self, samples: Tensor) -> Tensor:
        """The last stage's maps: float [n, channels, height, width] → [n, num_maps, h, w]."""
        maps = self.model.forward_features(samples)
        return maps.permute(0, 3, 1, 2) if _has_channels_last(self.model) else maps

    def pooled(self) -> "TimmMapBackbone":
        """This network, changed to end in the means of its maps; later layers are removed."""
        for name in self.after_maps:
            setattr(self.model, name, nn.Identity())
        self.passed_over += tuple(f"{name}." for name in self.after_maps)
        self.pool = GlobalAverage()
        return self


def input_settings(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `data.*` settings that timm's network expects, except for those in `given`.

    Args:
        name: `backbone.name`, for example `timm:vit_small_patch14_dinov2.lvd142m`.
        given: the explicitly set `data.*` settings.

    Returns:
        mean, std and interpolation of the pretrained configuration, its crop, and its sizes in pixels. If only one of
        image_size and resize_size is given, the other follows from the configuration's crop share.

    Raises:
        ConfigError: there is no such network.
    """
    found = find_pretrained_cfg(name)
    side = max(found.input_size[1:])
    image_size, resize_size = given.get("image_size"), given.get("resize_size")
    if isinstance(resize_size, int) and resize_size and not isinstance(image_size, int):
        image_size = round(resize_size * found.crop_pct)
    elif not isinstance(image_size, int):
        image_size = side
    if not isinstance(resize_size, int):
        resize_size = max(image_size, int(image_size / found.crop_pct))
    own: dict[str, Any] = {
        "mean": list(found.mean),
        "std": list(found.std),
        "image_size": image_size,
        "resize_size": resize_size,
        "interpolation": "bilinear" if found.interpolation == "bilinear" else "bicubic",
        "resize": "exact" if found.crop_mode == "squash" else "shorter",
    }
    return {key: value for key, value in own.items() if key not in given}


def find_pretrained_cfg(name: str) -> PretrainedCfg:
    """Return timm's configuration of the network `name` (`timm:NAME` or `timm:NAME.TAG`);
    ConfigError if there is none."""
    model_name = name.removeprefix(TIMM)
    architecture, _, tag = model_name.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), n=_NUM_NEAREST, cutoff=0.5)
        raise ConfigError(
            f"backbone.name={name}: timm {timm.__version__} has no network {architecture!r}"
            + (f"; the nearest are {', '.join(TIMM + other for other in near)}" if near else "")
        )
    if tag and not timm.is_model_pretrained(model_name):
        tags = timm.list_pretrained(f"{architecture}.*")
        near = difflib.get_close_matches(model_name, tags, n=_NUM_NEAREST, cutoff=0.0)
        raise ConfigError(
            f"backbone.name={name}: timm {timm.__version__} has no weights {tag!r} of {architecture}"
            + (f"; the nearest are {', '.join(TIMM + other for other in near)}" if near else "")
        )
    return timm.get_pretrained_cfg(model_name) or PretrainedCfg()


def timm_backbone(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[TimmBackbone, int]:
    """Create (network that maps float [n, *sample_shape] to float [n, feature_dim], feature_dim).

    The weights are random, or with `backbone.pretrained` those of the Hugging Face hub or its cache; timm sums the
    first convolution over its input channels for grey images, and resamples position embeddings. One image is
    forwarded, to find the shapes of the outputs.

    Args:
        config: the `backbone.*` settings, with a name that starts with `timm:`.
        sample_shape: (channels, height, width).

    Raises:
        ConfigError: there is no such network, or it does not support such images.
        RequestError: its weights are not available.
    """
    found = find_pretrained_cfg(config.name)
    model = _create(config, found, sample_shape)
    called: list[str] = []
    hooks = [
        child.register_forward_hook(lambda *_, name=name: called.append(name))
        for name, child in model.named_children()
    ]
    model.eval()
    try:
        with torch.no_grad():
            maps = model.forward_features(torch.zeros(1, *sample_shape))
            of_maps = set(called)
            feature_dim = model.forward_head(maps).shape[-1]
    except (AssertionError, RuntimeError, ValueError) as error:
        raise _refuse_images(config.name, found, sample_shape, error) from error
    finally:
        for hook in hooks:
            hook.remove()
    model.train()
    if maps.ndim == 4:
        after_maps = [name for name, _ in model.named_children() if name not in of_maps]
        num_maps = maps.shape[3 if _has_channels_last(model) else 1]
        backbone: TimmBackbone = TimmMapBackbone(model, num_maps, after_maps)
    else:
        backbone = TimmBackbone(model)
    classifiers = (found.classifier,) if isinstance(found.classifier, str) else found.classifier or ()
    backbone.passed_over = tuple(f"{name.partition('.')[0]}." for name in classifiers)
    return backbone, feature_dim


def timm_names(model: nn.Module, loaded: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Rename and resize `loaded` (tensors by name) for the network `model`, as timm does with its own files.

    Position embeddings are resampled to the size of the network's images, and names of the original releases are
    replaced.
    """
    change = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return loaded if change is None else change(dict(loaded), model)


def _create(config: BackboneConfig, found: PretrainedCfg, sample_shape: tuple[int, ...]) -> Any:
    name = config.name.removeprefix(TIMM)
    sizes = {"img_size": sample_shape[1:]} if found.fixed_input_size else {}
    if config.pretrained and not found.has_weights:
        raise ConfigError(
            f"backbone.pretrained=true: timm {timm.__version__} has no weights of {name} "
            "(backbone.weights=PATH loads a state_dict)"
        )
    try:
        with hub_in_reach() if config.pretrained else nullcontext():
            return timm.create_model(
                name, pretrained=config.pretrained, num_classes=0, in_chans=sample_shape[0], **sizes
            )
    except Exception as error:  # the hub's client and its transport raise their own errors
        if not config.pretrained:
            raise _refuse_images(config.name, found, sample_shape, error) from error
        file = (
            f"{found.hf_hub_filename or 'model.safetensors'} of {found.hf_hub_id} from the Hugging Face hub"
        )
        raise RequestError(
            f"backbone.pretrained=true could not load timm's weights of {name}: {_first_line(error)} (offline: fetch "
            f"{file if found.hf_hub_id else found.url} elsewhere, then backbone.weights=PATH backbone.pretrained=false)"
        ) from error


def _refuse_images(
    name: str, found: PretrainedCfg, sample_shape: tuple[int, ...], error: Exception
) -> ConfigError:
    channels, height, width = sample_shape
    return ConfigError(
        f"backbone.name={name} does not support images of {height}×{width} px and {channels} channels: "
        f"{_first_line(error)} (data.image_size={max(found.input_size[1:])} is the network's own)"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__


def _has_channels_last(model: nn.Module) -> bool:
    """Whether the maps of `model` are float [n, h, w, C]."""
    return getattr(model, "output_fmt", "NCHW") == "NHWC"
