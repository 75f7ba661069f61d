"""CHAI: an embedding by random triplets from two levels of labels, or from labels and label-blind groups.

The classes are the diseases, the data set's groups the similarity groups inside them. The triplets are drawn once, by
the seed; an epoch goes through all of them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fsl_dist.config import RunConfig
from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.selection import Selection
from fsl_dist.distributed import WorkerGroup
from fsl_dist.errors import RequestError
from fsl_dist.losses.triplet import triplet_loss
from fsl_dist.methods.config import CHAIConfig
from fsl_dist.methods.method import Batch, BatchLoss, Memoryless, TrainingIndex
from fsl_dist.methods.prototypes import fit_class_prototypes
from fsl_dist.samplers.triplet import (
    TripletKeys,
    count_anchors,
    draw_triplets,
    find_divided_group,
    gather_images,
    sampling_keys,
    triplet_steps,
    triplets_of_step,
)
from fsl_dist.seeding import generator

Ints = NDArray[np.int64]


class CHAI(Memoryless):
    """Triplets over the training images, CHAI's loss; `joint` may keep k-means groups it made at the start."""

    is_global = True
    num_outputs = 0
    normalise = False
    metrics: tuple[str, ...] = ("train/active_triplets",)

    def __init__(
        self, config: RunConfig, method: CHAIConfig, catalogue: Catalogue, selection: Selection
    ) -> None:
        self.method = method
        self.dataset = config.data.dataset
        self.catalogue = catalogue
        self.selection = selection
        self.seed = config.run.seed
        self.per_step = config.training.batch_size
        self.kmeans_runs = config.evaluation.kmeans_runs
        self.ids = draw_images(selection, method.image_fraction, self.seed)
        self.made_groups: Ints | None = None  # int64 [len(selection)], by k-means
        self.triplets: Ints | None = None  # int64 [num, 3] sample ids
        check_groups(method, catalogue, selection.ids, self.dataset)
        if not self._makes_groups:
            self._draw(catalogue.blind_groups[self.ids])

    @property
    def _makes_groups(self) -> bool:
        return makes_groups(self.method, self.catalogue)

    def _draw(self, blind_groups: Ints) -> None:
        keys = keys_of(self.method, self.catalogue, self.ids, blind_groups)
        place = f"the {len(self.ids)} training images of data.dataset={self.dataset}"
        if self.method.image_fraction < 1:
            place += f" that method.image_fraction={self.method.image_fraction:g} leaves"
        drawn = draw_parts(keys, self.method, self.method.triplets, self.seed, "triplets", place)
        self.triplets = self.ids[drawn]

    def num_steps(self) -> int:
        """An epoch is ⌈triplets / batch⌉ steps."""
        return triplet_steps(self.method.triplets, self.per_step)

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Where `joint` has to make its groups first, at the run's start."""
        return self.triplets is None

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Groups for `joint` by k-means of the start network's features, then the triplets. Collective."""
        features = index.features()
        made = torch.zeros(len(features), dtype=torch.int64)
        if group.is_first:
            made = torch.from_numpy(
                group_by_kmeans(features, self.method.kmeans_groups, seed=self.seed, starts=self.kmeans_runs)
            )
        if group.world_size > 1:  # one worker's assignment: another machine's last bits may tip an image
            made = torch.tensor(
                [int(word) for word in group.share_text(" ".join(map(str, made.tolist()))).split()]
            )
        self._take_groups(made.numpy())
        return {"method/blind_groups": float(made.max() + 1)}

    def _take_groups(self, made: Ints) -> None:
        self.made_groups = made
        order = np.argsort(self.selection.ids)
        self._draw(made[order[np.searchsorted(self.selection.ids[order], self.ids)]])

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """The images of the step's triplets, each once."""
        assert self.triplets is not None
        rows = triplets_of_step(len(self.triplets), self.per_step, seed=self.seed, epoch=epoch, step=step)
        ids, triplets = gather_images(self.triplets[rows])
        return [Batch(ids, self.catalogue.labels[ids], payload=triplets)]

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """CHAI Eq. 1 over the step's triplets."""
        assert isinstance(batch.payload, np.ndarray)
        triplets = torch.from_numpy(batch.payload).to(outputs.device)
        loss, active = triplet_loss(outputs, triplets, self.method.margin)
        return BatchLoss(loss, {"train/active_triplets": active})

    def state(self) -> dict[str, Tensor | str | int]:
        """The groups that k-means made: the network that they were made with is gone."""
        return {} if self.made_groups is None else {"blind_groups": torch.from_numpy(self.made_groups)}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Take up the groups of a checkpoint and draw the same triplets from them."""
        if "blind_groups" in state:
            made = state["blind_groups"]
            assert isinstance(made, Tensor)
            self._take_groups(made.cpu().numpy())


def makes_groups(method: CHAIConfig, catalogue: Catalogue) -> bool:
    """Whether label-blind groups are wanted and the data set has none of its own."""
    return method.sampling == "joint" and not catalogue.blind_group_names


def draw_images(selection: Selection, fraction: float, seed: int) -> Ints:
    """Sample ids that triplets are made of: int64, ascending, `fraction` of the selection, by the seed alone."""
    num = max(1, round(fraction * len(selection)))
    if num == len(selection):
        return np.sort(selection.ids)
    return np.sort(generator(seed, "chai_images").choice(selection.ids, num, replace=False))


def keys_of(method: CHAIConfig, catalogue: Catalogue, ids: Ints, blind_groups: Ints) -> list[TripletKeys]:
    """`sampling_keys` of `ids` (int64 [n]) by the catalogue's labels and groups; blind_groups: int64 [n]."""
    return sampling_keys(method.sampling, catalogue.labels[ids], catalogue.groups[ids], blind_groups)


