"""The data of a fit: packed if necessary, checked, and divided into training and validation parts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.config import DataConfig
from fsl_dist.data.loader import open_source
from fsl_dist.data.selection import Selection
from fsl_dist.data.split import holdout
from index.base.errors import RequestError
from tune.fit.config import FitConfig
from tune.fit.records import ProfileRecord

MOST_VALIDATION = 5000
"""images of a validation part, at most: their scores' standard error is then below 0.7 percent"""
LOOKED_AT = 64
"""images that are decoded to see whether they have colour"""


@dataclass(frozen=True, slots=True)
class Part:
    """The training and validation images of one training in a round."""

    number: int
    rest: Selection
    """images that are trained on, and that heads are fitted to"""
    held: Selection
    """validation images"""


@dataclass(frozen=True, slots=True)
class Parts:
    """The validation parts of a data set."""

    catalogue: Catalogue
    fraction: float
    """share of train that is held out; 0: the data set's own val split is used"""
    seed: int

    @property
    def are_cut(self) -> bool:
        """Whether validation images are held out of train;
        then there are other parts, and a final run trains on all of it."""
        return self.fraction > 0

    def part(self, number: int) -> Part:
        """Validation part `number`; there is only one for the data set's own val split."""
        train = self.catalogue.select("train")
        if not self.are_cut:
            return Part(0, train, self.catalogue.select("val"))
        rest, held = holdout(train, self.catalogue.groups, self.fraction, self.seed + number)
        return Part(number, rest, held)

    @property
    def whole(self) -> Part:
        """For a final run: it trains on the validation images too, of train or of the data set's own val split."""
        part = self.part(0)
        held = part.held.keep_classes(np.isin(part.held.labels, self.classes))
        ids = np.concatenate([part.rest.ids, held.ids])
        return Part(0, Selection.from_labels(ids, self.catalogue.labels[ids]), part.held)

    @property
    def classes(self) -> NDArray[np.int64]:
        """int64 [C], ascending: the labels that are trained on."""
        return self.catalogue.select("train").labels

    @property
    def test_split(self) -> str:
        """The split that scores the chosen model: test, otherwise an unused val split; empty if there is neither."""
        names = self.catalogue.split_names
        return "test" if "test" in names else "val" if "val" in names and self.are_cut else ""

    @property
    def test_ids(self) -> NDArray[np.int64]:
        """int64 [n]: ids of `test_split`; empty if there is none.
        Images of classes that are not trained on are left out."""
        if not self.test_split:
            return np.zeros(0, dtype=np.int64)
        ids = np.asarray(self.catalogue.split_ids(self.test_split))
        return ids[np.isin(self.catalogue.labels[ids], self.classes)]


def open_parts(catalogue: Catalogue, config: FitConfig) -> Parts:
    """Choose the validation images: the data set's val split if there is also a test split, otherwise a part of train.

    Raises RequestError if there is nothing to learn, or to validate by.
    """
    if "train" not in catalogue.split_names:
        raise RequestError(
            f"{catalogue.folder} has no train split (it has {', '.join(catalogue.split_names) or 'no samples'}); "
            "pack(split=stratified) creates one"
        )
    train = catalogue.select("train")
    if train.num_classes < 2:
        raise RequestError(
            f"{catalogue.folder} has {len(train)} training images of one class, "
            f"'{catalogue.class_names[int(train.labels[0])]}'; a fit "
            "distinguishes classes and needs two or more (a folder with one folder for each class)"
        )
    if "test" in catalogue.split_names and "val" in catalogue.split_names:
        return Parts(catalogue, 0.0, config.seed)
    fraction = min(config.holdout, MOST_VALIDATION / len(train))
    parts = Parts(catalogue, fraction, config.seed)
    if len(parts.part(0).held) == 0:
        raise RequestError(
            f"{catalogue.folder}: no class of train can spare an image for validation ({len(train)} images of "
            f"{train.num_classes} classes), so nothing can be chosen; more images for each class, or a data set "
            "with a val and a test split"
        )
    return parts


