"""A custom backbone: a small vision transformer of timm."""

import timm
from torch import nn

from fsl_dist.models.config import BackboneConfig


def build(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Module (float [n, *sample_shape] → [n, feature_dim]) with random weights, and its feature_dim."""
    channels, height, width = sample_shape
    network = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=(height, width),
        patch_size=4,
        in_chans=channels,
        num_classes=0,
        depth=2,
    )
    return network, network.num_features
