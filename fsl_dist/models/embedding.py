"""A network: backbone, optional embedding head, optional classifier; the last layer always in full precision."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fsl_dist.errors import ConfigError


class FullPrecisionLinear(nn.Linear):
    """A linear layer that runs outside autocast, in its weights' dtype.

    bfloat16 keeps 8 bits, a relative error of 0.4 %: more than what separates near neighbours.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`input` (float [n, in], any precision) → the weights' dtype [n, out]."""
        with torch.autocast(input.device.type, enabled=False):
            return functional.linear(input.to(self.weight.dtype), self.weight, self.bias)


class GlobalAverage(nn.Module):
    """Mean of a feature map over its pixels, in at least float32: float [n, C, h, w] → [n, C]."""

    def forward(self, maps: Tensor) -> Tensor:
        return _at_least_float32(maps).mean(dim=(2, 3))


class MapBackbone(nn.Sequential):
    """Stages of an image network in order; the one named `pool` turns feature maps into features."""

    def feature_maps(self, samples: Tensor) -> Tensor:
        """What goes into `pool`: float [n, channels, height, width] → float [n, C, h, w]."""
        for name, stage in self.named_children():
            if name == "pool":
                break
            samples = stage(samples)
        return samples


class Network(nn.Module):
    """Embeds images or vectors; with `num_classes` > 0 its forward also classifies them.

    Parameters live under `backbone.`, `head.` and `classifier.`; the latter two only where asked for. Between a head and a
    classifier stands a ReLU, so that the two are a hidden layer and an output layer; the embedding is what enters it.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        *,
        head_dim: int = 0,
        num_classes: int = 0,
        normalise: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.feature_dim = feature_dim
        self.embedding_dim = head_dim or feature_dim
        self.num_classes = num_classes
        self.normalise = normalise
        self.head = FullPrecisionLinear(feature_dim, head_dim) if head_dim else None
        self.classifier = FullPrecisionLinear(self.embedding_dim, num_classes) if num_classes else None

    def embed(self, samples: Tensor) -> Tensor:
        """Embeddings of `samples` (float [n, *sample_shape]): float32 [n, embedding_dim], also under autocast.

        A float64 network gives float64. With `normalise` each row has length 1; a row of zeros stays as it is.
        """
        embeddings = _at_least_float32(self.backbone(samples))
        if self.head is not None:
            embeddings = self.head(embeddings)
        return _to_unit_length(embeddings) if self.normalise else embeddings

    def feature_maps(self, samples: Tensor) -> Tensor:
        """The backbone's last maps before any pooling to one vector (AlexNet, VGG: before their last pooling layer).

        samples: float [n, channels, height, width] → [n, C, h, w], in the precision of the forward pass.
        Raises ConfigError for a backbone without maps.
        """
        if not isinstance(self.backbone, MapBackbone):
            raise ConfigError(
                "backbone.name is mlp or vit_b_16, which make no feature maps (every other backbone.name does)"
            )
        return self.backbone.feature_maps(samples)

    def classify(self, embeddings: Tensor) -> Tensor:
        """Class logits float32 [n, num_classes] of what `embed` gave, for a network with a classifier."""
        assert self.classifier is not None
        return self.classifier(embeddings if self.head is None else functional.relu(embeddings))

    def forward(self, samples: Tensor) -> Tensor:
        """Class logits float32 [n, num_classes], or the embeddings of `embed` where there is no classifier."""
        embeddings = self.embed(samples)
        return embeddings if self.classifier is None else self.classify(embeddings)


def _at_least_float32(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _to_unit_length(rows: Tensor) -> Tensor:
    """Rows of `rows` (float [n, d]) scaled to length 1; rows shorter than 1e-12 pass through with their gradient."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norms > 1e-12, norms, 1.0)
