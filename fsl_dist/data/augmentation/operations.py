"""Operations on batches of crops (uint8 [n, S, S, C]), as PIL defines them, with one rounding at the end.

The crops of a batch with the same operation are processed together. All arithmetic is per crop, and sums over a crop
are sums of integers, so the result for a crop does not depend on its batch.
"""

from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from fsl_dist.data.augmentation.policies import OPERATIONS

_LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601, the weights of PIL's mode L"""


def apply_operations(pixels: Tensor, which: NDArray[np.int64], amounts: NDArray[np.float32]) -> Tensor:
    """Change each crop by one operation.

    Args:
        pixels: uint8 [n, S, S, C], not modified.
        which: int64 [n], numbers in `OPERATIONS`.
        amounts: float32 [n], in the operation's unit.

    Returns:
        uint8 [n, S, S, C].
    """
    changed = pixels.clone()
    is_geometric = np.isin(which, list(_GEOMETRY))
    groups = [np.flatnonzero(is_geometric)] if is_geometric.any() else []
    groups += [np.flatnonzero(which == number) for number in np.unique(which[~is_geometric])]
    for members in groups:
        number, some = int(which[members[0]]), amounts[members]
        rows = torch.from_numpy(members).to(pixels.device)
        if number in _GEOMETRY:
            matrices = [_GEOMETRY[int(which[i])](float(amounts[i])) for i in members]
            changed[rows] = _resample(pixels[rows], np.array(matrices))
        elif OPERATIONS[number].name in _COLOURS:
            strength = torch.from_numpy(some).to(pixels.device)[:, None, None, None]
            changed[rows] = _COLOURS[OPERATIONS[number].name](pixels[rows], strength)
    return changed


def rotate(pixels: Tensor, angle: NDArray[np.float32]) -> Tensor:
    """Rotate each crop about its centre: bilinear, the nearest edge pixel where nothing is known, rounded once.

    Args:
        pixels: uint8 [n, S, S, C].
        angle: float32 [n], degrees, counter-clockwise as seen.

    Returns:
        uint8 [n, S, S, C].
    """
    return _resample(pixels, np.array([_rotation(float(degrees)) for degrees in angle]))


def _resample(pixels: Tensor, matrices: NDArray[np.float64]) -> Tensor:
    """Resample: pixel (x, y) is read at `matrices` [n, 2, 3] · (x, y, 1) in the old crop; coordinates −1 … 1 from
    edge to edge."""
    theta = torch.from_numpy(matrices.astype(np.float32)).to(pixels.device)
    images = pixels.permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    found = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return found.round_().to(torch.uint8).permute(0, 2, 3, 1)


def _rotation(degrees: float) -> list[list[float]]:
    # Inverse mapping: the source of a new pixel. y points down.
    cosine, sine = float(np.cos(np.deg2rad(degrees))), float(np.sin(np.deg2rad(degrees)))
    return [[cosine, -sine, 0], [sine, cosine, 0]]


_AFFINE: Final[dict[str, Callable[[float], list[list[float]]]]] = {
    # Shears keep the first row or column, like PIL's. A share s of the side is a shift of 2s in these coordinates.
    "shear_x": lambda amount: [[1, amount, amount], [0, 1, 0]],
    "shear_y": lambda amount: [[1, 0, 0], [amount, 1, amount]],
    "translate_x": lambda amount: [[1, 0, -2 * amount], [0, 1, 0]],
    "translate_y": lambda amount: [[1, 0, 0], [0, 1, -2 * amount]],
    "rotate": _rotation,
}
_GEOMETRY: Final = {
    number: _AFFINE[operation.name]
    for number, operation in enumerate(OPERATIONS)
    if operation.name in _AFFINE
}


def _to_bytes(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


def _luma(pixels: Tensor) -> Tensor:
    """float32 [n, S, S, 1]: luma; for a grey crop, its only channel."""
    if pixels.shape[3] == 1:
        return pixels.float()
    red, green, blue = pixels.float().unbind(3)
    return (red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2])[..., None]


def _away_from(middle: Tensor, pixels: Tensor, amount: Tensor) -> Tensor:
    """Pixels at 1 + amount times their distance from `middle`: PIL's ImageEnhance."""
    return _to_bytes(middle + (1 + amount) * (pixels.float() - middle))


def _brightness(pixels: Tensor, amount: Tensor) -> Tensor:
    return _to_bytes(pixels.float() * (1 + amount))


def _colour(pixels: Tensor, amount: Tensor) -> Tensor:
    return pixels if pixels.shape[3] == 1 else _away_from(_luma(pixels), pixels, amount)


def _contrast(pixels: Tensor, amount: Tensor) -> Tensor:
    """About the mean luma, a whole number as in PIL."""
    total = _luma(pixels).round().long().sum(dim=(1, 2, 3), keepdim=True)
    num = pixels.shape[1] * pixels.shape[2]
    return _away_from(((2 * total + num) // (2 * num)).float(), pixels, amount)


def _sharpness(pixels: Tensor, amount: Tensor) -> Tensor:
    """Approximately PIL's smoothed image: weight 5 for the middle pixel, 1 for its eight neighbours;
    the border is unchanged."""
    if min(pixels.shape[1:3]) < 3:
        return pixels
    exact = pixels.float()
    across = exact[:, :, :-2] + exact[:, :, 1:-1] + exact[:, :, 2:]
    total = across[:, :-2] + across[:, 1:-1] + across[:, 2:]
    inner = exact[:, 1:-1, 1:-1]
    changed = pixels.clone()
    changed[:, 1:-1, 1:-1] = _away_from((total + 4 * inner) / 13, inner, amount)
    return changed


def _posterize(pixels: Tensor, amount: Tensor) -> Tensor:
    step = (2 ** amount.round()).to(torch.uint8)
    return pixels - pixels % step


def _solarize(pixels: Tensor, amount: Tensor) -> Tensor:
    """Inverts bright pixels; at 0 none, not even white ones."""
    return torch.where(pixels.float() > 255 - amount, 255 - pixels, pixels)


def _autocontrast(pixels: Tensor, amount: Tensor) -> Tensor:
    """Stretch each channel from its smallest … largest value to 0 … 255; a constant channel is unchanged."""
    low, high = pixels.amin((1, 2), keepdim=True).float(), pixels.amax((1, 2), keepdim=True).float()
    spread = (pixels.float() - low) * (255 / (high - low).clamp_min(1))
    return torch.where(high > low, _to_bytes(spread), pixels)


def _equalize(pixels: Tensor, amount: Tensor) -> Tensor:
    """Each channel's histogram made even, by PIL's integer table."""
    num, channels = len(pixels), pixels.shape[3]
    offsets = 256 * torch.arange(num * channels, device=pixels.device).view(num, 1, 1, channels)
    places = pixels.long() + offsets
    counts = torch.bincount(places.flatten(), minlength=num * channels * 256).view(-1, 256)
    last = 255 - (counts.flip(1) > 0).long().argmax(1, keepdim=True)
    step = (counts.sum(1, keepdim=True) - counts.gather(1, last)) // 255
    before = counts.cumsum(1) - counts
    table = ((before + step // 2) // step.clamp_min(1)).clamp_max(255)
    table = torch.where(step == 0, torch.arange(256, device=pixels.device), table).to(torch.uint8)
    return table.flatten()[places]


_COLOURS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "brightness": _brightness,
    "colour": _colour,
    "contrast": _contrast,
    "sharpness": _sharpness,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
