"""Embeddings with the feature maps they are the mean of: what activation maps are made from."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.embedder import Embedder
from fsl_dist.errors import ConfigError, RequestError

# Of the mean's largest value; bfloat16 maps on a GPU are averaged in float32, so both paths see the same maps.
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class MappedImages:
    """Some images, embedded."""

    vectors: NDArray[np.float32]
    """float32 [n, D]: f, as the neighbours are searched by"""
    maps: NDArray[np.float32]
    """float32 [n, D, h, w]: g; f is its mean over the map, up to the length of f where `method.normalise` is set"""


def map_images(embedder: Embedder, images: torch.Tensor, config: RunConfig) -> MappedImages:
    """Compute embeddings and feature maps of a batch (float32 [n, *sample_shape]); two forward passes.

    Raises RequestError if the run's embedding is not a mean of feature maps: CHAI Eq. 2 attributes a distance to
    image regions by that mean, and is not defined otherwise.
    """
    vectors = embedder.embed_images(images)
    try:
        maps = embedder.map_images(images)
    except ConfigError as error:
        raise _refuse(config, "has no feature maps") from error
    if not _is_mean_of(vectors, maps, getattr(config.method, "normalise", False)):
        raise _refuse(config, f"embeds by layers after its {maps.shape[1]} feature maps, not by their mean")
    return MappedImages(vectors, maps)


def _is_mean_of(vectors: NDArray[np.float32], maps: NDArray[np.float32], normalise: bool) -> bool:
    if vectors.shape[1] != maps.shape[1]:
        return False
    means = maps.mean(axis=(2, 3), dtype=np.float64)
    if normalise:
        lengths = np.linalg.norm(means, axis=1, keepdims=True)
        means /= np.where(lengths > 0, lengths, 1.0)
    return bool(np.abs(vectors - means).max() <= _TOLERANCE * np.abs(means).max())


def _refuse(config: RunConfig, reason: str) -> RequestError:
    head = (
        f" and backbone.embedding_dim={config.backbone.embedding_dim}"
        if config.backbone.embedding_dim
        else ""
    )
    return RequestError(
        f"activation maps need an embedding that is the mean of feature maps; {config.run.dir} has method.kind="
        f"{config.method.kind} with backbone.name={config.backbone.name}{head}, which {reason} (a run of another "
        "network; explain(maps=False) and evaluate(protocol=retrieval) need no maps)"
    )
