"""Which images make a batch of a peer: shuffled epochs, balanced classes, or some images of each of some classes."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BATCH_SIZE = 64
OF_A_CLASS = 8
"""images of a class in batches by class: 8 classes of 8 images, or fewer classes of more"""

Labels = NDArray[np.int64]


def shuffled(labels: Labels, draw: np.random.Generator) -> Iterator[Labels]:
    """Positions int64 [batch]: epochs in random order, what is left of one begins the next."""
    size = min(BATCH_SIZE, len(labels))
    waiting = np.zeros(0, np.int64)
    while True:
        while len(waiting) < size:
            waiting = np.concatenate([waiting, draw.permutation(len(labels))])
        yield waiting[:size]
        waiting = waiting[size:]


def balanced(labels: Labels, draw: np.random.Generator) -> Iterator[Labels]:
    """A class at random for each place of the batch, then one of its images."""
    members = _members(labels)
    while True:
        classes = draw.integers(len(members), size=BATCH_SIZE)
        yield np.array([draw.choice(members[each]) for each in classes])


def by_class(labels: Labels, draw: np.random.Generator) -> Iterator[Labels]:
    """Equally many images of each of some classes, class by class; a smaller class repeats images."""
    members = _members(labels)
    num = min(len(members), BATCH_SIZE // OF_A_CLASS)
    size = BATCH_SIZE // num
    while True:
        classes = draw.choice(len(members), num, replace=False)
        yield np.concatenate([draw.choice(members[c], size, replace=len(members[c]) < size) for c in classes])


def _members(labels: Labels) -> list[Labels]:
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]
