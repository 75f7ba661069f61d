"""Episodes: a few classes, a few images per class, divided into support and query.

An episode is a pure function of (seed, epoch, number), so any process can draw it: a step of `per_step` episodes uses
the numbers `step * per_step … step * per_step + per_step - 1`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fsl_dist.data.selection import Selection
from fsl_dist.errors import RequestError
from fsl_dist.seeding import generator
from index.base.settings import settings


@settings("episode")
class EpisodeConfig:
    """The size of an episode, and the number of episodes per step and per epoch."""

    n_way: Annotated[int, Field(ge=2)] = 10
    """classes per episode"""
    k_shot: Annotated[int, Field(ge=1)] = 10
    """support images per class"""
    n_query: Annotated[int, Field(ge=1)] = 5
    """query images per class"""
    per_step: Annotated[int, Field(ge=0)] = 0
    """episodes per optimizer step over all workers; 0 = the number of workers"""
    per_epoch: Annotated[int, Field(ge=1)] = 200
    """episodes per epoch over all workers"""
    scope: Literal["local", "global"] = "local"
    """local: each worker runs its own episodes; global: one episode is divided among all workers"""
    small_classes: Literal["error", "replace", "skip"] = "error"
    """a class with fewer than k_shot + n_query images: refuse it, repeat its images, or leave the class out"""

    @property
    def images_per_class(self) -> int:
        """Total number of support and query images per class."""
        return self.k_shot + self.n_query


@dataclass(frozen=True, kw_only=True, slots=True)
class Episode:
    """The classes of one episode and the sample ids drawn from each."""

    classes: NDArray[np.int64]
    """int64 [n_way]: labels, no label twice"""
    support: NDArray[np.int64]
    """int64 [n_way, k_shot]: sample ids"""
    query: NDArray[np.int64]
    """int64 [n_way, n_query]: sample ids, none of them in `support`"""


def fit_selection(selection: Selection, config: EpisodeConfig, class_names: Sequence[str]) -> Selection:
    """The classes of a selection that episodes can be drawn from.

    Args:
        selection: the samples.
        config: n_way, k_shot, n_query, and whether a class that is too small is refused, kept or dropped
            (`small_classes`).
        class_names: name of each label, for errors.

    Returns:
        The selection, without dropped classes.

    Raises:
        RequestError: a class has fewer than k_shot + n_query images (`small_classes=error`), or there are fewer than
            n_way classes.
    """
    needed = config.images_per_class
    counts = selection.counts
    fits = counts >= needed
    fitting = selection
    if config.small_classes == "error" and not fits.all():
        smallest = int(np.argmin(counts))
        raise RequestError(
            f"episode.k_shot={config.k_shot} with n_query={config.n_query} needs {needed} images per class; "
            f"class '{class_names[int(selection.labels[smallest])]}' has {int(counts[smallest])} "
            "(episode.small_classes=replace allows repeats)"
        )
    if config.small_classes == "skip":
        fitting = selection.keep_classes(fits)
    if fitting.num_classes < config.n_way:
        skipped = selection.num_classes - fitting.num_classes
        why = f" ({skipped} smaller ones left out by episode.small_classes=skip)" if skipped else ""
        raise RequestError(
            f"episode.n_way={config.n_way} needs as many classes in every episode; the training images have "
            f"{fitting.num_classes}{why}: set episode.n_way to at most {fitting.num_classes} or add classes"
        )
    return fitting


def draw_episode(
    selection: Selection, config: EpisodeConfig, *, seed: int, epoch: int, number: int
) -> Episode:
    """Draw one episode (PCN Algorithm 1): classes, then images of each, without replacement.

    Only under `small_classes=replace` does an image repeat, and only in a class with fewer than k_shot + n_query
    images; support and query still share none of a class with two images or more. Deterministic in (seed, epoch,
    number).

    Args:
        selection: what `fit_selection` returned.
        config: n_way, k_shot, n_query.
        seed: of the run.
        epoch: from 0.
        number: of the episode in the epoch, from 0.

    Returns:
        Classes, and the ids of their support and query images.
    """
    rng = generator(seed, "episode", epoch, number)
    chosen = rng.choice(selection.num_classes, config.n_way, replace=False)
    images = np.empty((config.n_way, config.images_per_class), dtype=np.int64)
    for row, position in enumerate(chosen):
        members = selection.of_class(int(position))
        if len(members) >= config.images_per_class:
            images[row] = rng.choice(members, config.images_per_class, replace=False)
        else:
            images[row] = _repeat_images(rng.permutation(members), config.k_shot, config.n_query)
    return Episode(
        classes=selection.labels[chosen],
        support=images[:, : config.k_shot],
        query=images[:, config.k_shot :],
    )


def _repeat_images(members: NDArray[np.int64], k_shot: int, n_query: int) -> NDArray[np.int64]:
    """k_shot + n_query ids from too few shuffled `members`, each as often as the others on its side.

    The members are divided by the ratio of k_shot to n_query, at least one per side; a single image is on both sides.
    """
    num = len(members)
    cut = min(max(round(num * k_shot / (k_shot + n_query)), 1), max(num - 1, 1))
    support = members[:cut]
    query = members[cut:] if num > 1 else members
    return np.concatenate([np.resize(support, k_shot), np.resize(query, n_query)])
