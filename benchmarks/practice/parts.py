"""A data set made ready once for all rows: its parts, pixels, frozen features and cached activations."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.practice.backbone import (
    FIRST_TRAINED,
    ActivationViews,
    Augmentation,
    Embedder,
    PixelViews,
    embed,
    load_blocks,
)
from benchmarks.practice.sets import PracticeSet
from benchmarks.practice.spent import Spent, stopwatch
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.images import open_upright
from fsl_dist.data.split import holdout
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import RequestError
from index.base.files import write_atomic

_HOLDOUT = 0.15
"""share of train for validation, in a data set without a val split"""
_AT_A_TIME = 256
_CACHE_SEED = 7


@dataclass(frozen=True)
class Part:
    """Images of one part of the data."""

    rows: NDArray[np.int64]
    """int64 [n]: sample ids"""
    labels: NDArray[np.int64]
    """int64 [n]: 0 … classes − 1"""


class Prepared:
    """One data set for all rows. What is computed from images is kept in files below `work`, by what it follows
    from."""

    def __init__(self, chosen: PracticeSet, data: Catalogue, weights: Path, work: Path) -> None:
        """Raises RequestError where there is no train or test split, no image to validate on, or no file of weights."""
        self.set, self.data, self.weights = chosen, data, weights
        train, test = data.select("train"), data.select("test")
        if "val" in data.split_names:
            val = data.select("val")
        else:
            train, val = holdout(train, np.asarray(data.units), _HOLDOUT, 0)
        if not len(val):
            raise RequestError(f"{data.folder} has no image to validate on: no class can spare one")
        labels = np.asarray(data.labels)
        used = np.unique(labels[train.ids])
        is_known = np.isin(labels, used)
        places = np.searchsorted(used, np.where(is_known, labels, used[0]))
        self.classes = len(used)
        self.train, self.val, self.test = (
            Part(ids, places[ids]) for ids in (part.ids[is_known[part.ids]] for part in (train, val, test))
        )
        self.fingerprint = self._hash()
        self.work = work / self.fingerprint
        self.work.mkdir(parents=True, exist_ok=True)

    def _hash(self) -> str:
        """What embeddings follow from: images and labels of all parts, weights, image size and augmentation."""
        chosen = self.set
        found = hashlib.sha256(f"{chosen.image_size} {chosen.copies} {chosen.has_flip}".encode())
        for part in (self.train, self.val, self.test):
            found.update(np.ascontiguousarray(self.data.locate(part.rows).crc32, dtype=np.int64).tobytes())
            found.update(part.labels.tobytes())
        try:
            found.update(self.weights.read_bytes())
        except OSError as error:
            raise RequestError(f"weights {self.weights} cannot be read: {error.strerror}") from error
        return found.hexdigest()[:16]

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [classes]: training images of each class, all above 0."""
        return np.bincount(self.train.labels, minlength=self.classes)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images of this set."""
        return Augmentation(self.set.image_size, self.set.has_flip)

    @cached_property
    def pixels(self) -> Tensor:
        """uint8 [num_samples, 3, s, s]: all images, squeezed to squares of 4/3 of the image size."""
        side = self.set.image_size * 4 // 3
        out = torch.empty(len(self.data), 3, side, side, dtype=torch.uint8)
        store = ShardStore(self.data)
        for start in range(0, len(self.data), _AT_A_TIME):
            ids = np.arange(start, min(start + _AT_A_TIME, len(self.data)))
            for row, encoded in zip(ids.tolist(), store.read(ids), strict=True):
                image = open_upright(encoded, 3).resize((side, side), Image.Resampling.BILINEAR)
                out[row] = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        store.close()
        return out

    @cached_property
    def pixel_views(self) -> PixelViews:
        """Views of pixels, for the whole network."""
        return PixelViews(self.pixels, self.augmentation)

    @cached_property
    def features(self) -> NDArray[np.float32]:
        """float32 [num_samples, 1280]: embeddings of the frozen network."""
        path = self.work / "features.npy"
        if not path.exists():
            read_clock = stopwatch()
            rows = np.arange(len(self.data))
            self._keep(path, embed(Embedder(load_blocks(self.weights)), self.pixel_views, rows), read_clock)
        found: NDArray[np.float32] = np.load(path)
        return found

    @property
    def feature_time(self) -> Spent:
        """What embedding all images took."""
        _ = self.features
        return self._time_of("features")

    @cached_property
    def activation_views(self) -> ActivationViews:
        """Cached activations of the frozen blocks, for fine-tuning the last ones."""
        plain_file, augmented_file = self.work / "plain.npy", self.work / "augmented.npy"
        if not (plain_file.exists() and augmented_file.exists()):
            self._write_activations(plain_file, augmented_file)
        plain, augmented = (torch.from_numpy(np.load(path)) for path in (plain_file, augmented_file))
        positions = np.zeros(len(self.data), dtype=np.int64)
        positions[self.train.rows] = np.arange(len(self.train.rows))
        return ActivationViews(plain, augmented, positions)

    @property
    def activation_time(self) -> Spent:
        """What the cache of activations took."""
        _ = self.activation_views
        return self._time_of("plain") + self._time_of("augmented")

    @torch.no_grad()
    def _write_activations(self, plain_file: Path, augmented_file: Path) -> None:
        leading = load_blocks(self.weights)[:FIRST_TRAINED].eval()
        read_clock = stopwatch()
        rows = np.arange(len(self.data))
        plain = [leading(part).half().numpy() for part in self.pixel_views.plain(rows)]
        self._keep(plain_file, np.concatenate(plain), read_clock)
        read_clock = stopwatch()
        draw = np.random.default_rng(_CACHE_SEED)
        train = self.train.rows
        copies = [
            np.concatenate([
                leading(self.pixel_views.draw(train[start : start + _AT_A_TIME], draw)).half().numpy()
                for start in range(0, len(train), _AT_A_TIME)
            ])
            for _ in range(self.set.copies)
        ]  # fmt: skip
        self._keep(augmented_file, np.stack(copies), read_clock)

    def _keep(self, path: Path, values: NDArray[np.floating], read_clock: Callable[[], Spent]) -> None:
        write_atomic(path.with_suffix(".json"), json.dumps(asdict(read_clock())).encode())
        pending = path.with_suffix(".pending.npy")
        np.save(pending, values)
        pending.replace(path)

    def _time_of(self, name: str) -> Spent:
        return Spent(**json.loads((self.work / f"{name}.json").read_text(encoding="utf-8")))
