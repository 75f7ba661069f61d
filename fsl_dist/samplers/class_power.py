"""Images drawn by the size of their class to a power: from as sized to class-balanced."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fsl_dist.data.selection import Selection
from fsl_dist.samplers.scan import split_evenly
from fsl_dist.seeding import generator

_EPOCHS_AT_A_TIME = 1024


class ClassPowerDraws:
    """The draws of an epoch: class c gets a share proportional to n_c^power, with n_c its number of images.

    Power 1 draws every image equally often; with as many draws as images, once per epoch. Power 0 draws every class
    equally often. The number of draws of a class in an epoch is its share, rounded up or down at random. Over the
    epochs the draws go through its images in random order, and no image repeats before all others were drawn.
    Everything is a pure function of (selection, seed, epoch): a resumed run and every worker draw the same images.

    Args:
        selection: the images to draw from.
        power: 0 … 1.
        num_draws: draws per epoch.
        num_steps: steps per epoch; each has an equal part of the draws.
        seed: of the run.
    """

    def __init__(
        self, selection: Selection, *, power: float, num_draws: int, num_steps: int, seed: int
    ) -> None:
        self.selection = selection
        self.num_steps = num_steps
        self.num_draws = num_draws
        self.seed = seed
        weights = selection.counts.astype(np.float64) ** power
        self._edges = np.append(0.0, np.cumsum(weights / weights.sum() * num_draws))
        self._edges[-1] = num_draws  # exact despite rounding
        self._of_epoch = lru_cache(maxsize=2)(self._draw)

    def of_step(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Positions in the selection for a step: int64 [≤ ⌈num_draws / num_steps⌉]. An image may occur twice."""
        edges = split_evenly(self.num_draws, self.num_steps)
        return self._of_epoch(epoch)[edges[step] : edges[step + 1]]

    def _draw(self, epoch: int) -> NDArray[np.int64]:
        before, counts = self._counts(epoch)
        parts = [
            start + self._in_turn(number, size, first, num)
            for number, (start, size, first, num) in enumerate(
                zip(
                    self.selection.starts[:-1].tolist(),
                    self.selection.counts.tolist(),
                    before.tolist(),
                    counts.tolist(),
                    strict=True,
                )
            )
            if num
        ]
        draws = np.concatenate(parts)
        return draws[generator(self.seed, "draws", epoch).permutation(len(draws))]

    def _counts(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draws of each class in all epochs before this one, and in this one: int64 [num_classes] each."""
        before = np.zeros(self.selection.num_classes, dtype=np.int64)
        for first in range(0, epoch, _EPOCHS_AT_A_TIME):
            shifts = [self._shift(past) for past in range(first, min(epoch, first + _EPOCHS_AT_A_TIME))]
            before += (
                np.diff(np.floor(self._edges + np.array(shifts)[:, None]), axis=1)
                .sum(axis=0)
                .astype(np.int64)
            )
        return before, np.diff(np.floor(self._edges + self._shift(epoch))).astype(np.int64)

    def _shift(self, epoch: int) -> float:
        # Systematic sampling: one random number decides which classes are rounded up, and the total is constant.
        return float(_shifts(self.seed, epoch // _EPOCHS_AT_A_TIME)[epoch % _EPOCHS_AT_A_TIME])

    def _in_turn(self, number: int, size: int, first: int, num: int) -> NDArray[np.int64]:
        """Draws `first` … `first + num − 1` of a class of `size` images:
        cycle after cycle, each in another random order."""
        cycles = range(first // size, (first + num - 1) // size + 1)
        label = int(self.selection.labels[number])
        orders = [
            generator(self.seed, "draws of a class", label, cycle).permutation(size) for cycle in cycles
        ]
        skipped = first - cycles.start * size
        return np.concatenate(orders)[skipped : skipped + num]


@lru_cache(maxsize=16)
def _shifts(seed: int, block: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) of consecutive epochs: float64 [_EPOCHS_AT_A_TIME]."""
    return generator(seed, "shares of the classes", block).random(_EPOCHS_AT_A_TIME)
