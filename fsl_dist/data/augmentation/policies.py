"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller & Hutter 2021):
which operation an image gets, how strongly.

`fsl_dist.data.augmentation.operations` applies them. Pure arithmetic on uniform draws.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Operation:
    """One kind of change, and its strength in each policy."""

    name: str
    randaugment: float
    """amount at data.randaugment_magnitude=10"""
    trivialaugment: float
    """largest amount, of the "wide" space"""
    is_signed: bool = False
    """whether half of the images get the negative amount"""


OPERATIONS: Final = (
    Operation("identity", 0, 0),
    Operation("shear_x", 0.3, 0.99, is_signed=True),  # columns per row
    Operation("shear_y", 0.3, 0.99, is_signed=True),
    Operation("translate_x", 150 / 331, 32 / 224, is_signed=True),  # share of the side: 32 of 224 pixels
    Operation("translate_y", 150 / 331, 32 / 224, is_signed=True),
    Operation("rotate", 30, 135, is_signed=True),  # degrees
    Operation("brightness", 0.9, 0.99, is_signed=True),  # factor 1 + amount, as the next three
    Operation("colour", 0.9, 0.99, is_signed=True),
    Operation("contrast", 0.9, 0.99, is_signed=True),
    Operation("sharpness", 0.9, 0.99, is_signed=True),
    Operation("posterize", 4, 6),  # lowest bits cleared
    Operation("solarize", 255, 255),  # values above 255 − amount are inverted
    Operation("autocontrast", 0, 0),
    Operation("equalize", 0, 0),
)
"""The 14 operations of both papers (and of torchvision), in torchvision's order"""

_RANDAUGMENT, _TRIVIALAUGMENT, _SIGNED = (
    np.array([getattr(operation, name) for operation in OPERATIONS])
    for name in ("randaugment", "trivialaugment", "is_signed")
)


def randaugment(
    which: NDArray[np.float64], sign: NDArray[np.float64], magnitude: float
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The operations of RandAugment at `magnitude`, 0 … 10.

    Args:
        which: uniform [n, k], choose the operations, with replacement.
        sign: uniform [n, k].
        magnitude: 10 is each operation's strongest.

    Returns:
        Numbers of operations, int64 [n, k], and their amounts, float32 [n, k].
    """
    operations = _choose(which)
    return operations, _amounts(operations, _RANDAUGMENT, np.full_like(which, magnitude / 10), sign)


def trivialaugment(
    which: NDArray[np.float64], sign: NDArray[np.float64], strength: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Choose the operations of TrivialAugment; arguments uniform [n, 1], result as in `randaugment`.

    The strength is one of 31 levels, 0 … 30. Shifts are relative to the side, so that small images keep their content.
    """
    operations = _choose(which)
    return operations, _amounts(operations, _TRIVIALAUGMENT, np.floor(strength * 31) / 30, sign)


def _choose(which: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.floor(which * len(OPERATIONS)).astype(np.int64)


def _amounts(
    operations: NDArray[np.int64],
    largest: NDArray[np.float64],
    strength: NDArray[np.float64],
    sign: NDArray[np.float64],
) -> NDArray[np.float32]:
    signs = np.where(_SIGNED[operations] & (sign < 0.5), -1, 1)
    return (largest[operations] * strength * signs).astype(np.float32)
