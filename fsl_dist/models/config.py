"""Settings of the network."""

import difflib
from typing import Annotated, Literal

from pydantic import Field

from fsl_dist.errors import ConfigError
from fsl_dist.plugins import find_plugins
from index.base.settings import settings

BACKBONES = (
    "alexnet", "conv4", "convnext_base", "densenet121", "efficientnet_b3", "mlp", "mobilenet_v2", "resnet18", "resnet50",
    "resnet50_v2", "se_resnet50", "vgg19", "vit_b_16",
)  # fmt: skip
"""the architectures that come with the project"""

TIMM = "timm:"
"""prefix of the names of timm's networks"""

TIMM_INPUT = ("mean", "std", "image_size", "resize_size", "resize", "interpolation")
"""the `data.*` settings whose defaults come from a timm network's configuration"""

GROUP = "fsl_dist.backbones"
"""group of the entry points that add architectures"""


@settings("backbone")
class BackboneConfig:
    """Network that embeds a sample."""

    name: str = "resnet50"
    """architecture: alexnet, conv4, convnext_base, densenet121, efficientnet_b3, mlp (takes feature vectors, the
    others images), mobilenet_v2, resnet18, resnet50, resnet50_v2, se_resnet50, vgg19, vit_b_16; or one that another
    distribution adds. A network of timm is `timm:NAME` or `timm:NAME.TAG`. It sets the defaults of `data.mean`,
    `data.std`, `data.image_size`, `data.resize_size`, `data.resize` and `data.interpolation`"""
    weights: str = ""
    """checkpoint to start from, of torch or safetensors and of most tools (docs/how_to/new_backbone.md), or the
    folder of a run, whose best checkpoint's backbone is taken, and its map head where this run has one; head and
    classifier ignored; empty: none"""
    pretrained: bool = False
    """start from ImageNet weights, torchvision's or timm's, or the weights of `timm:NAME.TAG` (downloaded once); not
    with `weights`. Those of `resnet50_v2` expect `data.mean` and `data.std` of 0.5"""
    embedding_dim: Annotated[int, Field(ge=0)] = 0
    """width of a linear head on the features, 0: no head; a ReLU follows it if there is a classifier"""
    map_head: Annotated[int, Field(ge=0)] = 0
    """number of maps of a 3×3 convolution with ReLU on the backbone's feature maps, before any pooling; their means
    are the embedding (CHAI section 2.1: 1024), and the backbone's layers after the maps are removed. 0: none"""
    fc7: bool = False
    """alexnet with a classifier: the second linear layer between the embedding, fc6, and the classifier (CHAI's
    BaselineFT); it starts from the weights that the backbone starts from"""
    padding: Literal["symmetric", "same"] = "symmetric"
    """mobilenet_v2: zeros around a strided convolution's input; `same` for weights that were trained in TensorFlow"""
    width: Annotated[int, Field(ge=1)] = 64
    """conv4: channels of each block"""
    hidden: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (512, 256, 128)
    """mlp: width of each layer; the last one is the embedding, without batch norm and ReLU"""
    lr_factor: Annotated[float, Field(ge=0)] = 1.0
    """learning rate of the backbone as a multiple of `training.lr`; a head or classifier uses `training.lr` itself.
    0: the backbone's parameters do not change (`batch_norm=frozen` keeps its statistics too)"""
    linear_lr_factor: Annotated[float, Field(gt=0)] = 1.0
    """alexnet, vgg19: learning rate of the backbone's linear layers (fc6,
    fc7) as a multiple of that of its convolutions"""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """factor of the learning rate from each layer of the backbone to the layer before it; the last layer has
    `lr_factor` times this factor, heads and classifier the full rate. 1: the same rate for all layers; 0.65 to 0.9
    suit pretrained transformers"""
    freeze: Annotated[int, Field(ge=-1)] = 0
    """number of leading layers of the backbone (the stem, then residual or transformer blocks) whose parameters and
    batch-norm statistics do not change; -1: the whole backbone"""
    lora_rank: Annotated[int, Field(ge=0)] = 0
    """rank of the low-rank updates (LoRA, Hu et al. 2022) of a transformer's attention and MLP layers, which learn in
    place of the backbone's own parameters. 0 = none; 4 to 16 are common. Needs the extra `lora` and a transformer of
    timm"""
    lora_alpha: Annotated[float, Field(ge=0)] = 0.0
    """the updates are scaled by lora_alpha / lora_rank; 0 = 2·lora_rank"""
    batch_norm: Literal["auto", "batch", "frozen", "ghost"] = "auto"
    """statistics used in training; auto: frozen if the backbone starts from weights; otherwise ghost if all workers
    share a batch (every method but pcn and scatter, and global episodes) and with training.chunk_size, otherwise
    batch"""
    batch_norm_group: Annotated[int, Field(ge=2)] = 32
    """ghost: images in a group, at least episode.n_way"""
    batch_norm_momentum: Annotated[float, Field(gt=0, le=1)] = 0.1
    """batch and ghost: weight of a step in the running statistics; 0.01 keeps those of a pretrained network longer"""

    def __post_init__(self) -> None:
        known = (*BACKBONES, *find_plugins(GROUP))
        if self.name not in known and not self.name.startswith(TIMM):
            near = difflib.get_close_matches(self.name, known, n=1)
            raise ConfigError(
                f"backbone.name={self.name} must be one of {', '.join(known)}, or timm:NAME"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        self._check_map_head()
        if self.linear_lr_factor != 1 and (self.name not in ("alexnet", "vgg19") or self.map_head):
            raise ConfigError(
                f"backbone.linear_lr_factor={self.linear_lr_factor:g} is for the linear layers of "
                f"backbone.name=alexnet and vgg19 without a map head; this run has backbone.name={self.name} and "
                f"backbone.map_head={self.map_head}"
            )
        if self.padding == "same" and self.name != "mobilenet_v2":
            raise ConfigError(
                f"backbone.padding=same belongs to backbone.name=mobilenet_v2; this run has backbone.name={self.name}"
            )
        if self.lora_rank and self.freeze:
            raise ConfigError(
                f"backbone.lora_rank={self.lora_rank} and backbone.freeze={self.freeze} both set which parameters "
                "are frozen: leave one out (LoRA freezes all original parameters)"
            )
        if self.lora_alpha and not self.lora_rank:
            raise ConfigError(
                f"backbone.lora_alpha={self.lora_alpha:g} scales the updates of backbone.lora_rank, which is 0 "
                "(backbone.lora_rank=8)"
            )
        if self.pretrained and self.weights:
            raise ConfigError(
                f"backbone.pretrained=true and backbone.weights={self.weights} both set the initial weights: "
                "leave one out"
            )
        if self.pretrained and self.name in ("conv4", "mlp"):
            raise ConfigError(
                f"backbone.pretrained=true: there are no weights for backbone.name={self.name} "
                "(backbone.weights=PATH loads a state_dict)"
            )

    @property
    def starts_from_weights(self) -> bool:
        """Whether the backbone starts from trained weights."""
        return self.pretrained or self.weights != ""

    def _check_map_head(self) -> None:
        """A map head needs maps, and is the embedding's last layer; fc7 belongs to AlexNet and needs fc6 before it."""
        if self.map_head and self.name in ("mlp", "vit_b_16"):
            raise ConfigError(
                f"backbone.map_head={self.map_head} needs feature maps; backbone.name={self.name} has none "
                "(every backbone.name but mlp and vit_b_16 has them)"
            )
        if self.map_head and self.embedding_dim:
            raise ConfigError(
                f"backbone.map_head={self.map_head} and backbone.embedding_dim={self.embedding_dim} both create "
                "the embedding: leave one out"
            )
        if self.fc7 and (self.name != "alexnet" or self.map_head or self.embedding_dim):
            raise ConfigError(
                "backbone.fc7=true follows fc6 of backbone.name=alexnet as the embedding; this run has backbone.name="
                f"{self.name}, backbone.map_head={self.map_head} and backbone.embedding_dim={self.embedding_dim}"
            )