def look_at(catalogue: Catalogue, parts: Parts) -> tuple[ProfileRecord, list[str]]:
    """(what decisions follow from, warnings about the data)."""
    train = catalogue.select("train")
    sizes = catalogue.image_sizes(train.ids).min(axis=1)
    is_grey, mean, std = _look_at_pixels(catalogue, train)
    copies = _count_copies(catalogue, train.ids, parts.test_ids) + (
        0 if parts.are_cut else _count_copies(catalogue, train.ids, np.asarray(catalogue.split_ids("val")))
    )
    groups = catalogue.groups[train.ids]
    profile = ProfileRecord(
        dataset=str(catalogue.folder),
        num_images=catalogue.num_samples,
        num_classes=train.num_classes,
        splits={name: len(catalogue.split_ids(name)) for name in catalogue.split_names},
        largest_class=int(train.counts.max()),
        smallest_class=int(train.counts.min()),
        lone_classes=int((train.counts == 1).sum()),
        num_groups=len(np.unique(groups[groups >= 0])),
        shorter_side=int(np.median(sizes)),
        is_grey=is_grey,
        copies_across=copies,
        mean=mean,
        std=std,
    )
    return profile, _warn(catalogue, parts, profile)


def _warn(catalogue: Catalogue, parts: Parts, profile: ProfileRecord) -> list[str]:
    found = []
    if profile.lone_classes:
        found.append(
            f"{profile.lone_classes} of {profile.num_classes} classes have one training image; they are trained "
            "on, but no validation image measures how well they are recognised"
        )
    if profile.copies_across:
        found.append(
            f"{profile.copies_across} test or val images are byte for byte training images too, so scores on them "
            "are too high (pack.dedupe=phash leaves copies and near-copies out)"
        )
    missing = profile.num_classes - len(np.unique(catalogue.labels[parts.test_ids]))
    if parts.test_split and missing:
        found.append(
            f"{missing} of {profile.num_classes} classes have no image in {parts.test_split}; scores leave them out"
        )
    if not parts.test_split:
        found.append(
            "there is no test split: the validation scores selected the result, so they are slightly too high for it"
        )
    if catalogue.bad_samples:
        found.append(
            f"{len(catalogue.bad_samples)} images were left out when the data set was packed: "
            f"{catalogue.bad_samples[0].reason}"
        )
    return found


def _count_copies(catalogue: Catalogue, train: NDArray[np.int64], others: NDArray[np.int64]) -> int:
    """Number of `others` that have the size and checksum of an image of `train`."""

    def contents(ids: NDArray[np.int64]) -> NDArray[np.int64]:
        where = catalogue.locate(ids)
        return where.size.astype(np.int64) << 32 | where.crc32.astype(np.int64)

    return int(np.isin(contents(others), contents(train)).sum()) if len(others) else 0


def _look_at_pixels(
    catalogue: Catalogue, train: Selection
) -> tuple[bool, tuple[float, ...], tuple[float, ...]]:
    """(whether some training images have no colour at all, mean and standard deviation of their pixels by channel)."""
    config = DataConfig(
        dataset=str(catalogue.folder),
        version=catalogue.version,
        image_size=64,
        resize="exact",
        resize_size=64,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    source = open_source(config, 0, "cpu", max_batch=LOOKED_AT)
    ids = train.ids[np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(np.int64)]
    try:
        pixels = source.fetch(ids, None).cpu().numpy()
    finally:
        source.close()
    is_grey = bool(np.abs(pixels - pixels[:, :1]).max() <= 2.5 / 255)
    channels = 1 if is_grey else 3
    mean = pixels[:, :channels].mean(axis=(0, 2, 3))
    std = np.maximum(pixels[:, :channels].std(axis=(0, 2, 3)), 0.05)
    return is_grey, tuple(round(float(v), 3) for v in mean), tuple(round(float(v), 3) for v in std)
