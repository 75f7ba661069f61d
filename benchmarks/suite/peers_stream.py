"""What one would otherwise read and decode photographs with, each tuned as its documentation says.

All do the work of `PhotoWork`: decode, shorter side to `resize`, crop `size`, mirror half, normalise, float32 batches
in storage order. A reader is called once a round and gives its batches; what it needs to live over rounds it keeps.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nvidia.dali.fn as fn
import torch
import torch.utils.dlpack
import webdataset
from nvidia.dali import pipeline_def, types
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import io as torchvision_io
from torchvision import transforms as v1
from torchvision.transforms import v2

Reader = Callable[[], Iterator[torch.Tensor]]
"""Batches of one pass over all images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PhotoWork:
    """The work of every contender."""

    files: tuple[Path, ...]
    """loose image files"""
    shards: tuple[Path, ...]
    """tar shards with the same images"""
    resize: int = 256
    """pixels of the shorter side"""
    size: int = 224
    """side of the crop"""
    batch: int = 64
    threads: int = 2
    """worker processes, or decoding threads"""
    is_random: bool = True
    """random crop and mirror; False: the centre crop"""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class _Files(Dataset[torch.Tensor]):
    """Loose files and what opens and transforms one."""

    def __init__(
        self, work: PhotoWork, open_image: Callable[[Path], Any], transform: Callable[[Any], Any]
    ) -> None:
        self._files, self._open, self._transform = work.files, open_image, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, position: int) -> torch.Tensor:
        image: torch.Tensor = self._transform(self._open(self._files[position]))
        return image


def _open_by_pil(file: Path | io.BytesIO) -> Image.Image:
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _decode_to_tensor(file: Path) -> torch.Tensor:
    return torchvision_io.decode_jpeg(
        torchvision_io.read_file(str(file)), mode=torchvision_io.ImageReadMode.RGB
    )


def _transform_v1(work: PhotoWork) -> Callable[[Any], Any]:
    crop = (
        [v1.RandomCrop(work.size), v1.RandomHorizontalFlip()]
        if work.is_random
        else [v1.CenterCrop(work.size)]
    )
    return v1.Compose([v1.Resize(work.resize), *crop, v1.ToTensor(), v1.Normalize(work.mean, work.std)])


def _transform_v2(work: PhotoWork, *, is_tensor: bool) -> Callable[[Any], Any]:
    crop = (
        [v2.RandomCrop(work.size), v2.RandomHorizontalFlip()]
        if work.is_random
        else [v2.CenterCrop(work.size)]
    )
    first = [] if is_tensor else [v2.PILToTensor()]
    last = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(work.mean, work.std)]
    return v2.Compose([v2.Resize(work.resize, antialias=True), *crop, *first, *last])


def _loading(loader: DataLoader[torch.Tensor]) -> Reader:
    """Passes over a loader whose workers live over them; they are forked now, while no other thread lives."""
    iter(loader)
    return lambda: iter(loader)


def _files_loader(work: PhotoWork, dataset: _Files) -> Reader:
    return _loading(
        DataLoader(dataset, batch_size=work.batch, num_workers=work.threads, persistent_workers=True)
    )


def dataloader_v2(work: PhotoWork) -> Reader:
    """torch DataLoader, PIL and torchvision v2."""
    return _files_loader(work, _Files(work, _open_by_pil, _transform_v2(work, is_tensor=False)))


def dataloader_v2_tensors(work: PhotoWork) -> Reader:
    """torch DataLoader, torchvision's own JPEG decoder and v2 on tensors."""
    return _files_loader(work, _Files(work, _decode_to_tensor, _transform_v2(work, is_tensor=True)))


def dataloader_v1(work: PhotoWork) -> Reader:
    """torch DataLoader, PIL and torchvision v1."""
    return _files_loader(work, _Files(work, _open_by_pil, _transform_v1(work)))


