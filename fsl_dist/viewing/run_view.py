"""A run as the browser application asks it: images in, answers with evidence out.

Nothing here knows of HTTP. All methods must be called from one thread: the network and the decoder are shared.
"""

import dataclasses
import difflib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fsl_dist.data.catalogue import SPLITS
from fsl_dist.errors import RequestError
from fsl_dist.evaluation.evidence import pixels_of
from fsl_dist.evaluation.pair_maps import PairMaps, map_pairs
from fsl_dist.evaluation.protocols import open_selection
from fsl_dist.image_files import ImageFiles, NamedImage
from fsl_dist.metrics.retrieval import NO_GROUP
from fsl_dist.predicting import ScoredClass
from fsl_dist.training.splits import split_run
from fsl_dist.training.trained import TrainedRun
from fsl_dist.viewing.answering import Answerer, Novel
from fsl_dist.viewing.familiarity import Familiarity, Judgement, cost_of
from index import ShardedIndex

Asked = bytes | int
"""the content of an image file, or a sample id of the run's data set"""

MEASURES = {"l2": "distance", "cosine": "cosine", "inner_product": "product"}
# Each range of ids is searched separately.
_MOST_RANGES = 4096


@dataclass(frozen=True, slots=True)
class Sample:
    """An image of the data set."""

    id: int
    key: str
    label: str
    """name of its class"""
    group: str
    """empty if it has none"""
    split: str


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One of the images nearest to the one asked about."""

    sample: Sample
    distance: float
    """Euclidean for index.metric=l2; otherwise the cosine or the product, which is largest for the nearest image"""


@dataclass(frozen=True, slots=True)
class Only:
    """Which images may be neighbours."""

    split: str = "train"
    """train (the images that the run compares with), val, test or novel"""
    label: int | None = None
    """label of the class; None: any"""
    group: int | None = None
    """number of the group; None: any"""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a run says of one image."""

    pixels: NDArray[np.uint8]
    """uint8 [S, S, 3]: the part of the image that the network sees"""
    sample: Sample | None
    """the image itself, if it is of the data set"""
    classes: list[ScoredClass]
    """best first"""
    judgement: Judgement | None
    """whether it is unlike the data set; None if there are too few images to tell"""
    neighbours: list[Neighbour]
    """nearest first"""


