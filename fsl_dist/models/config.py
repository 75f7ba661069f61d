"""What can be set on the network."""

from dataclasses import dataclass
from typing import Literal

from fsl_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneConfig:
    """Network that embeds a sample."""

    name: Literal["conv4", "mobilenet_v2", "resnet18", "resnet50", "mlp"] = "resnet50"
    """architecture; `mlp` takes feature vectors, the others images"""
    weights: str = ""
    """file of a state_dict to start from (.pth or .safetensors), its classifier ignored; empty: none"""
    pretrained: bool = False
    """start from torchvision's ImageNet weights (downloaded once); not with `weights`"""
    embedding_dim: int = 0
    """width of a linear head on the features, 0 (no head) or more; a ReLU stands between it and a classifier"""
    padding: Literal["symmetric", "same"] = "symmetric"
    """mobilenet_v2: zeros around a strided convolution's input; `same` for weights that were trained in TensorFlow"""
    width: int = 64
    """conv4: channels of each block, at least 1"""
    hidden: tuple[int, ...] = (512, 256, 128)
    """mlp: width of each layer, the last of which is the embedding, without batch norm and ReLU"""
    batch_norm: Literal["auto", "batch", "frozen", "ghost"] = "auto"
    """statistics used in training; auto: ghost where all workers share a batch (deep kNN, cross
    entropy, global episodes), else batch"""
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
                f"backbone.pretrained=true: torchvision has no weights for backbone.name={self.name} "
                "(backbone.weights=PATH loads a state_dict)"
            )
