"""CHAI's random triplets: two similar images and a dissimilar one, from one or two levels of labels.

Similarity is defined by two keys per image (int64, −1: none). Two images are similar if they share the first key.
They are dissimilar if both have the second key and it differs. The samplings of CHAI section 2.2 are pairs of such
keys: `sampling_keys`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fsl_dist.samplers.scan import split_evenly
from fsl_dist.samplers.shuffled import shuffled_order

Ints = NDArray[np.int64]
Sampling = Literal["disease", "hierarchical", "non_hierarchical", "joint"]


@dataclass(frozen=True, slots=True)
class TripletKeys:
    """Which images of a list are similar, and which dissimilar; similar images have the same `unlike`."""

    alike: Ints
    """int64 [n]: images that share it are similar; −1 = neither anchor nor positive"""
    unlike: Ints
    """int64 [n]: images that differ in it are unlike; −1 = never the unlike image"""


def sampling_keys(sampling: Sampling, diseases: Ints, groups: Ints, blind_groups: Ints) -> list[TripletKeys]:
    """Return the keys of one of CHAI's samplings, one for each equal part of the triplets.

    - disease: similar = same disease, dissimilar = other disease.
    - hierarchical: similar = same disease and same group, dissimilar = other disease; never same disease and other
      group.
    - non_hierarchical: similar = same group, dissimilar = other group, including those of the same disease.
    - joint: half by disease, half by blind group.

    Args:
        sampling: which one.
        diseases: int64 [n], each image's disease.
        groups: int64 [n], −1 for an image without a group.
        blind_groups: int64 [n], −1 for an image without a blind group.

    Returns:
        One or two keys.
    """
    match sampling:
        case "disease":
            return [TripletKeys(diseases, diseases)]
        case "hierarchical":
            has_both = (diseases >= 0) & (groups >= 0)
            pairs = diseases * (groups.max(initial=-1) + 1) + groups
            return [TripletKeys(np.where(has_both, pairs, -1), diseases)]
        case "non_hierarchical":
            return [TripletKeys(groups, groups)]
        case "joint":
            return [TripletKeys(diseases, diseases), TripletKeys(blind_groups, blind_groups)]


def find_divided_group(diseases: Ints, groups: Ints) -> tuple[int, int, int] | None:
    """Find a group whose images have two diseases, and return it with the two, the smallest first;
    None if groups are nested.

    diseases, groups: int64 [n], −1 for none; such images are ignored.
    """
    has_both = (diseases >= 0) & (groups >= 0)
    pairs = np.unique(np.stack([groups[has_both], diseases[has_both]]), axis=1)
    again = np.flatnonzero(pairs[0, 1:] == pairs[0, :-1])
    if len(again) == 0:
        return None
    first = int(again[0])
    return int(pairs[0, first]), int(pairs[1, first]), int(pairs[1, first + 1])


def count_anchors(keys: TripletKeys) -> int:
    """Number of possible anchors: images with a similar and a dissimilar image."""
    return len(_find_anchors(keys))


def draw_triplets(keys: TripletKeys, num: int, rng: np.random.Generator) -> Ints:
    """Draw triplets at random: a and b similar, a ≠ b, and c dissimilar to both.

    a is uniform over the `count_anchors` anchors, which must be one or more; b over the images similar to a; c over
    those dissimilar to a. Triplets may repeat. Costs two sorts of n, and a few operations on [num] arrays.

    Args:
        keys: which images are similar.
        num: number of triplets.
        rng: random generator.

    Returns:
        int64 [num, 3]: positions (a, b, c) in the list that `keys` describes.
    """
    anchors = _find_anchors(keys)
    assert len(anchors)
    a = anchors[rng.integers(len(anchors), size=num)]

    # Images sorted by `alike`: a's positives are its run, except for its own position.
    by_alike = np.argsort(keys.alike, kind="stable")
    sorted_alike = keys.alike[by_alike]
    first, last = (np.searchsorted(sorted_alike, keys.alike[a], side) for side in ("left", "right"))
    place = np.empty(len(by_alike), dtype=np.int64)
    place[by_alike] = np.arange(len(by_alike))
    chosen = first + rng.integers(last - first - 1)
    b = by_alike[chosen + (chosen >= place[a])]

    # Images that have `unlike`, by it: those unlike a are all but one run.
    by_unlike = np.argsort(keys.unlike, kind="stable")
    by_unlike = by_unlike[keys.unlike[by_unlike] >= 0]
    sorted_unlike = keys.unlike[by_unlike]
    first, last = (np.searchsorted(sorted_unlike, keys.unlike[a], side) for side in ("left", "right"))
    chosen = rng.integers(len(by_unlike) - (last - first))
    c = by_unlike[np.where(chosen >= first, chosen + (last - first), chosen)]
    return np.stack([a, b, c], axis=1)


def _find_anchors(keys: TripletKeys) -> Ints:
    """Positions of images that have a similar and a dissimilar image: int64 [≤ n], ascending."""
    values, inverse, counts = np.unique(keys.alike, return_inverse=True, return_counts=True)
    has_positive = (counts[inverse] > 1) & (values[inverse] >= 0)
    given = keys.unlike[keys.unlike >= 0]
    is_divided = len(given) > 0 and bool(given.min() < given.max())
    return np.flatnonzero(has_positive & (keys.unlike >= 0) & is_divided)


def triplet_steps(num: int, per_step: int) -> int:
    """Steps per epoch: ⌈num / per_step⌉."""
    return -(-num // per_step)


def triplets_of_step(num: int, per_step: int, *, seed: int, epoch: int, step: int) -> Ints:
    """The triplets of a step: int64 [≤ per_step] of 0 … num - 1; sizes within an epoch differ by at most 1.

    The steps of an epoch contain every triplet once, shuffled. Deterministic in (seed, epoch, step).
    """
    order = shuffled_order(num, "triplets", seed, epoch)
    edges = split_evenly(num, triplet_steps(num, per_step))
    return order[edges[step] : edges[step + 1]]


def gather_images(triplets: Ints) -> tuple[Ints, Ints]:
    """The images of some triplets, each once, and the triplets as positions in them.

    Args:
        triplets: int64 [T, 3].

    Returns:
        int64 [B] in order of first use (all a's, then all b's, then all c's), and int64 [T, 3].
    """
    unique, first_use, inverse = np.unique(triplets.T.ravel(), return_index=True, return_inverse=True)
    order = np.argsort(first_use)
    place = np.empty(len(unique), dtype=np.int64)
    place[order] = np.arange(len(unique))
    return unique[order], np.ascontiguousarray(place[inverse].reshape(3, -1).T)
