"""CHAI: an embedding by random triplets from two levels of labels, or from labels and label-blind groups.

The classes are the diseases, the data set's groups the similarity groups inside them. The triplets are drawn once, by
the seed; an epoch is one pass over all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fsl_dist.errors import RequestError
from fsl_dist.methods.method import (
    Batch,
    BatchLoss,
    EpochPlan,
    EpochSize,
    Method,
    MethodContext,
    MethodSettings,
    TrainingIndex,
    Traits,
    Validate,
    on_device,
)
from fsl_dist.samplers.triplet import (
    Sampling,
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
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.selection import Selection
    from fsl_dist.distributed import WorkerGroup

Ints = NDArray[np.int64]


@settings("method")
class CHAIConfig(MethodSettings):
    """CHAI: random triplets by class (disease) and by similarity group;
    its embedding is that of backbone.map_head=1024."""

    kind: Literal["chai"] = "chai"
    sampling: Sampling = "disease"
    """which images are similar and which are not (CHAI section 2.2). disease: same class, other class; hierarchical:
    same group, other class; non_hierarchical: same group, other group; joint: half by class, half by label-blind
    group"""
    margin: Annotated[float, Field(gt=0)] = 1.0
    """l of CHAI Eq. 1, in units of squared distance"""
    triplets: Annotated[int, Field(ge=1)] = 150_000
    """triplets drawn once per run; an epoch uses all of them, `training.batch_size` per step. At least 1"""
    validation_triplets: Annotated[int, Field(ge=0)] = 50_000
    """triplets drawn once from the images that a validation is made on; 0 = none"""
    image_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of the training images, drawn by the seed, that triplets are made of, above 0 to 1 (the paper: half for
    hierarchical and non_hierarchical)"""
    kmeans_groups: Annotated[int, Field(ge=2)] = 37
    """joint, where the data set has no blind groups: k-means groups of the start network's features"""

    @property
    def traits(self) -> Traits:
        """Scored by retrieval, and validated by triplets if possible;
        learns from groups, so units are kept together."""
        return Traits(
            prepares_from_all_images=True,
            protocols=("retrieval", "knn"),
            own_metrics=("triplet/acc",) if self.validation_triplets else (),
            kept_together="unit",
        )

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """An epoch is `triplets` triplets, `training.batch_size` per step."""
        steps = triplet_steps(self.triplets, plan.batch_size)
        return EpochSize(steps, 1, 3 * min(plan.batch_size, self.triplets), is_global=True)

    def build(self, context: MethodContext) -> CHAI:
        """The method over the training images."""
        return CHAI(context, self)


class CHAI(Method):
    """Triplets of the training images with CHAI's loss;
    `joint` may use k-means groups that it computes at the start."""

    metrics = ("train/active_triplets",)

    def __init__(self, context: MethodContext, method: CHAIConfig) -> None:
        self.method = method
        self.dataset = context.dataset
        self.catalogue = context.catalogue
        self.selection = context.selection
        self.seed = context.seed
        self.per_step = context.batch_size
        self.kmeans_runs = context.kmeans_runs
        self.device = context.device
        self.ids = draw_images(context.selection, method.image_fraction, self.seed)
        self.made_groups: Ints | None = None  # int64 [len(selection)], by k-means
        self.triplets: Ints | None = None  # int64 [num, 3] sample ids
        check_groups(method, self.catalogue, self.selection.ids, self.dataset)
        if not self._makes_groups:
            self._draw(self.catalogue.blind_groups[self.ids])

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
        """An epoch has ⌈triplets / batch⌉ steps."""
        return triplet_steps(self.method.triplets, self.per_step)

    def prepares_at(self, epoch: int, step: int) -> bool:
        """Where `joint` has to compute its groups first: at the start of the run."""
        return self.triplets is None

    def prepare(
        self, epoch: int, global_step: int, index: TrainingIndex, group: WorkerGroup
    ) -> dict[str, float]:
        """Groups for `joint` by k-means of the start network's features, then the triplets. Collective."""
        import torch

        features = index.features()
        made = torch.zeros(len(features), dtype=torch.int64)
        if group.is_first:
            made = torch.from_numpy(
                group_by_kmeans(features, self.method.kmeans_groups, seed=self.seed, starts=self.kmeans_runs)
            )
        if group.world_size > 1:  # use one worker's assignment: rounding on another machine may move an image
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
        from fsl_dist.losses.triplet import triplet_loss

        assert isinstance(batch.payload, np.ndarray)
        (triplets,) = on_device(outputs.device, batch.payload)
        loss, active = triplet_loss(outputs, triplets, self.method.margin)
        return BatchLoss(loss, {"train/active_triplets": active})

    def state(self) -> dict[str, Tensor | str | int]:
        """The groups that k-means computed: the network at that step no longer exists."""
        if self.made_groups is None:
            return {}
        import torch

        return {"blind_groups": torch.from_numpy(self.made_groups)}

    def load_state(self, state: dict[str, Tensor | str | int]) -> None:
        """Restore the groups of a checkpoint and draw the same triplets from them."""
        if "blind_groups" in state:
            import torch

            made = state["blind_groups"]
            assert isinstance(made, torch.Tensor)
            self._take_groups(made.cpu().numpy())

    def validation(self, stop: Selection) -> Validate | None:
        """`triplet/loss` and `triplet/acc` over triplets of the validation images, drawn once."""
        if not self.method.validation_triplets:
            return None
        import torch

        from fsl_dist.losses.triplet import score_triplets

        drawn = draw_validation(self.method, self.catalogue, stop, dataset=self.dataset, seed=self.seed)
        triplets = torch.from_numpy(drawn).to(self.device)

        def validate(vectors: NDArray[np.float32]) -> dict[str, float]:
            # A copy: vectors of an index are mapped read-only, which torch warns of.
            embedded = torch.tensor(vectors, device=self.device)
            loss, right = score_triplets(embedded, triplets, self.method.margin)
            return {"triplet/loss": loss, "triplet/acc": right}

        return validate


