"""The standard error of a validation score with respect to more images of the same classes."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np

from index.base.checksums import encode_json, read_json
from index.base.errors import ConfigError, VersionError
from index.base.files import exists, write_atomic
from index.base.settings import validate

VALIDATION_FILE = "validation.json"
"""in a run's folder: the number of images that its validations score, by class"""

_BY_IMAGE = ("acc", "recall", "ca")
_BY_CLASS = ("mcr", "mca", "balanced_recall")


@dataclass(frozen=True, slots=True)
class ScoredImages:
    """The images that a score is measured on."""

    counts: tuple[int, ...]
    """images of each scored class"""
    train_counts: tuple[int, ...]
    """training images of each of these classes"""

    @property
    def num_images(self) -> int:
        """All scored images."""
        return sum(self.counts)

    def effective(self, metric: str) -> float | None:
        """Number of images with which a plain share would have the same standard error;
        None for a score that is not a share.

        A share of all images (`knn/acc@5`, `recall@5/base`, `kmeans/ca`): n. A mean over C classes of each class's
        share (`knn/mcr@5`, `mca/base`): C² / Σ 1/n_c, far below n if a class has few images. `knn/rs@5` is that mean
        over the classes with the fewest training images.
        """
        name = metric.partition("@")[0].removeprefix("knn/").removesuffix("/base").removeprefix("kmeans/")
        if name in _BY_IMAGE:
            return float(self.num_images)
        if name in _BY_CLASS:
            return _harmonic(self.counts)
        if name == "rs":
            fewest = min((train for train in self.train_counts if train), default=0)
            rare = [n for n, train in zip(self.counts, self.train_counts, strict=True) if train == fewest]
            return _harmonic(rare) if fewest else None
        return None

    def standard_error(self, metric: str, value: float) -> float | None:
        """√(p(1−p)/n) of a score p with n effective images; None for a score that is not a share, or is not finite.

        Images are treated as drawn independently, and each class's share as the mean of all; for equally large
        classes with different shares, that overestimates the error. A score of 0 or 1 is moved inside by half an
        image, since the formula would give 0.
        """
        effective = self.effective(metric)
        if not effective or not math.isfinite(value):
            return None
        inside = min(max(value, 0.5 / effective), 1 - 0.5 / effective) if effective > 1 else 0.5
        return math.sqrt(inside * (1 - inside) / effective)

    def write(self, run: Path) -> None:
        """Write them into a run's folder."""
        write_atomic(run / VALIDATION_FILE, encode_json(asdict(self)))

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """Read the counts of a run; None if it has not validated."""
        path = run / VALIDATION_FILE
        if not exists(path):
            return None
        try:
            return validate(cls, read_json(path, root=run), str(path))
        except ConfigError as error:
            raise VersionError(f"{path} is damaged: {error}") from None


def _harmonic(counts: Sequence[int]) -> float:
    """C² / Σ 1/n_c."""
    sizes = np.array([count for count in counts if count], dtype=np.float64)
    return float(len(sizes) ** 2 / np.sum(1 / sizes)) if len(sizes) else 0.0