class RunView:
    """An opened run for interactive use.

    Opening it embeds the training images, if that was not done before, and calibrates the confidence.
    """

    def __init__(self, trained: TrainedRun, *, max_pixels: int) -> None:
        """max_pixels: an uploaded image with more pixels is refused."""
        config = trained.config
        if config.data.features:
            raise RequestError(
                f"{trained.run} was trained on data.features={config.data.features}; view shows images"
            )
        self.trained = trained
        self.catalogue = trained.catalogue
        self.splits = split_run(trained.catalogue, config)
        self.gallery = open_selection(trained, config, "gallery", self.splits.gallery)
        self.answerer = Answerer(trained, self.gallery, self.splits)
        self.familiarity = Familiarity.measure(trained, self.gallery, self.splits)
        most = min(max_pixels, config.data.max_pixels)
        of_uploads = dataclasses.replace(config, data=dataclasses.replace(config.data, max_pixels=most))
        self._files = ImageFiles(trained.embedder, of_uploads, trained.catalogue)
        self._indexes: dict[str, ShardedIndex] = {"train": self.gallery}

    def close(self) -> None:
        """Release the decoder of uploaded images."""
        self._files.__exit__()

    @property
    def measure(self) -> str:
        """What the neighbours' `distance` is: distance, cosine or product."""
        return MEASURES[self.gallery.metric]

    @property
    def name(self) -> str:
        """The last part of the run's folder."""
        return Path(self.trained.run).name

    def only(self, split: str, class_name: str = "", group_name: str = "") -> Only:
        """A filter by names; an empty name allows any class or group. RequestError for an unknown name."""
        catalogue = self.catalogue
        return Only(
            split,
            _position(class_name, catalogue.class_names, "class"),
            _position(group_name, catalogue.group_names, "group"),
        )

    def list_samples(self, only: Only, start: int, limit: int) -> list[Sample]:
        """Samples of a split that a filter allows, in the order of their ids, from position `start`."""
        ids = self._allowed(np.array(self.catalogue.split_ids(only.split), dtype=np.int64), only)
        return self.describe(ids[start : start + limit].tolist())

    def read(self, image: Asked) -> torch.Tensor:
        """Decode one image: float32 [1, C, S, S].

        Raises RequestError, in one line, for a file that is not an image, is damaged or has too many pixels, and for
        an unknown sample.
        """
        if isinstance(image, int):
            self.catalogue.locate([image])
            return self.trained.embedder.source.fetch(np.array([image]), None)
        self._files.failed.clear()
        for _, decoded in self._files.batches([NamedImage("the image", image)]):
            return decoded
        failed = self._files.failed.pop()
        raise RequestError(f"{failed.image} {failed.reason}")

    def ask(self, image: Asked, *, k: int, only: Only | None = None, novel: Novel | None = None) -> Answer:
        """Answer one image with its `k` nearest images among those of `only`; a sample is not its own neighbour.

        Raises RequestError for an unusable image, and for an unknown split.
        """
        only, own = only or Only(), image if isinstance(image, int) else -1
        decoded = self.read(image)
        vector = self.trained.embedder.embed_images(decoded)[0]
        nearest = self.gallery.search(vector[None], 1, query_ids=[own]).exact_distances[0]
        return Answer(
            pixels=pixels_of(decoded, self.trained.config.data)[0],
            sample=None if own < 0 else self.describe([own])[0],
            classes=self.answerer.rank(vector, novel or {}, k),
            judgement=self.familiarity.judge(float(cost_of(self.gallery, nearest)[0])),
            neighbours=self._find(vector, k, only, own),
        )

    def maps(self, image: Asked, samples: Sequence[int]) -> list[PairMaps]:
        """Activation maps of an image with each of some samples of the data set.

        Raises RequestError for a network without maps.
        """
        shown = self.trained.embedder.source.fetch(np.array(samples, dtype=np.int64), None)
        return map_pairs(self.trained.embedder, self.trained.config, self.read(image), shown)

    def embed(self, images: Sequence[Asked]) -> NDArray[np.float32]:
        """Embeddings of some images, float32 [n, dim]; RequestError for one that cannot be used."""
        return np.concatenate([self.trained.embedder.embed_images(self.read(image)) for image in images])

    def picture(self, sample: int) -> bytes:
        """PNG of the part of a sample that the network sees."""
        return encode_picture(pixels_of(self.read(sample), self.trained.config.data)[0])

    def describe(self, ids: Sequence[int]) -> list[Sample]:
        """Describe samples of the data set."""
        catalogue = self.catalogue
        return [
            Sample(
                id=sample,
                key=key,
                label=catalogue.label_name(int(catalogue.labels[sample])),
                group=""
                if catalogue.groups[sample] == NO_GROUP
                else catalogue.group_names[int(catalogue.groups[sample])],
                split=SPLITS[int(catalogue.splits[sample])],
            )
            for sample, key in zip(ids, catalogue.keys(ids), strict=True)
        ]

    def _find(self, vector: NDArray[np.float32], k: int, only: Only, own: int) -> list[Neighbour]:
        index = self._open(only.split)
        ranges = None if only.label is None and only.group is None else self._ranges(index, only)
        if ranges is not None and len(ranges) == 0:
            return []
        queries = np.repeat(vector[None], 1 if ranges is None else len(ranges), axis=0)
        found = index.search(queries, k, query_ids=[own] * len(queries), include_ids=ranges)
        ids, distances = found.ids.ravel(), found.exact_distances.ravel()
        order = np.lexsort((ids, cost_of(index, distances)))
        order = order[ids[order] >= 0][:k]
        near, far = ids[order].tolist(), distances[order]
        far = np.sqrt(far) if index.metric == "l2" else far
        return [
            Neighbour(sample, distance)
            for sample, distance in zip(self.describe(near), far.tolist(), strict=True)
        ]

    def _open(self, split: str) -> ShardedIndex:
        """The index of a split; the first search embeds its images."""
        if split not in self._indexes:
            selection = self.catalogue.select(split)
            self._indexes[split] = open_selection(self.trained, self.trained.config, split, selection)
        return self._indexes[split]

    def _ranges(self, index: ShardedIndex, only: Only) -> NDArray[np.int64]:
        """Half-open ranges of the ids of a class, a group, or both: int64 [m, 2]."""
        ids = self._allowed(np.sort(index.ids), only)
        if len(ids) == 0:
            return np.empty((0, 2), dtype=np.int64)
        starts = np.concatenate([[0], np.flatnonzero(np.diff(ids) != 1) + 1])
        ends = np.concatenate([starts[1:], [len(ids)]]) - 1
        if len(starts) > _MOST_RANGES:
            raise RequestError(
                f"this group is in {len(starts)} places of the data set, more than {_MOST_RANGES}; choose a class as well"
            )
        return np.stack([ids[starts], ids[ends] + 1], axis=1)

    def _allowed(self, ids: NDArray[np.int64], only: Only) -> NDArray[np.int64]:
        if only.label is not None:
            ids = ids[self.catalogue.labels[ids] == only.label]
        if only.group is not None:
            ids = ids[self.catalogue.groups[ids] == only.group]
        return ids


def _position(name: str, names: Sequence[str], kind: str) -> int | None:
    if not name:
        return None
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise RequestError(f"{kind} '{name}' is not in the data set{hint}")
    return names.index(name)


def encode_picture(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of uint8 [h, w, 3] or [h, w, 4]."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