def makes_groups(method: CHAIConfig, catalogue: Catalogue) -> bool:
    """Whether label-blind groups are needed and the data set has none."""
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
    """Draw `num` triplets in equal parts, one for each of `keys`: int64 [num, 3] positions in the keys' images.

    Deterministic in (keys, seed, purpose). Raises RequestError if a part has no possible triplet; place: the name of
    the images in the error.
    """
    parts = []
    for number, part in enumerate(keys):
        share = num * (number + 1) // len(keys) - num * number // len(keys)
        if share and not count_anchors(part):
            alike = part.alike[part.alike >= 0]
            raise RequestError(
                f"method.kind=chai with method.sampling={method.sampling} finds no triplet among {place}: it needs two "
                f"similar images and a dissimilar one, and {len(alike)} images are labelled for that, in "
                f"{len(np.unique(alike))} sets (more images per class or group, or another method.sampling)"
            )
        if share:
            parts.append(draw_triplets(part, share, generator(seed, purpose, number)))
    return np.concatenate(parts)


def check_groups(method: CHAIConfig, catalogue: Catalogue, ids: Ints, dataset: str) -> None:
    """Raise RequestError where the training images `ids` lack the groups that the sampling needs,
    or these do not nest."""
    if method.sampling not in ("hierarchical", "non_hierarchical"):
        return
    who = f"method.kind=chai with method.sampling={method.sampling} needs similarity groups"
    labels, groups = catalogue.labels[ids], catalogue.groups[ids]
    if not (groups >= 0).any():
        raise RequestError(
            f"{who}; the {len(ids)} training images of data.dataset={dataset} have {len(np.unique(labels))} "
            "classes and no groups (resplit with group_column=COLUMN adds them; method.sampling=disease needs none)"
        )
    divided = find_divided_group(labels, groups) if method.sampling == "hierarchical" else None
    if divided is not None:
        group, first, second = divided
        names = catalogue.class_names
        raise RequestError(
            f"{who} that are inside one class each; in data.dataset={dataset} group "
            f"'{catalogue.group_names[group]}' has images of class '{names[first]}' and of '{names[second]}' "
            "(method.sampling=non_hierarchical accepts "
            "any groups)"
        )


def group_by_kmeans(features: NDArray[np.float32], num_groups: int, *, seed: int, starts: int) -> Ints:
    """Group of each image, that of its nearest k-means centre: int64 [n]. features: [n, C]. Deterministic in seed."""
    from fsl_dist.methods.prototypes import fit_class_prototypes

    means = fit_class_prototypes(features, num_groups, seed=seed, epoch=0, label=0, starts=starts)
    points = features.astype(np.float64) - means.mean(axis=0)
    centres = means.astype(np.float64) - means.mean(axis=0)
    distances = np.square(centres).sum(axis=1) - 2.0 * points @ centres.T
    return np.unique(distances.argmin(axis=1), return_inverse=True)[1].astype(np.int64)


def draw_validation(
    method: CHAIConfig, catalogue: Catalogue, stop: Selection, *, dataset: str, seed: int
) -> Ints:
    """Draw the validation triplets: int64 [validation_triplets, 3] positions in `stop.ids`, by the seed.

    They follow the run's sampling. `joint` with its own groups has them for training images only, and is validated by
    classes. Raises RequestError if the images of `stop` have no possible triplet.
    """
    blind_groups = catalogue.blind_groups[stop.ids]
    keys = keys_of(method, catalogue, stop.ids, blind_groups)
    if makes_groups(method, catalogue):
        keys = keys[:1]
    place = (
        f"the {len(stop)} validation images of data.dataset={dataset} (method.validation_triplets=0 "
        "goes without)"
    )
    return draw_parts(keys, method, method.validation_triplets, seed, "validation_triplets", place)
