"""What speaks for an answer: an image's nearest training images, their vote,
and where each distance comes from (CHAI)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.config import DataConfig
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.mapped_images import MappedImages, map_images
from fsl_dist.evaluation.pair_maps import Layer, is_same, pair_mapped
from fsl_dist.metrics.retrieval import NO_GROUP
from fsl_dist.training.trained import TrainedRun
from index import ShardedIndex

Pair = tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]
"""float64 [h, w] twice: QAM and RAM; None if maps were not requested"""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One of the nearest training images."""

    id: int
    key: str
    label: str
    """name of its class"""
    group: str
    """name of its group, empty if it has none"""
    distance: float
    """Euclidean for index.metric=l2; otherwise the cosine or the product, which is largest for the nearest image"""
    measure: str
    """what `distance` is: distance, cosine or product"""
    is_same: bool
    """the network sees no difference: the embeddings differ by rounding alone, and the maps are zero"""
    pixels: NDArray[np.uint8]
    """uint8 [S, S, 3]: the part of the image that the network sees"""
    query_map: NDArray[np.float64] | None
    """float64 [h, w]: activation map of the query against this result (QAM); None if maps were not requested"""
    result_map: NDArray[np.float64] | None
    """float64 [h, w]: of this result against the query (RAM)"""

    @property
    def distance_text(self) -> str:
        """The kind of distance and its value with four digits: `distance 3.142`, `cosine 0.9871`."""
        is_zero = self.is_same and self.measure == "distance"
        return f"{self.measure} {'0' if is_zero else f'{self.distance:#.4g}'}"


@dataclass(frozen=True, slots=True)
class Vote:
    """The vote of the results for one class."""

    name: str
    count: int
    share: float
    """of all results, 0 … 1"""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """An image and the training images nearest to it."""

    pixels: NDArray[np.uint8]
    """uint8 [S, S, 3]: the part of the image that the network sees"""
    results: list[Result]
    """nearest first"""
    layer: Layer | None = None
    """the layer that the activation maps are from; None if maps were not requested"""

    @property
    def votes(self) -> list[Vote]:
        """Classes with a vote, the answer first: equal votes by the nearest member, as `evaluate` decides."""
        labels = [result.label for result in self.results]
        # The results are in the order of distance, so a class's first place is its nearest member's.
        order = sorted(dict.fromkeys(labels), key=lambda name: (-labels.count(name), labels.index(name)))
        return [Vote(name, labels.count(name), labels.count(name) / len(labels)) for name in order]


def pixels_of(images: torch.Tensor, config: DataConfig) -> NDArray[np.uint8]:
    """uint8 [n, S, S, 3] of normalised images (float32 [n, C, S, S]):
    the pixels that the decoder had, to half a level."""
    mean, std = (
        torch.tensor(values[: config.channels]).view(-1, 1, 1) for values in (config.mean, config.std)
    )
    levels = ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()


def gather_evidence(
    trained: TrainedRun,
    config: RunConfig,
    gallery: ShardedIndex,
    images: torch.Tensor,
    k: int,
    *,
    has_maps: bool = True,
    query_ids: Sequence[int] | None = None,
) -> list[Evidence]:
    """Find the `k` nearest training images of each image in a batch (float32 [n, *sample_shape]), with activation maps.

    query_ids: sample ids of the images, if they belong to the data set: a training image is excluded from its own
    neighbours.

    Raises RequestError if `k` exceeds the number of training images, or if maps are requested of a network without
    them.
    """
    left = gallery.num_vectors - (query_ids is not None)
    if k > left:
        raise RequestError(f"k={k} is more than the number of training images: {left}")
    embedder = trained.embedder
    if has_maps:
        queries = map_images(embedder, images, config)
        vectors = queries.vectors
    else:
        vectors = embedder.embed_images(images)
    own = None if query_ids is None else np.array(query_ids, dtype=np.int64)
    answer = gallery.search(vectors, k, query_ids=own)
    distances = answer.exact_distances
    distances = (np.sqrt(distances) if gallery.metric == "l2" else distances).tolist()
    measure = {"l2": "distance", "cosine": "cosine", "inner_product": "product"}[gallery.metric]
    found = []
    for row, pixels in enumerate(pixels_of(images, config.data)):
        ids, query = answer.ids[row], vectors[row]
        shown = embedder.source.fetch(ids, None)
        maps: list[Pair] = [(None, None)] * k
        layer = None
        if has_maps:
            mapped = MappedImages(vectors[row : row + 1], queries.maps[row : row + 1])
            pairs = pair_mapped(embedder, images[row : row + 1], mapped, shown, config)
            same = np.array([pair.is_same for pair in pairs])
            maps, layer = [(pair.query, pair.result) for pair in pairs], pairs[0].layer
        else:
            same = is_same(query, embedder.embed_images(shown))
        described = _describe(
            trained, ids, distances[row], measure, same, pixels_of(shown, config.data), maps
        )
        found.append(Evidence(pixels, described, layer))
    return found


def _describe(
    trained: TrainedRun,
    ids: NDArray[np.int64],
    distances: list[float],
    measure: str,
    same: NDArray[np.bool_],
    pixels: NDArray[np.uint8],
    maps: Sequence[Pair],
) -> list[Result]:
    catalogue = trained.catalogue
    groups = [int(group) for group in catalogue.groups[ids]]
    return [
        Result(
            id=sample,
            key=key,
            label=catalogue.label_name(int(catalogue.labels[sample])),
            group="" if group == NO_GROUP else catalogue.group_names[group],
            distance=distance,
            measure=measure,
            is_same=no_difference,
            pixels=image,
            query_map=qam,
            result_map=ram,
        )
        for sample, key, group, distance, no_difference, image, (qam, ram) in zip(
            ids.tolist(), catalogue.keys(ids), groups, distances, same.tolist(), pixels, maps, strict=True
        )
    ]
