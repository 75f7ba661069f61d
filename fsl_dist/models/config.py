"""What can be set on the network."""

from dataclasses import dataclass
from typing import Literal

from fsl_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Network that embeds a sample."""

    name: Literal[
        "alexnet",
        "conv4",
        "convnext_base",
        "densenet121",
        "efficientnet_b3",
        "mlp",
        "mobilenet_v2",
        "resnet18",
        "resnet50",
        "resnet50_v2",
        "se_resnet50",
        "vgg19",
        "vit_b_16",
    ] = "resnet50"
    """architecture; `mlp` takes feature vectors, the others images"""
    weights: str = ""
    """file of a state_dict to start from (.pth or .safetensors), or the folder of a run, whose best checkpoint's backbone
    is taken; head and classifier ignored; empty: none"""
    pretrained: bool = False
    """start from ImageNet weights, torchvision's or timm's (downloaded once); not with `weights`. Those of `resnet50_v2`
    expect `data.mean` and `data.std` of 0.5"""
    embedding_dim: int = 0
    """width of a linear head on the features, 0 (no head) or more; a ReLU stands between it and a classifier"""
    padding: Literal["symmetric", "same"] = "symmetric"
    """mobilenet_v2: zeros around a strided convolution's input; `same` for weights that were trained in TensorFlow"""
    width: int = 64
    """conv4: channels of each block, at least 1"""
    hidden: tuple[int, ...] = (512, 256, 128)
    """mlp: width of each layer, the last of which is the embedding, without batch norm and ReLU"""
    lr_factor: float = 1.0
    """learning rate of the backbone as a multiple of `training.lr`, 0 or more; a head or classifier takes `training.lr`
    itself. 0 = the backbone's parameters stay (`batch_norm=frozen` keeps its statistics too)"""
    batch_norm: Literal["auto", "batch", "frozen", "ghost"] = "auto"
    """statistics used in training; auto: ghost where all workers share a batch (every method but pcn and scatter,
    and global episodes) and with training.chunk_size, else batch"""
    batch_norm_group: int = 32
    """ghost: images a group, at least 2, and at least episode.n_way"""

    def __post_init__(self) -> None:
        if self.embedding_dim < 0:
            raise ConfigError(f"backbone.embedding_dim={self.embedding_dim} must be 0 (no head) or more")
        if self.width < 1:
            raise ConfigError(f"backbone.width={self.width} must be at least 1")
        if not self.hidden or min(self.hidden) < 1:
            raise ConfigError(
                f"backbone.hidden={list(self.hidden)} must name at least one layer, each 1 wide or more"
            )
        if self.lr_factor < 0:
            raise ConfigError(f"backbone.lr_factor={self.lr_factor:g} must be 0 (no training) or more")
        if self.batch_norm_group < 2:
            raise ConfigError(f"backbone.batch_norm_group={self.batch_norm_group} must be at least 2")
        if self.padding == "same" and self.name != "mobilenet_v2":
            raise ConfigError(
                f"backbone.padding=same belongs to backbone.name=mobilenet_v2; this run has backbone.name={self.name}"
            )
        if self.pretrained and self.weights:
            raise ConfigError(
                f"backbone.pretrained=true and backbone.weights={self.weights} both say where to start: leave one out"
            )
        if self.pretrained and self.name in ("conv4", "mlp"):
            raise ConfigError(
                f"backbone.pretrained=true: there are no weights for backbone.name={self.name} "
                "(backbone.weights=PATH loads a state_dict)"
            )