def draw_parts(
    keys: list[TripletKeys], method: CHAIConfig, num: int, seed: int, purpose: str, place: str
) -> Ints:
    """`num` triplets in equal parts, one for each of `keys`: int64 [num, 3] positions in the keys' images.

    Deterministic in (keys, seed, purpose). Raises RequestError where a part finds none; place: what its error calls the
    images.
    """
    parts = []
    for number, part in enumerate(keys):
        share = num * (number + 1) // len(keys) - num * number // len(keys)
        if share and not count_anchors(part):
            alike = part.alike[part.alike >= 0]
            raise RequestError(
                f"method.kind=chai with method.sampling={method.sampling} finds no triplet among {place}: it needs two "
                f"images alike and one unlike, and {len(alike)} images are labelled for that, in {len(np.unique(alike))} "
                "sets (more images a class or group, or another method.sampling)"
            )
        if share:
            parts.append(draw_triplets(part, share, generator(seed, purpose, number)))
    return np.concatenate(parts)


def check_groups(method: CHAIConfig, catalogue: Catalogue, ids: Ints, dataset: str) -> None:
    """Raise RequestError where the training images `ids` lack the groups that the sampling needs, or these do not nest."""
    if method.sampling not in ("hierarchical", "non_hierarchical"):
        return
    who = f"method.kind=chai with method.sampling={method.sampling} needs similarity groups"
    labels, groups = catalogue.labels[ids], catalogue.groups[ids]
    if not (groups >= 0).any():
        raise RequestError(
            f"{who}; the {len(ids)} training images of data.dataset={dataset} have {len(np.unique(labels))} classes and no "
            "groups (`fsl-dist resplit --group-column COLUMN` adds them; method.sampling=disease needs none)"
        )
    divided = find_divided_group(labels, groups) if method.sampling == "hierarchical" else None
    if divided is not None:
        group, first, second = divided
        names = catalogue.class_names
        raise RequestError(
            f"{who} that lie inside one class each; in data.dataset={dataset} group '{catalogue.group_names[group]}' has "
            f"images of class '{names[first]}' and of '{names[second]}' (method.sampling=non_hierarchical takes any groups)"
        )


def group_by_kmeans(features: NDArray[np.float32], num_groups: int, *, seed: int, starts: int) -> Ints:
    """Group of each image, that of its nearest k-means centre: int64 [n]. features: [n, C]. Deterministic in seed."""
    means = fit_class_prototypes(features, num_groups, seed=seed, epoch=0, label=0, starts=starts)
    points = features.astype(np.float64) - means.mean(axis=0)
    centres = means.astype(np.float64) - means.mean(axis=0)
    distances = np.square(centres).sum(axis=1) - 2.0 * points @ centres.T
    return np.unique(distances.argmin(axis=1), return_inverse=True)[1].astype(np.int64)


def draw_validation(config: RunConfig, method: CHAIConfig, catalogue: Catalogue, stop: Selection) -> Ints:
    """The validation triplets: int64 [validation_triplets, 3] positions in `stop.ids`, by the seed.

    By the run's sampling; `joint` with groups of its own making has them for training images only, and is validated
    by classes. Raises RequestError where the images of `stop` give none.
    """
    blind_groups = catalogue.blind_groups[stop.ids]
    keys = keys_of(method, catalogue, stop.ids, blind_groups)
    if makes_groups(method, catalogue):
        keys = keys[:1]
    place = (
        f"the {len(stop)} validation images of data.dataset={config.data.dataset} (method.validation_triplets=0 "
        "goes without)"
    )
    return draw_parts(keys, method, method.validation_triplets, config.run.seed, "validation_triplets", place)
