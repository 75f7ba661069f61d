"""Embeddings of augmented images for `benchmarks.vectors`: characters through a small trained network, and crops of
photographs through MobileNetV2."""

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from fsl_dist.losses.nca import few_shot_nca_loss
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from index.base.errors import RequestError

_WEIGHTS = Path("weights") / "mobilenet_v2_imagenet.pth"
_PHOTOGRAPHS = ("grocery.tar", "ham10000_lt.tar", "wbc_masks.tar")
_MASKS = "masks"
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_STEPS, _CLASSES, _PER_CLASS = 600, 32, 4
_IMAGES_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Encoder:
    """Draws augmented images and embeds them."""

    dim: int
    draw: Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    """(random numbers, n) → embeddings float32 [n, dim], labels int64 [n]"""


def encode_characters(archives: Path) -> Encoder:
    """128 numbers of a Conv4 that was trained for two minutes to tell half of Omniglot's characters apart."""
    images, labels = _read_images(archives, ("omniglot.tar.gz",), side=28, mode="L")
    pixels = 1 - images
    torch.manual_seed(0)
    config = BackboneConfig(name="conv4", embedding_dim=128)
    network = build_network(config, sample_shape=(1, 28, 28))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-4)
    rows_of = [np.flatnonzero(labels == label) for label in range(0, int(labels.max()) + 1, 2)]
    rng = np.random.default_rng(0)
    for step in range(_STEPS):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / _STEPS)
        classes = rng.choice(len(rows_of), _CLASSES, replace=False)
        rows = np.concatenate([rng.choice(rows_of[c], _PER_CLASS, replace=False) for c in classes])
        turned = _transform(pixels[rows], _turns(rng, len(rows)), 28)
        targets = torch.arange(_CLASSES).repeat_interleave(_PER_CLASS)
        loss, _ = few_shot_nca_loss(network(turned), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()

    def draw(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(0, len(labels), num)
        return _embed(network, pixels, rows, _turns(rng, num), 28), labels[rows]

    return Encoder(128, draw)


def encode_photographs(archives: Path) -> Encoder:
    """1280 numbers of ImageNet's MobileNetV2 for crops of 96 px."""
    images, labels = _read_images(archives, _PHOTOGRAPHS, side=128, mode="RGB")
    weights = archives / _WEIGHTS
    if not weights.is_file():
        raise RequestError(f"the vectors of photographs need {weights}, which does not exist")
    network = build_network(
        BackboneConfig(name="mobilenet_v2", weights=str(weights)), sample_shape=(3, 96, 96)
    ).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in _IMAGENET)
    pixels = (images - mean) / std

    def draw(rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        rows = rng.integers(0, len(labels), num)
        return _embed(network, pixels, rows, _crops(rng, num), 96), labels[rows]

    return Encoder(1280, draw)


def _read_images(
    archives: Path, names: tuple[str, ...], *, side: int, mode: str
) -> tuple[torch.Tensor, np.ndarray]:
    """All images of the archives, float32 [n, channels, side, side] in 0 … 1, and their class folders as labels."""
    pixels, classes = [], []
    for name in names:
        path = archives / name
        if not path.is_file():
            raise RequestError(
                f"these vectors need {name}; FSL_DIST_TEST_DATA must name the folder with the archives of real data"
            )
        with tarfile.open(path) as members:
            for member in members:
                file = Path(member.name)
                if file.suffix.lower() not in (".jpg", ".png") or _MASKS in file.parts:
                    continue
                content = members.extractfile(member)
                assert content is not None
                image = Image.open(io.BytesIO(content.read())).convert(mode)
                pixels.append(np.asarray(image.resize((side, side), Image.Resampling.BOX)))
                classes.append(f"{name}/{file.parent}")
    stacked = torch.from_numpy(np.stack(pixels)).view(len(pixels), side, side, -1)
    _, labels = np.unique(classes, return_inverse=True)
    return stacked.permute(0, 3, 1, 2).float() / 255, labels.astype(np.int64)


def _turns(rng: np.random.Generator, num: int) -> np.ndarray:
    """Small rotations, scales, shears and shifts: float32 [num, 2, 3], as `affine_grid` takes them."""
    angle, shear = rng.uniform(-0.25, 0.25, num), rng.uniform(-0.2, 0.2, num)
    scale = rng.uniform(0.85, 1.2, (num, 2))
    turns = np.empty((num, 2, 3))
    turns[:, 0, 0], turns[:, 0, 1] = scale[:, 0] * np.cos(angle), shear - np.sin(angle)
    turns[:, 1, 0], turns[:, 1, 1] = np.sin(angle), scale[:, 1] * np.cos(angle)
    turns[:, :, 2] = rng.uniform(-0.12, 0.12, (num, 2))
    return turns.astype(np.float32)


def _crops(rng: np.random.Generator, num: int) -> np.ndarray:
    """Crops of 25 to 100 % of the area, half of them mirrored: float32 [num, 2, 3]."""
    size = np.sqrt(rng.uniform(0.25, 1, num))
    crops = np.zeros((num, 2, 3))
    crops[:, 0, 0] = size * rng.choice([-1, 1], num)
    crops[:, 1, 1] = size
    crops[:, :, 2] = rng.uniform(-1, 1, (num, 2)) * (1 - size[:, None])
    return crops.astype(np.float32)


def _transform(pixels: torch.Tensor, transforms: np.ndarray, side: int) -> torch.Tensor:
    """The images [n, channels, …] under affine maps float32 [n, 2, 3]: [n, channels, side, side]."""
    grid = functional.affine_grid(
        torch.from_numpy(transforms), [len(pixels), pixels.shape[1], side, side], align_corners=False
    )
    return functional.grid_sample(pixels, grid, padding_mode="border", align_corners=False)


@torch.no_grad()
def _embed(
    network: torch.nn.Module, pixels: torch.Tensor, rows: np.ndarray, transforms: np.ndarray, side: int
) -> np.ndarray:
    """Embeddings float32 [n, dim] of the images at `rows` under their transforms."""
    parts = []
    for start in range(0, len(rows), _IMAGES_AT_ONCE):
        some = slice(start, start + _IMAGES_AT_ONCE)
        parts.append(network(_transform(pixels[rows[some]], transforms[some], side)).numpy())
    return np.concatenate(parts)


ENCODERS = {"omniglot": encode_characters, "photographs": encode_photographs}
