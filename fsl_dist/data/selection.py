"""A selection: which samples, class by class. What every sampler draws from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Selection:
    """Samples of some classes, sorted by class, in compressed-row form.

    Class `labels[c]` owns the samples `ids[starts[c]:starts[c + 1]]`; a class without samples is not listed.
    """

    ids: NDArray[np.int64]
    """int64 [num_samples]: sample ids, ascending inside a class"""
    labels: NDArray[np.int64]
    """int64 [num_classes]: label of each class, ascending"""
    starts: NDArray[np.int64]
    """int64 [num_classes + 1]: where each class starts in `ids`"""

    @classmethod
    def from_labels(cls, ids: NDArray[np.int64], sample_labels: NDArray[np.int64]) -> "Selection":
        """Selection of `ids` (int64 [n], any order) whose labels are `sample_labels` (int64 [n])."""
        ids = np.asarray(ids, dtype=np.int64)
        sample_labels = np.asarray(sample_labels, dtype=np.int64)
        order = np.lexsort((ids, sample_labels))
        return cls.from_sorted(ids[order], sample_labels[order])

    @classmethod
    def from_sorted(cls, ids: NDArray[np.int64], sample_labels: NDArray[np.int64]) -> "Selection":
        """`from_labels` for ascending labels, with ascending ids in each class:
        no sort, 4 ms instead of 30 per million."""
        is_first = np.ones(len(ids), dtype=np.bool_)
        is_first[1:] = sample_labels[1:] != sample_labels[:-1]
        first = np.flatnonzero(is_first)
        return cls(ids, sample_labels[first], np.append(first, len(ids)))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        return len(self.labels)

    @property
    def counts(self) -> NDArray[np.int64]:
        """int64 [num_classes]: samples of each class."""
        return np.diff(self.starts)

    @property
    def sample_labels(self) -> NDArray[np.int64]:
        """int64 [num_samples]: the label of each of `ids`."""
        return np.repeat(self.labels, self.counts)

    def of_class(self, position: int) -> NDArray[np.int64]:
        """Sample ids of the class at `position` in `labels`."""
        return self.ids[self.starts[position] : self.starts[position + 1]]

    def keep_classes(self, keep: NDArray[np.bool_]) -> "Selection":
        """The same selection with only the classes for which `keep` (bool [num_classes]) is true."""
        samples = np.repeat(keep, self.counts)
        return Selection.from_sorted(self.ids[samples], self.sample_labels[samples])
