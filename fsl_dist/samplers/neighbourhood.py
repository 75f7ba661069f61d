"""Anchors with their mined neighbours: the batches of deep kNN with `mining.neighbours=decoded`."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fsl_dist.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbourhood:
    """The images of one step, each once, and the neighbours among them."""

    ids: NDArray[np.int64]
    """int64 [B]: sample ids, no id twice: anchors first, then nearest neighbours before further ones"""
    anchor: NDArray[np.int64]
    """int64 [A]: positions in `ids`"""
    same: NDArray[np.int64]
    """int64 [A, K]: positions of each anchor's neighbours of its own class, −1 if there are fewer"""
    other: NDArray[np.int64]
    """int64 [A, M]: positions of each anchor's neighbours of other classes, −1 if there are fewer"""


def anchors_per_step(batch_size: int, num_same: int, num_other: int) -> int:
    """Number of anchors that fit into a batch with all their neighbours: ⌊batch_size / (1 + K + M)⌋.

    Args:
        batch_size: images per batch.
        num_same: K, neighbours of an anchor's class.
        num_other: M, neighbours of other classes.

    Returns:
        1 or more.

    Raises:
        ConfigError: not even one anchor fits.
    """
    images = 1 + num_same + num_other
    if batch_size < images:
        raise ConfigError(
            f"training.batch_size={batch_size} is too small for an anchor with its neighbours: "
            f"method.k_same={num_same} and method.m_other={num_other} make {images} images per anchor; set "
            f"training.batch_size to {images} or more"
        )
    return batch_size // images


def gather_neighbourhood(
    anchor_ids: NDArray[np.int64], same_ids: NDArray[np.int64], other_ids: NDArray[np.int64]
) -> Neighbourhood:
    """Collect the images of some anchors, each once, and convert the rows of the mining table to their positions.

    `ids` is in order of first use, column by column. Sorted ids would be sorted by class, and batch-norm groups of
    such a batch would leak labels.

    Args:
        anchor_ids: int64 [A], sample ids.
        same_ids: int64 [A, K], sample ids of neighbours of the anchor's class, −1 if there are fewer.
        other_ids: int64 [A, M], sample ids of neighbours of other classes, −1 if there are fewer.

    Returns:
        The images and the anchors' and neighbours' positions among them.
    """
    # One column an anchor's role: [A] anchors, then [A] nearest of the class, …
    flat = np.concatenate([anchor_ids, same_ids.T.ravel(), other_ids.T.ravel()]).astype(np.int64, copy=False)
    present = flat >= 0
    unique, first_use, inverse = np.unique(flat[present], return_index=True, return_inverse=True)
    order = np.argsort(first_use)
    place = np.empty(len(unique), dtype=np.int64)
    place[order] = np.arange(len(unique))
    positions = np.full(len(flat), -1, dtype=np.int64)
    positions[present] = place[inverse]

    num_anchors, num_same = same_ids.shape
    same_end = num_anchors * (1 + num_same)
    return Neighbourhood(
        ids=unique[order],
        anchor=positions[:num_anchors],
        same=np.ascontiguousarray(positions[num_anchors:same_end].reshape(num_same, num_anchors).T),
        other=np.ascontiguousarray(positions[same_end:].reshape(other_ids.shape[1], num_anchors).T),
    )
