"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) of the images of a batch, drawn without state.

Images are mixed in pairs: positions 2j and 2j + 1 of the batch with each other; in an odd batch the last image is not
mixed. A pair is never split between workers or chunks (`fsl_dist.training.step`), so no image is decoded twice.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fsl_dist.seeding import uniforms


@dataclass(frozen=True, slots=True)
class Mixing:
    """The weight and the region of the partner that is mixed into each image of a batch."""

    strength: NDArray[np.float32]
    """float32 [n]: weight of the partner inside the box, 0 … 1; 0: the image is unchanged"""
    box: NDArray[np.float32]
    """float32 [n, 4]: first row and column and last row and column, as shares of the side"""

    @property
    def partner(self) -> NDArray[np.int64]:
        """Position of each image's partner in the batch, int64 [n]; its own position if it has none."""
        own = np.arange(len(self.strength))
        return np.where(own ^ 1 < len(own), own ^ 1, own)

    @property
    def share(self) -> NDArray[np.float32]:
        """Share of the partner in each image, float32 [n]: 1 − λ of the papers."""
        top, left, bottom, right = self.box.T
        return self.strength * (bottom - top) * (right - left)

    def apply(self, images: torch.Tensor, positions: NDArray[np.int64]) -> torch.Tensor:
        """Mix images with their partners.

        A pixel on the edge of a box is mixed by the part of it that is inside, so that `share` is exact at any size.

        Args:
            images: float32 [m, C, S, S], or features [m, D] (without boxes).
            positions: int64 [m], positions of the images in the batch. Partners must both be present, except for a
                single image, which is not mixed.

        Returns:
            A tensor of the same shape and memory format; `images` are not modified.
        """
        place = {int(position): row for row, position in enumerate(positions)}
        rows = [place.get(int(position), -1) for position in self.partner[positions]]
        if len(rows) == 1:
            return images
        assert min(rows) >= 0, "a pair was divided"
        mask = torch.from_numpy(self._mask(positions, images.shape)).to(images.device)
        partners = images[torch.tensor(rows, device=images.device)]
        return torch.lerp(images, partners, mask)

    def _mask(self, positions: NDArray[np.int64], shape: torch.Size) -> NDArray[np.float32]:
        """Weight of the partner at each pixel: float32 [m, 1, S, S], or [m, 1, …] if it is constant."""
        strength, box = self.strength[positions], self.box[positions]
        if (box == (0, 0, 1, 1)).all():
            return strength.reshape(-1, *[1] * (len(shape) - 1))

        def covered(first: NDArray[np.float32], last: NDArray[np.float32], side: int) -> NDArray[np.float32]:
            pixel = np.arange(side, dtype=np.float32)
            inside = np.minimum(last[:, None] * side, pixel + 1) - np.maximum(first[:, None] * side, pixel)
            return inside.clip(0, 1)

        rows, columns = covered(box[:, 0], box[:, 2], shape[2]), covered(box[:, 1], box[:, 3], shape[3])
        return (strength[:, None, None] * rows[:, :, None] * columns[:, None, :])[:, None]


def draw_mixing(ids: NDArray[np.int64], *, seed: int, epoch: int, mixup: float, cutmix: float) -> Mixing:
    """The mixing of a batch: a function of the seed, the epoch and the ids of each pair.

    Args:
        ids: int64 [n], the batch's samples.
        seed: of the run.
        epoch: from 0.
        mixup: α of λ ~ Beta(α, α) for Mixup; 0: never.
        cutmix: the same for CutMix. With both, each pair is mixed by either with equal chances.

    Returns:
        The mixing; both images of a pair have the same λ.
    """
    from scipy.special import betaincinv

    num_pairs, alone = divmod(len(ids), 2)
    own = uniforms(seed, "mix", epoch, ids[: 2 * num_pairs], 4)
    draws = (
        own[::2] + own[1::2]
    ) % 1  # uniform, and dependent on both ids: a repeated image is mixed differently
    is_cut = draws[:, 0] < 0.5 if mixup and cutmix else np.full(num_pairs, cutmix > 0)
    alpha = np.where(is_cut, cutmix, mixup)
    removed = 1 - betaincinv(alpha, alpha, draws[:, 1])
    half = np.sqrt(removed)[:, None] / 2
    centre = draws[:, 2:4]
    box = np.concatenate([centre - half, centre + half], axis=1).clip(0, 1)
    box = np.where(is_cut[:, None], box, [0, 0, 1, 1])
    strength = np.where(is_cut, 1, removed)
    stays = np.array([[0, 0, 1, 1]] * alone).reshape(alone, 4)
    return Mixing(
        np.append(np.repeat(strength, 2), np.zeros(alone)).astype(np.float32),
        np.concatenate([np.repeat(box, 2, axis=0), stays]).astype(np.float32),
    )
