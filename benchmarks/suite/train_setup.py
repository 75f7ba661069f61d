"""What the training benchmarks train on: a small packed data set, and runs over it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.suite.report import BenchOptions
from fsl_dist.config import RunConfig, load_config
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.distributed import WorkerGroup
from fsl_dist.training.loop import Trainer

_CLASSES, _IMAGES_A_CLASS, _SIDE = 30, 40, 96
FEATURE_DIM = 512

IMAGES = ("data.resize=exact", "training.patience=0", "run.seed=0")
NETWORKS = {
    # Omniglot's size; torchvision's network at the size its first figures were taken at; features of a ResNet18.
    "conv4": ("backbone.name=conv4", "data.channels=1", "data.mean=[0.5]", "data.std=[0.5]", "data.resize_size=28",
              "data.image_size=28"),
    "resnet18": ("backbone.name=resnet18", "data.resize_size=72", "data.image_size=64"),
    "resnet18 at 224 px": ("backbone.name=resnet18", "data.resize_size=256", "data.image_size=224"),
    "mlp": ("backbone.name=mlp",),
}  # fmt: skip
# A learning rate that moves nothing: steps repeat one batch, and a network that knows it by heart has gradients so
# small (denormal) that a step takes 9 times as long.
METHODS = {
    "pcn": ("method.kind=pcn", "method.clusters=4", "training.optimizer=adam", "evaluation.delta_tau=[0]", "training.lr=1e-6",
            "episode.n_way=10", "episode.k_shot=10", "episode.n_query=5"),
    # The batch's statistics in one group, as a plain loop takes them; `auto` would take groups of 32.
    # The loss is the paper's, as the loop by hand has it.
    "deep_knn": ("method.kind=deep_knn", "method.loss=hinge", "method.k_same=5", "method.m_other=5", "method.margin=1.0",
                 "method.normalise=false", "method.classes_per_batch=9", "training.batch_size=90",
                 "training.optimizer=sgd", "training.lr=1e-6", "backbone.batch_norm=batch"),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchData:
    """A packed data set and features of its samples."""

    dataset: Path
    features: Path

    def config(self, network: str, method: str, run: Path, more: Sequence[str] = ()) -> RunConfig:
        """A run of one of `NETWORKS` and `METHODS`; `more` goes over it."""
        features = (f"data.features={self.features}",) if network == "mlp" else ()
        places = (*features, f"data.dataset={self.dataset}", f"run.dir={run}")
        settings = (*IMAGES, *NETWORKS[network], *METHODS[method], *places, *more)
        by_key = {setting.partition("=")[0]: setting for setting in settings}
        return load_config(None, list(by_key.values()))


def make_data(options: BenchOptions) -> BenchData:
    """Pack smooth random photographs of 30 classes, unless the options name a data set; features are random."""
    dataset = options.dataset or _pack_images(options.folder / "images", options.folder / "packed")
    features = options.folder / "features.npy"
    num = Catalogue.open(dataset).num_samples
    np.save(features, np.random.default_rng(0).normal(size=(num, FEATURE_DIM)).astype(np.float32))
    return BenchData(Path(dataset), features)


def describe_data(options: BenchOptions) -> dict[str, object]:
    """What a report says of the data and of the threads it was measured with."""
    return {
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset"),
        "data": str(
            options.dataset or f"random JPEGs of {_SIDE} px, {_CLASSES} classes of {_IMAGES_A_CLASS}"
        ),
        "features": FEATURE_DIM,
        "rounds": options.rounds,
    }


def _pack_images(source: Path, dataset: Path) -> Path:
    from PIL import Image

    from fsl_dist.data.ingest.options import PackOptions
    from fsl_dist.data.ingest.pack import pack

    rng = np.random.default_rng(0)
    for label in range(_CLASSES):
        place = source / f"class{label:02d}"
        place.mkdir(parents=True)
        for number in range(_IMAGES_A_CLASS):
            coarse = rng.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
            image.save(place / f"{number:03d}.jpg", quality=90)
    pack(source, dataset, PackOptions(processes=1))
    return dataset


def make_trainer(config: RunConfig, group: WorkerGroup | None = None) -> Trainer:
    """The run's trainer in this process, its method prepared for the first step."""
    trainer = Trainer(config, group=group or WorkerGroup(), device=torch.device("cpu"), owner=None)
    if trainer.method.prepares_at(0, 0):
        trainer.train_index.move_to("bench")
        trainer.method.prepare(0, 0, trainer.train_index, trainer.group)
    trainer.network.train()
    return trainer
