"""Three ways to episodes of small images: this project's, loose files with a torch sampler, one tar per class.

All of them decode, mirror half of the images and normalise, and give an episode as one float32 tensor. The
project works in threads of one process, the two others in the worker processes of a DataLoader.
"""

import functools
import json
import os
import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset, Sampler, get_worker_info
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.suite.interleave import descendants, status_mb
from benchmarks.suite.tiny_images import SIDE
from fsl_dist.data.config import DataConfig
from fsl_dist.data.loader import Loader, Request, open_source
from fsl_dist.samplers.episode import EpisodeConfig, draw_episode, fit_selection

EPISODE = EpisodeConfig(n_way=10, k_shot=10, n_query=10)
WORKERS = 2
"""threads of the project, worker processes of the others"""
_MEAN, _STD = 0.5, 0.25


class Episodes(ABC):
    """A way to episodes over one folder of images."""

    @abstractmethod
    def batches(self, num: int) -> Iterator[torch.Tensor]:
        """The next `num` episodes: float32 [n_way · (k_shot + n_query), 1, SIDE, SIDE] each."""

    def run(self, num: int) -> int:
        """Take `num` episodes; how many images that was."""
        images = 0
        for batch in self.batches(num):
            assert batch.shape[1:] == (1, SIDE, SIDE)
            images += len(batch)
        assert images == num * EPISODE.n_way * EPISODE.images_per_class
        return images

    @abstractmethod
    def close(self) -> None:
        """Let go of files, threads and processes."""


class Shards(Episodes):
    """This project: a catalogue, byte ranges of shards, DALI where it is installed."""

    def __init__(self, folder: Path) -> None:
        config = DataConfig(
            dataset=str(folder),
            image_size=SIDE,
            resize_size=SIDE,
            channels=1,
            mean=(_MEAN,),
            std=(_STD,),
            threads=WORKERS,
        )
        self._source = open_source(config, seed=0)
        catalogue = self._source.catalogue
        self._train = fit_selection(catalogue.select("train"), EPISODE, catalogue.class_names)
        self._drawn = 0

    def batches(self, num: int) -> Iterator[torch.Tensor]:
        with Loader(self._source, self._requests(num)) as loader:
            for _, batch in loader:
                yield batch

    def _requests(self, num: int) -> Iterator[Request]:
        for _ in range(num):
            episode = draw_episode(self._train, EPISODE, seed=0, epoch=0, number=self._drawn)
            self._drawn += 1
            yield Request(np.concatenate([episode.support, episode.query], axis=1).ravel(), 0)

    def close(self) -> None:
        self._source.close()


def _transform() -> v2.Transform:
    return v2.Compose(
        [
            v2.ToImage(),
            v2.RandomHorizontalFlip(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((_MEAN,), (_STD,)),
        ]
    )


def _load_grey(path: str) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("L")


class _EpisodeSampler(Sampler[list[int]]):
    """Indices of one episode a batch, drawn as `draw_episode` draws them."""

    def __init__(self, labels: Sequence[int]) -> None:
        order = np.argsort(labels, kind="stable")
        self._members = np.split(order, np.cumsum(np.bincount(labels))[:-1])
        self._rng = np.random.default_rng(0)
        self.num = 0

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.num):
            classes = self._rng.choice(len(self._members), EPISODE.n_way, replace=False)
            drawn = [
                self._rng.choice(self._members[c], EPISODE.images_per_class, replace=False) for c in classes
            ]
            yield np.concatenate(drawn).tolist()


class LooseFiles(Episodes):
    """torchvision's ImageFolder, a batch sampler of episodes, and a DataLoader whose workers stay."""

    def __init__(self, folder: Path) -> None:
        dataset = ImageFolder(str(folder), transform=_transform(), loader=_load_grey)
        self._sampler = _EpisodeSampler(dataset.targets)
        self._loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=self._sampler, num_workers=WORKERS, persistent_workers=True
        )

    def batches(self, num: int) -> Iterator[torch.Tensor]:
        self._sampler.num = num
        for images, _ in self._loader:
            yield images

    def close(self) -> None:
        del self._loader  # its workers end with it


def _decode(sample: dict[str, Any], transform: v2.Transform) -> torch.Tensor:
    return transform(sample["png"])


class _ClassStreams(IterableDataset[torch.Tensor]):
    """One endless stream a class, opened when it is first drawn from; an episode takes the next images of each."""

    def __init__(self, folder: Path, num: torch.Tensor) -> None:
        self._paths = sorted(folder.glob("*.tar"))
        self._num = num
        self._streams: dict[int, Iterator[torch.Tensor]] = {}
        self._random: random.Random | None = None

    def __iter__(self) -> Iterator[torch.Tensor]:
        worker = get_worker_info()
        share, of = (worker.id, worker.num_workers) if worker else (0, 1)
        if self._random is None:
            self._random = random.Random(share)
        for _ in range(share, int(self._num), of):
            classes = self._random.sample(range(len(self._paths)), EPISODE.n_way)
            yield torch.stack(
                [next(self._stream(c)) for c in classes for _ in range(EPISODE.images_per_class)]
            )

    def _stream(self, label: int) -> Iterator[torch.Tensor]:
        if label not in self._streams:
            dataset = webdataset.WebDataset(
                str(self._paths[label]),
                shardshuffle=False,
                nodesplitter=None,
                workersplitter=None,
                empty_check=False,
            )
            decoded = dataset.decode("pill").map(functools.partial(_decode, transform=_transform()))
            self._streams[label] = iter(decoded.repeat())
        return self._streams[label]


class ClassTars(Episodes):
    """One tar a class, each a webdataset stream that stays open, in a DataLoader whose workers stay."""

    def __init__(self, folder: Path) -> None:
        # In shared memory: the workers that stay see how many episodes are wanted next.
        self._num = torch.zeros((), dtype=torch.int64).share_memory_()
        self._loader: DataLoader[torch.Tensor] = DataLoader(
            _ClassStreams(folder, self._num), batch_size=None, num_workers=WORKERS, persistent_workers=True
        )

    def batches(self, num: int) -> Iterator[torch.Tensor]:
        self._num.fill_(num)
        yield from self._loader

    def close(self) -> None:
        del self._loader


WAYS: dict[str, Callable[[Path], Episodes]] = {"shards": Shards, "files": LooseFiles, "class-tars": ClassTars}


def measure_start(way: str, folder: Path, num: int) -> dict[str, float]:
    """From an imported process to the first batch, and what `num` episodes then cost in memory and open files.

    `start_s`: seconds; `memory_mb`: peak of this process over what it had before, and what its children have to
    themselves; `open_files`: the most of one process over what it had open before.
    """
    before_mb, before_files = status_mb("self", "VmRSS"), _open_files("self")
    started = time.perf_counter()
    episodes = WAYS[way](folder)
    batches = episodes.batches(num)
    next(batches)
    start_s = time.perf_counter() - started
    open_files = _open_files("self") - before_files
    for _ in batches:
        open_files = max(open_files, _open_files("self") - before_files)
    children = descendants(os.getpid())
    memory_mb = status_mb("self", "VmHWM") - before_mb + sum(map(_private_mb, children))
    open_files = max([open_files, *map(_open_files, children)])
    episodes.close()
    return {"start_s": start_s, "memory_mb": memory_mb, "open_files": open_files}


def _private_mb(pid: int) -> float:
    """Memory that a process shares with no other, 10⁶ bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1.024e-3


def _open_files(pid: int | str) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


if __name__ == "__main__":
    print(json.dumps(measure_start(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))))
