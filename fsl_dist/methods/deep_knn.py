"""Deep kNN: an anchor's nearest images of its class against its nearest images of the others.

`mining.source=batch` finds the neighbours inside the global mini-batch, like the paper. `dataset` finds them among all
training images, which was too expensive for the paper (its section 2.2): among their embeddings (`mining.in_memory`),
or decoded with the anchors (`mining.decoded`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fsl_dist.errors import ConfigError
from fsl_dist.methods.method import (
    Batch,
    BatchLoss,
    EpochPlan,
    EpochSize,
    Method,
    MethodContext,
    MethodSettings,
    Traits,
    on_device,
)
from fsl_dist.methods.stratified import StratifiedBatches
from fsl_dist.samplers.class_power import ClassPowerDraws
from fsl_dist.samplers.neighbourhood import anchors_per_step
from fsl_dist.samplers.shuffled import shuffled_steps
from index.base.settings import settings

if TYPE_CHECKING:
    from torch import Tensor

Neighbours = Annotated[int, Field(ge=1)] | Literal["all"]


@settings("method")
class DeepKNNConfig(MethodSettings):
    """Deep kNN: every image closer to its same-class neighbours than to its other-class ones."""

    kind: Literal["deep_knn"] = "deep_knn"
    loss: Literal["softmax", "hinge"] = "softmax"
    """softmax: the negative log-probability that a neighbour, drawn by exp(−d²/τ), has the anchor's class (Wu, Efros
    & Yu 2018); hinge: triplets of an anchor and two neighbours (deep kNN Eq. 2, 3)"""
    k_same: Neighbours = "all"
    """same-class neighbours of an anchor (K of deep kNN Eq. 3); all: its whole class, with loss=softmax"""
    m_other: Neighbours = "all"
    """other-class neighbours of an anchor (M of deep kNN Eq. 3); all: all other classes, with loss=softmax"""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """softmax: τ, in units of squared distance, above 0;
    0.2 suits heads on frozen features (docs/how_to/training.md)"""
    margin: Annotated[float, Field(gt=0)] = 0.2
    """hinge: α of deep kNN Eq. 2, in units of distance, above 0; the paper is silent (1.0 suits raw embeddings)"""
    normalise: bool = True
    """embeddings on the unit sphere"""
    classes_per_batch: Literal[0] | Annotated[int, Field(ge=2)] = 0
    """mining.source=batch: classes of a stratified batch, as in the paper; 0: images are drawn by
    mining.anchor_power, as those of mining.source=dataset always are"""
    cross_entropy_weight: Annotated[float, Field(ge=0)] = 0.0
    """weight of the cross entropy of a classifier that is added to the loss; 0: no classifier"""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """of the added cross entropy: share of a target that is spread over all classes"""

    def __post_init__(self) -> None:
        for name in ("k_same", "m_other"):
            if self.loss == "hinge" and getattr(self, name) == "all":
                raise ConfigError(
                    f"method.{name}=all belongs to method.loss=softmax; method.loss=hinge compares pairs and "
                    f"needs a number (method.{name}=5)"
                )

    @property
    def traits(self) -> Traits:
        """Neighbours may be mined in the whole data set; a classifier may be trained along."""
        has_classifier = self.cross_entropy_weight > 0
        return Traits(
            mines_dataset=True,
            has_classifier=has_classifier,
            protocols=("knn", "softmax") if has_classifier else ("knn",),
        )

    def count_epoch(self, plan: EpochPlan) -> EpochSize:
        """An epoch has as many images as the training set; decoded neighbours are included."""
        steps = -(-plan.num_images // plan.batch_size)
        if plan.mining.source == "batch" and self.classes_per_batch:
            return MethodSettings.count_epoch(self, plan)
        if plan.mining.source == "batch" or plan.mining.neighbours == "memory":
            return EpochSize(steps, 1, -(-plan.num_images // steps), is_global=True)
        num_same, num_other = self.check_decoded()
        images = anchors_per_step(plan.batch_size, num_same, num_other) * (1 + num_same + num_other)
        return EpochSize(steps, 1, images, is_global=True)

    def check_decoded(self) -> tuple[int, int]:
        """K and M for decoded neighbours. Raises ConfigError if one is `all`."""
        if self.k_same == "all" or self.m_other == "all":
            raise ConfigError(
                "mining.neighbours=decoded forwards each anchor's neighbours and needs numbers; this run has "
                f"method.k_same={self.k_same} and method.m_other={self.m_other} (method.k_same=5 method.m_other=5, or "
                "mining.neighbours=memory)"
            )
        return self.k_same, self.m_other

    def build(self, context: MethodContext) -> Method:
        """The method over the training images, by where its neighbours are mined."""
        if context.mining.source == "batch":
            return (StratifiedMining if self.classes_per_batch else BatchMining)(context, self)
        if context.mining.neighbours == "memory":
            from fsl_dist.methods.mining.in_memory import MemoryMining

            return MemoryMining(context, self)
        from fsl_dist.methods.mining.decoded import DecodedMining

        return DecodedMining(context, self)


class NeighbourLoss(Method):
    """Base of all variants: the loss over neighbours in the batch,
    and the cross entropy of a classifier if there is one."""

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        self.method = method
        self.selection = context.selection
        self.labels = context.catalogue.labels
        self.normalise = method.normalise
        self.adds_classifier = method.cross_entropy_weight > 0
        self.num_outputs = context.selection.num_classes if self.adds_classifier else 0
        self.outputs_embeddings = True
        self.metrics = (
            "train/same_class_share" if method.loss == "softmax" else "train/active_triplets",
            *(("train/accuracy",) if self.adds_classifier else ()),
        )

    def loss(self, outputs: Tensor, batch: Batch) -> BatchLoss:
        """The loss over each image's neighbours, and the cross entropy times its weight."""
        width = outputs.shape[1] - self.num_outputs
        embeddings, logits = outputs[:, :width], outputs[:, width:]
        loss, value = self.neighbour_loss(embeddings, batch)
        # Non-finite embeddings have no neighbours; the loss must not become 0 because of that.
        loss = loss + 0.0 * embeddings.sum()
        metrics = {self.metrics[0]: value}
        if self.adds_classifier:
            from fsl_dist.losses.cross_entropy import cross_entropy_loss

            (targets,) = on_device(outputs.device, np.searchsorted(self.selection.labels, batch.labels))
            added, accuracy = cross_entropy_loss(logits, targets, label_smoothing=self.method.label_smoothing)
            loss = loss + self.method.cross_entropy_weight * added
            metrics["train/accuracy"] = accuracy
        return BatchLoss(loss, metrics)

    def neighbour_loss(self, embeddings: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss with neighbours found in the batch, and its metric; every image is an anchor."""
        from fsl_dist.losses.deep_knn import (
            batch_log_sums,
            batch_neighbours,
            deep_knn_loss,
            neighbour_softmax,
        )

        method = self.method
        ids, labels = on_device(embeddings.device, batch.ids, batch.labels)
        if method.loss == "softmax":
            num_same = None if method.k_same == "all" else method.k_same
            num_other = None if method.m_other == "all" else method.m_other
            sums = batch_log_sums(embeddings, labels, ids, method.temperature, num_same, num_other)
            return neighbour_softmax(*sums)
        assert isinstance(method.k_same, int)
        assert isinstance(method.m_other, int)
        same, other = batch_neighbours(embeddings, labels, ids, method.k_same, method.m_other)
        (anchor,) = on_device(embeddings.device, np.arange(len(batch.ids)))
        return deep_knn_loss(embeddings, anchor, same, other, method.margin)


class BatchMining(NeighbourLoss):
    """Images are drawn by the size of their class to a power;
    each is an anchor and finds its neighbours in the batch."""

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        super().__init__(context, method)
        steps = shuffled_steps(context.selection, context.batch_size)
        self.draws = ClassPowerDraws(
            context.selection,
            power=context.mining.anchor_power,
            num_draws=len(context.selection),
            num_steps=steps,
            seed=context.seed,
        )

    def num_steps(self) -> int:
        """An epoch has ⌈images / batch⌉ steps."""
        return self.draws.num_steps

    def batches(self, epoch: int, step: int) -> list[Batch]:
        """One batch per step."""
        rows = self.draws.of_step(epoch, step)
        ids = self.selection.ids[rows]
        return [Batch(ids, self.labels[ids], payload=rows)]


class StratifiedMining(NeighbourLoss, StratifiedBatches):
    """Stratified batches, like the paper; each image is an anchor and finds its neighbours in the batch."""

    def __init__(self, context: MethodContext, method: DeepKNNConfig) -> None:
        StratifiedBatches.__init__(
            self, context, num_classes=method.classes_per_batch, normalise=method.normalise
        )
        NeighbourLoss.__init__(self, context, method)
