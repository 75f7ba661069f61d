"""What speaks for an answer: an image's nearest training images, their vote, and where each distance comes from (CHAI)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.config import RunConfig
from fsl_dist.data.config import DataConfig
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.activation_maps import activation_maps
from fsl_dist.evaluation.mapped_images import MappedImages, map_images
from fsl_dist.evaluation.retrieval import NO_GROUP
from fsl_dist.training.trained import TrainedRun
from index import LocalIndex


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One of the nearest training images."""

    id: int
    key: str
    label: str
    """name of its class"""
    group: str
    """name of its group, empty where it has none"""
    distance: float
    """Euclidean; of index.metric=inner_product the negated product"""
    pixels: NDArray[np.uint8]
    """uint8 [S, S, 3]: what the network sees of it"""
    query_map: NDArray[np.float64] | None
    """float64 [h, w]: activation map of the query against this result (QAM); None where maps were not asked for"""
    result_map: NDArray[np.float64] | None
    """float64 [h, w]: of this result against the query (RAM)"""


@dataclass(frozen=True, slots=True)
class Vote:
    """What the results say for one class."""

    name: str
    count: int
    share: float
    """of all results, 0 … 1"""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """An image and the training images nearest to it."""

    pixels: NDArray[np.uint8]
    """uint8 [S, S, 3]: what the network sees of the image"""
    results: list[Result]
    """nearest first"""

    @property
    def votes(self) -> list[Vote]:
        """Classes with a vote, the answer first: equal votes by the nearest member, as `evaluate` decides."""
        labels = [result.label for result in self.results]
        # The results are in the order of distance, so a class's first place is its nearest member's.
        order = sorted(dict.fromkeys(labels), key=lambda name: (-labels.count(name), labels.index(name)))
        return [Vote(name, labels.count(name), labels.count(name) / len(labels)) for name in order]


def pixels_of(images: torch.Tensor, config: DataConfig) -> NDArray[np.uint8]:
    """uint8 [n, S, S, 3] of normalised images (float32 [n, C, S, S]): the pixels that the decoder had, to half a level."""
    mean, std = (
        torch.tensor(values[: config.channels]).view(-1, 1, 1) for values in (config.mean, config.std)
    )
    levels = ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()


def gather_evidence(
    trained: TrainedRun,
    config: RunConfig,
    gallery: LocalIndex,
    images: torch.Tensor,
    k: int,
    *,
    has_maps: bool = True,
    query_ids: Sequence[int] | None = None,
) -> list[Evidence]:
    """The `k` nearest training images of each of a batch of images (float32 [n, *sample_shape]), with activation maps.

    query_ids: sample ids of the images, where they are the data set's own: a training image is not its own neighbour.

    Raises RequestError for a `k` above the number of training images, and where maps are asked of a network without.
    """
    left = gallery.num_vectors - (query_ids is not None)
    if k > left:
        raise RequestError(f"--k {k} asks for more neighbours than there are training images: {left}")
    embedder = trained.embedder
    if has_maps:
        queries = map_images(embedder, images, config)
        vectors = queries.vectors
    else:
        vectors = embedder.embed_images(images)
    own = None if query_ids is None else np.array(query_ids, dtype=np.int64)
    answer = gallery.search(vectors, k, query_ids=own)
    costs = (
        np.sqrt(np.maximum(answer.distances, 0.0)) if gallery.metric == "l2" else -answer.distances
    ).tolist()
    found = []
    for row, pixels in enumerate(pixels_of(images, config.data)):
        shown = [_fetch(trained, config, ids, has_maps) for ids in _batches(answer.ids[row], config)]
        result_pixels = np.concatenate([part for part, _ in shown])
        maps: list[tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]] = [(None, None)] * k
        if has_maps:
            of_results = [mapped for _, mapped in shown if mapped is not None]
            results = MappedImages(
                np.concatenate([part.vectors for part in of_results]),
                np.concatenate([part.maps for part in of_results]),
            )
            query_maps = np.broadcast_to(queries.maps[row], results.maps.shape)
            query = np.broadcast_to(vectors[row], results.vectors.shape)
            qams = activation_maps(query_maps, query, results.vectors)
            maps = list(zip(qams, activation_maps(results.maps, results.vectors, query), strict=True))
        found.append(Evidence(pixels, _describe(trained, answer.ids[row], costs[row], result_pixels, maps)))
    return found


def _batches(ids: NDArray[np.int64], config: RunConfig) -> list[NDArray[np.int64]]:
    size = config.evaluation.batch_size
    return [ids[start : start + size] for start in range(0, len(ids), size)]


def _fetch(
    trained: TrainedRun, config: RunConfig, ids: NDArray[np.int64], has_maps: bool
) -> tuple[NDArray[np.uint8], MappedImages | None]:
    images = trained.embedder.source.fetch(ids, None)
    mapped = map_images(trained.embedder, images, config) if has_maps else None
    return pixels_of(images, config.data), mapped


def _describe(
    trained: TrainedRun,
    ids: NDArray[np.int64],
    costs: list[float],
    pixels: NDArray[np.uint8],
    maps: Sequence[tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]],
) -> list[Result]:
    catalogue = trained.catalogue
    groups = [int(group) for group in catalogue.groups[ids]]
    return [
        Result(
            id=sample,
            key=key,
            label=catalogue.label_name(int(catalogue.labels[sample])),
            group="" if group == NO_GROUP else catalogue.group_names[group],
            distance=cost,
            pixels=image,
            query_map=qam,
            result_map=ram,
        )
        for sample, key, group, cost, image, (qam, ram) in zip(
            ids.tolist(), catalogue.keys(ids), groups, costs, pixels, maps, strict=True
        )
    ]