def webdataset_pil(work: PhotoWork) -> Reader:
    """webdataset with PIL and torchvision v2, batched by its workers, which share the shards."""
    transform = _transform_v2(work, is_tensor=False)

    def decode(sample: dict[str, bytes]) -> torch.Tensor:
        image: torch.Tensor = transform(_open_by_pil(io.BytesIO(sample["jpg"])))
        return image

    dataset = webdataset.WebDataset([str(shard) for shard in work.shards], shardshuffle=False)
    dataset = dataset.map(decode).batched(work.batch, collation_fn=torch.stack)
    return _loading(DataLoader(dataset, batch_size=None, num_workers=work.threads, persistent_workers=True))


def _dali_reader(work: PhotoWork, transform: Callable[[Any], Any]) -> Reader:
    """A pipeline over the shards by DALI's reader, two batches ahead, and not further than the pass."""

    @pipeline_def(batch_size=work.batch, num_threads=work.threads, device_id=None)
    def read() -> Any:
        encoded = fn.readers.webdataset(
            paths=[str(shard) for shard in work.shards],
            ext=["jpg"],
            name="reader",
            missing_component_behavior="error",
        )
        return transform(encoded)

    pipeline = read()
    pipeline.build()
    batches, ahead = -(-len(work.files) // work.batch), 2

    def run() -> Iterator[torch.Tensor]:
        left = len(work.files)
        for _ in range(min(ahead, batches)):
            pipeline.schedule_run()
        for number in range(batches):
            (images,) = pipeline.share_outputs()
            # The reader continues with the first images where the last batch of a pass is not full.
            yield _first(images, min(left, work.batch))
            left -= work.batch
            pipeline.release_outputs()
            if number + ahead < batches:
                pipeline.schedule_run()

    return run


def _first(images: Any, number: int) -> torch.Tensor:
    """The first images of a batch, without a copy; of images that are not of one size, as many zeros."""
    if not images.is_dense_tensor():
        return torch.zeros(number)
    batch: torch.Tensor = torch.utils.dlpack.from_dlpack(images.as_tensor())
    return batch[:number]


def _normalised(work: PhotoWork, images: Any, **crop: Any) -> Any:
    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT,
        output_layout="CHW",
        mean=[255 * mean for mean in work.mean],
        std=[255 * std for std in work.std],
        **crop,
    )


def _draws(work: PhotoWork) -> tuple[dict[str, Any], Any]:
    """Arguments of a random crop, and of mirroring."""
    if not work.is_random:
        return {}, 0
    place = {axis: fn.random.uniform(range=(0.0, 1.0)) for axis in ("crop_pos_x", "crop_pos_y")}
    return place, fn.random.coin_flip()


def dali_plain(work: PhotoWork) -> Reader:
    """DALI as its examples have it: reader, decoder, resize, crop_mirror_normalize."""

    def transform(encoded: Any) -> Any:
        place, mirror = _draws(work)
        images = fn.resize(
            fn.decoders.image(encoded), resize_shorter=work.resize, interp_type=types.INTERP_LINEAR
        )
        return _normalised(work, images, crop=(work.size, work.size), mirror=mirror, **place)

    return _dali_reader(work, transform)


def dali_fused(work: PhotoWork) -> Reader:
    """DALI with its operator that resizes only what the crop keeps."""

    def transform(encoded: Any) -> Any:
        place, mirror = _draws(work)
        images = fn.resize_crop_mirror(
            fn.decoders.image(encoded),
            resize_shorter=work.resize,
            crop=(work.size, work.size),
            mirror=mirror,
            interp_type=types.INTERP_LINEAR,
            **place,
        )
        return _normalised(work, images)

    return _dali_reader(work, transform)


def dali_decoding_alone(work: PhotoWork) -> Reader:
    """The limit: reader and decoder, whole images, nothing after."""
    return _dali_reader(work, fn.decoders.image)


PEERS: dict[str, Callable[[PhotoWork], Reader]] = {
    "DataLoader, PIL, v2": dataloader_v2,
    "DataLoader, v2 on tensors": dataloader_v2_tensors,
    "DataLoader, PIL, v1": dataloader_v1,
    "webdataset, PIL, v2": webdataset_pil,
    "plain DALI": dali_plain,
    "DALI, fused operator": dali_fused,
}
"""Those with worker processes first: they are to fork before threads start."""
