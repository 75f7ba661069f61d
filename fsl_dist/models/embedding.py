"""A network: backbone, optional embedding head, optional classifier; the last layer always runs in full precision."""

from abc import ABC, abstractmethod
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from fsl_dist.errors import ConfigError


class FullPrecisionLinear(nn.Linear):
    """A linear layer that runs outside autocast, in its weights' dtype.

    bfloat16 has 8 bits, a relative error of 0.4 %: more than the differences between near neighbours.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` (float [n, in], any precision) → the weights' dtype [n, out]."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


class GlobalAverage(nn.Module):
    """Mean of a feature map over its pixels, in at least float32: float [n, C, h, w] → [n, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return _at_least_float32(maps).mean(dim=(2, 3))


class MapModule(nn.Module, ABC):
    """A backbone that computes feature maps before its features."""

    @abstractmethod
    def feature_maps(self, samples: Tensor) -> Tensor:
        """The last maps before pooling: float [n, channels, height, width] → [n, C, h, w]."""

    @abstractmethod
    def pooled(self) -> "MapModule":
        """The same network up to the maps, then the maps' means: float [n, channels, height, width] → [n, C]."""


class MapBackbone(nn.Sequential, MapModule):
    """Stages of an image network in order; the one named `pool` turns feature maps into features."""

    def feature_maps(self, samples: Tensor) -> Tensor:
        """The input of `pool`: float [n, channels, height, width] → float [n, C, h, w]."""
        for name, stage in self.named_children():
            if name == "pool":
                break
            samples = stage(samples)
        return samples

    def pooled(self) -> "MapBackbone":
        """The same stages up to the maps, then the maps' means: float [n, channels, height, width] → [n, C]."""
        stages = OrderedDict(self.named_children())
        for name in list(stages)[list(stages).index("pool") :]:
            del stages[name]
        return MapBackbone(OrderedDict(**stages, pool=GlobalAverage()))


class MapHead(nn.Module):
    """A 3×3 convolution and a ReLU on feature maps, outside autocast (CHAI section 2.1):
    [n, C, h, w] → [n, maps, h, w]."""

    def __init__(self, channels: int, num_maps: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, num_maps, kernel_size=3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """`maps` (float, any precision) → the weights' dtype, 0 or more."""
        with torch.autocast(maps.device.type, enabled=False):
            return functional.relu(self.conv(maps.to(self.conv.weight.dtype)))


class Network(nn.Module):
    """Embeds images or vectors; with `num_classes` > 0 its forward also classifies them.

    Parameters have the prefixes `backbone.`, `map_head.`, `head.`, `fc7.` and `classifier.`; all but the first are
    optional. A ReLU between a head and a classifier makes them a hidden layer and an output layer; the embedding is
    the input of the ReLU. With `map_dim` the embedding is the mean of each of the map head's maps; the backbone must
    then be a MapModule that ends in a GlobalAverage (`MapModule.pooled`) of `feature_dim` maps.
    """

    weights_note: str = ""
    """how the tensors of `backbone.weights` were found in their file, for the log; may be empty"""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        head_dim: int = 0,
        map_dim: int = 0,
        num_classes: int = 0,
        normalise: bool = False,
        fc7: nn.Module | None = None,
        outputs_embeddings: bool = False,
    ) -> None:
        """`outputs_embeddings`: `forward` returns both embeddings and logits."""
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.embedding_dim = map_dim or head_dim or feature_dim
        self.num_classes = num_classes
        self.normalise = normalise
        self.outputs_embeddings = outputs_embeddings
        self.map_head = MapHead(feature_dim, map_dim) if map_dim else None
        self.head = FullPrecisionLinear(feature_dim, head_dim) if head_dim else None
        self.fc7 = fc7
        self.classifier = FullPrecisionLinear(self.embedding_dim, num_classes) if num_classes else None

    def embed(self, samples: Tensor) -> Tensor:
        """Embed `samples` (float [n, *sample_shape]): float32 [n, embedding_dim], also under autocast.

        A float64 network returns float64. With `normalise` each row has length 1; a row of zeros is not changed.
        """
        if self.map_head is None:
            embeddings = _at_least_float32(self.backbone(samples))
        else:
            embeddings = self.feature_maps(samples).mean(dim=(2, 3))
        if self.head is not None:
            embeddings = self.head(embeddings)
        return _to_unit_length(embeddings) if self.normalise else embeddings

    def feature_maps(self, samples: Tensor) -> Tensor:
        """Return the map head's maps, or the backbone's last maps before pooling (AlexNet, VGG: before their last
        pooling layer).

        samples: float [n, channels, height, width] → [n, C, h, w], in the precision of the forward pass. Their means
        are the embedding with a map head (unless `normalise`), and if the backbone ends in their mean.
        Raises ConfigError for a backbone without maps.
        """
        if not isinstance(self.backbone, MapModule):
            raise ConfigError(
                "this backbone has no feature maps, like mlp, vit_b_16 and timm's vision transformers "
                "(convolutional networks have them)"
            )
        maps = self.backbone.feature_maps(samples)
        return maps if self.map_head is None else self.map_head(maps)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class logits float32 [n, num_classes] of what `embed` gave, for a network with a classifier.

        Embeddings of length 1 are scaled to that of as many numbers of variance 1: a linear layer learns as fast on
        them.
        """
        assert self.classifier is not None
        if self.normalise:
            embeddings = embeddings * self.embedding_dim**0.5
        if self.fc7 is not None:
            embeddings = self.fc7(embeddings)
        return self.classifier(embeddings if self.head is None else functional.relu(embeddings))

    def forward(self, samples: Tensor) -> Tensor:
        """Return class logits float32 [n, num_classes], or the embeddings of `embed` if there is no classifier.

        With `outputs_embeddings` both, embeddings first: float32 [n, embedding_dim + num_classes].
        """
        embeddings = self.embed(samples)
        if self.classifier is None:
            return embeddings
        logits = self.classify(embeddings)
        return torch.cat([embeddings, logits], dim=1) if self.outputs_embeddings else logits


def without_heads(network: Network) -> Network:
    """The same backbone, with shared parameters, whose features are the embedding: the input of a map head or head."""
    return Network(network.backbone, network.feature_dim).train(network.training)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _to_unit_length(rows: Tensor) -> Tensor:
    """Rows of `rows` (float [n, d]) scaled to length 1; rows shorter than 1e-12 pass through with their gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 1e-12, norms, 1.0)
