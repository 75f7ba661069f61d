"""torchvision's and timm's ImageNet networks as backbones: up to the features, state_dict keys unchanged."""

from collections import OrderedDict

from torch import nn

from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.embedding import FullPrecisionLinear, GlobalAverage, MapBackbone
from fsl_dist.models.same_padding import apply_same_padding


def imagenet_backbone(config: BackboneConfig, sample_shape: tuple[int, ...]) -> tuple[nn.Module, int]:
    """Module (float [n, *sample_shape] → [n, feature_dim]) with random weights, and its feature_dim.

    sample_shape: (1 or 3, height, width). Features are the input of the network's own classifier, before its dropout;
    for AlexNet they are fc6, the first of its three linear layers (CHAI's baseline).
    """
    backbone, feature_dim = _build(config, image_size=sample_shape[-1])
    first = next(module for module in backbone.modules() if isinstance(module, nn.Conv2d))
    _sum_channels(first, sample_shape[0])
    return backbone, feature_dim


def _build(config: BackboneConfig, image_size: int) -> tuple[nn.Module, int]:
    from torchvision import models

    match config.name:
        case "alexnet":
            return _with_linear_layers(models.alexnet(), last=1), 4096
        case "vgg19":
            return _with_linear_layers(models.vgg19(), last=3), 4096
        case "mobilenet_v2":
            mobilenet = models.mobilenet_v2()
            if config.padding == "same":
                apply_same_padding(mobilenet.features)
            return _pooled(mobilenet, "features"), 1280
        case "efficientnet_b3":
            return _pooled(models.efficientnet_b3(), "features"), 1536
        case "densenet121":
            densenet = models.densenet121()
            densenet.relu = nn.ReLU(inplace=True)  # a function call in torchvision's forward
            return _pooled(densenet, "features", "relu"), 1024
        case "convnext_base":
            return _convnext(models.convnext_base()), 1024
        case "vit_b_16":
            transformer = models.vit_b_16(image_size=image_size)
            transformer.heads = nn.Identity()
            return transformer, 768
        case "resnet18":
            return _pooled(models.resnet18(), "conv1", "bn1", "relu", "maxpool", *_LAYERS), 512
        case "resnet50":
            return _pooled(models.resnet50(), "conv1", "bn1", "relu", "maxpool", *_LAYERS), 2048
        case "resnet50_v2":
            from timm import create_model

            return _pooled(create_model("resnetv2_50"), "stem", "stages", "norm"), 2048
        case "se_resnet50":
            from timm import create_model

            # Every block is active from the start, as in torchvision's networks.
            se_resnet = create_model("seresnet50", zero_init_last=False)
            return _pooled(se_resnet, "conv1", "bn1", "act1", "maxpool", *_LAYERS), 2048
        case _:
            raise AssertionError(config.name)


_LAYERS = ("layer1", "layer2", "layer3", "layer4")


def _pooled(network: nn.Module, *names: str) -> MapBackbone:
    """The children `names` of `network` in sequence, then the mean over the map."""
    stages = {name: network.get_submodule(name) for name in names}
    return MapBackbone(OrderedDict(**stages, pool=GlobalAverage()))


def _with_linear_layers(network: nn.Module, *, last: int) -> MapBackbone:
    """AlexNet or VGG through layer `last` of `classifier`, a linear one, and its ReLU;
    the last pooling is in `pool`."""
    features, classifier = network.features, network.classifier
    assert isinstance(features, nn.Sequential)
    assert isinstance(classifier, nn.Sequential)
    linear = classifier[last]
    assert isinstance(linear, nn.Linear)
    classifier[last] = full_precision = FullPrecisionLinear(
        linear.in_features, linear.out_features, device="meta"
    )
    full_precision.weight, full_precision.bias = linear.weight, linear.bias
    pool = nn.Sequential(features[-1], network.get_submodule("avgpool"), nn.Flatten())
    stages = {"features": features[:-1], "pool": pool, "classifier": classifier[: last + 2]}
    return MapBackbone(OrderedDict(**stages))


def alexnet_fc7() -> nn.Module:
    """AlexNet's second linear layer with the dropout before and the ReLU after it: float [n, 4096] → [n, 4096]."""
    return nn.Sequential(
        OrderedDict(dropout=nn.Dropout(), linear=FullPrecisionLinear(4096, 4096), relu=nn.ReLU())
    )


def _convnext(network: nn.Module) -> MapBackbone:
    """ConvNeXt's pooled features after the layer norm that its classifier begins with."""
    norm = network.get_submodule("classifier.0")
    assert isinstance(norm, nn.LayerNorm)
    plain = nn.LayerNorm(norm.normalized_shape, eps=norm.eps)  # torchvision's needs a map of one pixel
    backbone = _pooled(network, "features")
    backbone.add_module("classifier", nn.Sequential(plain))
    return backbone


def _sum_channels(first: nn.Conv2d, channels: int) -> None:
    """Convert `first`, a convolution of colour images, to grey images by a sum over its input channels."""
    if channels != first.in_channels:
        first.in_channels = channels
        first.weight = nn.Parameter(first.weight.detach().sum(dim=1, keepdim=True))
