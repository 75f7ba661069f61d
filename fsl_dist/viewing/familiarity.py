"""Whether an image is unlike all training images: its distance to the nearest one, compared with those of images that
are known to be of the data set."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fsl_dist.training.splits import RunSplits
from fsl_dist.training.trained import TrainedRun
from fsl_dist.viewing.answering import validation_part
from index import ShardedIndex

# The share of images of the data set that may be called unlike it.
_RARE = 0.01
# With fewer, the largest distance is an accident.
_LEAST_IMAGES = 20
_MOST_IMAGES = 2000


@dataclass(frozen=True, slots=True)
class Judgement:
    """How an image compares with images of the data set."""

    is_unlike: bool
    """its nearest training image is farther than that of nearly all images of the data set"""
    share_nearer: float
    """share of these images whose nearest training image is nearer, 0 … 1"""


@dataclass(frozen=True, slots=True, eq=False)
class Familiarity:
    """Distances of images of the data set to their nearest training image."""

    costs: NDArray[np.float64]
    """float64 [n], ascending: as `index.exact.costs`, smaller is nearer"""
    source: str
    """which images: `validation images` or `training images`"""

    @classmethod
    def measure(cls, trained: TrainedRun, gallery: ShardedIndex, splits: RunSplits) -> Self:
        """Search the nearest training image of up to 2,000 validation images, itself excluded.

        Without validation images, training images are used. The network was trained on them, so that they may be
        nearer to each other than new images are.
        """
        source = "validation images"
        if splits.stop is not None and len(splits.stop) >= _LEAST_IMAGES:
            part = validation_part(trained, gallery, splits.stop)
            vectors, ids = part.vectors, part.ids
        else:
            num = gallery.num_vectors
            rows = np.unique(np.linspace(0, num - 1, min(num, _MOST_IMAGES)).astype(np.int64))
            vectors, ids = gallery.vectors(0, num, as_given=True)[rows], gallery.ids[rows]
            source = "training images"
        found = gallery.search(np.asarray(vectors), 1, query_ids=ids)
        costs = cost_of(gallery, found.exact_distances[:, 0])
        return cls(np.sort(costs[np.isfinite(costs)]), source)

    def judge(self, cost: float) -> Judgement | None:
        """Compare the cost of an image's nearest training image; None with fewer than 20 images to compare with.

        An image is unlike the data set if at most 1 % of these images are as far from their nearest training image;
        with fewer than 100 of them, if none is.
        """
        if len(self.costs) < _LEAST_IMAGES:
            return None
        farther = len(self.costs) - int(np.searchsorted(self.costs, cost, side="left"))
        return Judgement(farther <= _RARE * len(self.costs), 1 - farther / len(self.costs))


def cost_of(index: ShardedIndex, distances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances as a search returns them, so that smaller is nearer for every metric."""
    return distances if index.metric == "l2" else -distances
