"""MobileNetV2 in two parts, and the views of images that its training sees: of pixels, or of cached activations."""

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import v2

from fsl_dist.errors import RequestError

DIM = 1280
"""of an embedding: the last feature map's mean"""
FIRST_TRAINED = 14
"""of the 19 blocks: those before it are frozen where the last blocks are fine-tuned. The rest has 1.8 of 2.2 million
weights"""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AT_A_TIME = 64


def load_blocks(weights: Path) -> nn.Sequential:
    """MobileNetV2's 19 blocks with the weights of a file; batch norm is torch's default, so its statistics keep up
    with short runs.

    Raises:
        RequestError: the file is not there, or is not torchvision's MobileNetV2.
    """
    network = models.mobilenet_v2()
    try:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (
        OSError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise RequestError(
            f"weights {weights} cannot be loaded as torchvision's MobileNetV2 ({reason}); "
            "name a state dict of torchvision.models.mobilenet_v2"
        ) from error
    return network.features


class Embedder(nn.Module):
    """Blocks and the mean over the feature map: float32 [n, channels, h, w] → [n, 1280]."""

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, views: Tensor) -> Tensor:
        embedded: Tensor = self.blocks(views).mean((2, 3))
        return embedded


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random resized crop (half to all of the area), colour by 0.2, and a mirror image where that is allowed."""

    size: int
    has_flip: bool

    def __call__(self, pixels: Tensor) -> Tensor:
        """uint8 [3, h, w] → float32 [3, size, size], by torch's global generator."""
        steps: list[nn.Module] = [
            v2.RandomResizedCrop(self.size, (0.5, 1.0), antialias=True),
            *([v2.RandomHorizontalFlip()] if self.has_flip else []),
            v2.ColorJitter(0.2, 0.2, 0.2),
            *_to_float(),
        ]
        changed: Tensor = v2.Compose(steps)(pixels)
        return changed

    def plain(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] → float32 [n, 3, size, size], without anything random."""
        changed: Tensor = v2.Compose([v2.Resize((self.size, self.size), antialias=True), *_to_float()])(
            pixels
        )
        return changed


def _to_float() -> list[nn.Module]:
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]


class PixelViews:
    """What the whole network is trained on: fresh augmented views of pixels."""

    def __init__(self, pixels: Tensor, augmentation: Augmentation) -> None:
        self._pixels, self._augmentation = pixels, augmentation

    def draw(self, rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        """float32 [len(rows), 3, size, size]."""
        torch.manual_seed(int(draw.integers(2**62)))
        return torch.stack([self._augmentation(self._pixels[row]) for row in rows.tolist()])

    def plain(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """The same without augmentation, in order, some at a time."""
        for start in range(0, len(rows), _AT_A_TIME):
            yield self._augmentation.plain(self._pixels[torch.from_numpy(rows[start : start + _AT_A_TIME])])


class ActivationViews:
    """What the last blocks are trained on: cached activations of the frozen blocks, some augmented copies of each
    image."""

    def __init__(self, plain: Tensor, augmented: Tensor, positions: NDArray[np.int64]) -> None:
        """plain: float16 [n, c, h, w]; augmented: float16 [copies, num_train, c, h, w]; positions: of row i in
        `augmented`."""
        self._plain, self._augmented, self._positions = plain, augmented, positions

    def draw(self, rows: NDArray[np.int64], draw: np.random.Generator) -> Tensor:
        """float32 [len(rows), c, h, w]: one of the copies of each row."""
        copies = draw.integers(len(self._augmented), size=len(rows))
        return self._augmented[torch.from_numpy(copies), torch.from_numpy(self._positions[rows])].float()

    def plain(self, rows: NDArray[np.int64]) -> Iterator[Tensor]:
        """The activations of images as they are, in order, some at a time."""
        for start in range(0, len(rows), _AT_A_TIME):
            yield self._plain[torch.from_numpy(rows[start : start + _AT_A_TIME])].float()


Views = PixelViews | ActivationViews


@torch.no_grad()
def embed(network: nn.Module, views: Views, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32 [len(rows), 1280]: embeddings without augmentation."""
    network.eval()
    parts = [network(part).numpy() for part in views.plain(rows)]
    return np.concatenate(parts) if parts else np.zeros((0, DIM), np.float32)
