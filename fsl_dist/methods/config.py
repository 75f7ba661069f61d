"""What can be set on each method. The papers' three alphas are `memory`, `margin` and `scatter_weight` here."""

from dataclasses import dataclass
from typing import Annotated, Literal

from fsl_dist.errors import ConfigError
from fsl_dist.methods.own import OwnMethodConfig, own_methods
from fsl_dist.samplers.triplet import Sampling
from index.base.settings import Variants


@dataclass(frozen=True, kw_only=True, slots=True)
class PCNConfig:
    """Prototypical clustering networks; clusters 1 and memory 0 is a prototypical network (PN), memory 0.5 PN*."""

    kind: Literal["pcn"] = "pcn"
    clusters: int = 10
    """prototypes a base class is trained and evaluated with (M_k of PCN Eq. 1), at least 1"""
    novel_clusters: int = 4
    """prototypes a novel class is evaluated with, at least 1"""
    memory: float = 0.5
    """share of the old prototype kept at each update (α of PCN Eq. 4), 0 to below 1"""
    temperature: float = 3.0
    """τ of the responsibilities in training (PCN Eq. 3), above 0; the paper is silent on its value"""
    detach_responsibilities: bool = False
    """stop the gradient through the support's responsibilities; the paper is silent"""
    min_responsibility: float = 1e-6
    """a cluster whose responsibilities sum to less keeps its prototype; the paper is silent"""

    def __post_init__(self) -> None:
        for name in ("clusters", "novel_clusters"):
            if getattr(self, name) < 1:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.memory < 1:
            raise ConfigError(
                f"method.memory={self.memory} must be at least 0 and below 1 (1 would never learn)"
            )
        if self.temperature <= 0:
            raise ConfigError(f"method.temperature={self.temperature} must be above 0")
        if self.min_responsibility <= 0:
            raise ConfigError(f"method.min_responsibility={self.min_responsibility} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepKNNConfig:
    """Deep kNN: every image nearer to its same-class neighbours than to its other-class ones."""

    kind: Literal["deep_knn"] = "deep_knn"
    k_same: int = 5
    """same-class neighbours of an anchor (K of deep kNN Eq. 3), at least 1"""
    m_other: int = 5
    """other-class neighbours of an anchor (M of deep kNN Eq. 3), at least 1"""
    margin: float = 1.0
    """α of deep kNN Eq. 2, in units of distance, above 0; the paper is silent (0.2 suits normalised embeddings)"""
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: int = 9
    """classes in a stratified batch (mining.source=batch), at least 2"""

    def __post_init__(self) -> None:
        for name, least in (("k_same", 1), ("m_other", 1), ("classes_per_batch", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least {least}")
        if self.margin <= 0:
            raise ConfigError(f"method.margin={self.margin} must be above 0")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchHardConfig:
    """Triplets of an image, its furthest mate and its nearest image of another class, in stratified batches."""

    kind: Literal["batch_hard"] = "batch_hard"
    margin: float = 1.0
    """α of the triplet loss, in units of distance, above 0; deep kNN's own by default"""
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: int = 9
    """classes in a batch, at least 2"""

    def __post_init__(self) -> None:
        if self.margin <= 0:
            raise ConfigError(f"method.margin={self.margin} must be above 0")
        _check_classes(self.classes_per_batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class FewShotNCAConfig:
    """Neighbourhood components analysis on stratified batches: a mate is drawn by a softmax over −distance²."""

    kind: Literal["few_shot_nca"] = "few_shot_nca"
    normalise: bool = False
    """embeddings on the unit sphere"""
    classes_per_batch: int = 9
    """classes in a batch, at least 2"""

    def __post_init__(self) -> None:
        _check_classes(self.classes_per_batch)


def _check_classes(classes_per_batch: int) -> None:
    if classes_per_batch < 2:
        raise ConfigError(f"method.classes_per_batch={classes_per_batch} must be at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropyConfig:
    """Softmax classifier over the training classes; its embedding is scored like any other."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    balance: Literal["none", "weights", "sampling"] = "none"
    """none; loss weights N/(C·n_c); or batches that draw the class first, then the image"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScatterConfig:
    """Deep clustering: prototypical episodes with the multivariate scatter loss; scored by clusters of unknown classes."""

    kind: Literal["scatter"] = "scatter"
    scatter_weight: float = 0.1
    """share of the scatter loss in the loss, 0 … 1, the rest is cross entropy (α of deep clustering Eq. 3); the paper chooses it
    by validation CA, and finds 0.1 for ConvNeXt-B on EU Moths"""
    distance: Literal["euclidean", "squared"] = "euclidean"
    """of a query to its prototypes in the cross entropy: as deep clustering Eq. 2 has it, or squared as in prototypical networks"""

    def __post_init__(self) -> None:
        if not 0 <= self.scatter_weight <= 1:
            raise ConfigError(f"method.scatter_weight={self.scatter_weight:g} must lie in 0 … 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class CHAIConfig:
    """CHAI: random triplets by class (disease) and by similarity group; its embedding is that of backbone.map_head=1024."""

    kind: Literal["chai"] = "chai"
    sampling: Sampling = "disease"
    """who is alike, who unlike (CHAI section 2.2). disease: same class, other class; hierarchical: same group, other class;
    non_hierarchical: same group, other group; joint: half by class, half by label-blind group"""
    margin: float = 1.0
    """l of CHAI Eq. 1, in units of squared distance, above 0"""
    triplets: int = 150_000
    """triplets drawn once for the run; an epoch is all of them, `training.batch_size` a step. At least 1"""
    validation_triplets: int = 50_000
    """triplets drawn once from the images that a validation is made on; 0 = none"""
    image_fraction: float = 1.0
    """share of the training images, drawn by the seed, that triplets are made of, above 0 to 1 (the paper: half for
    hierarchical and non_hierarchical)"""
    kmeans_groups: int = 37
    """joint, where the data set has no blind groups: k-means groups of the start network's features, at least 2"""

    def __post_init__(self) -> None:
        if self.margin <= 0:
            raise ConfigError(f"method.margin={self.margin} must be above 0")
        for name, least in (("triplets", 1), ("validation_triplets", 0), ("kmeans_groups", 2)):
            if getattr(self, name) < least:
                raise ConfigError(f"method.{name}={getattr(self, name)} must be at least {least}")
        if not 0 < self.image_fraction <= 1:
            raise ConfigError(
                f"method.image_fraction={self.image_fraction:g} must be above 0 and at most 1 (all training images)"
            )


MethodConfig = Annotated[
    PCNConfig
    | DeepKNNConfig
    | BatchHardConfig
    | FewShotNCAConfig
    | CrossEntropyConfig
    | ScatterConfig
    | CHAIConfig
    | OwnMethodConfig,
    Variants(own_methods),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class MiningConfig:
    """Where deep kNN finds an anchor's neighbours."""

    source: Literal["batch", "dataset"] = "batch"
    """within the global mini-batch, or over all training images by the neighbour index"""
    run: Literal["inline", "beside"] = "inline"
    """inline: the training workers refresh the table themselves, between two steps; beside: Ray actors with
    resources of their own do, while training goes on"""
    anchors: Literal["shuffled", "near"] = "shuffled"
    """dataset: which anchors make a step. shuffled: any; near: such as have neighbours in common, so that a step decodes
    fewer images (training.batch_size can be larger, docs/deep_knn.md)"""
    refresh_steps: int = 0
    """steps between two refreshes of the neighbour table; 0 = at the start of every epoch"""
    refresh_lag: int = 0
    """steps after its start at which a refresh takes effect, below the steps between two refreshes; training waits
    for a table that is late. The first one is waited for at once"""
    actors: int = 1
    """beside: actors that share the embedding and the search, at least 1"""
    cpus: int = 1
    """beside: CPU cores each actor asks Ray for, at least 1"""
    gpus: float = 0.0
    """beside: GPUs each actor asks Ray for; 0 = it embeds on the CPU, below 1 = several share a GPU"""

    def __post_init__(self) -> None:
        if self.refresh_steps < 0:
            raise ConfigError(f"mining.refresh_steps={self.refresh_steps} must be 0 (every epoch) or more")
        if self.refresh_lag < 0:
            raise ConfigError(f"mining.refresh_lag={self.refresh_lag} must be 0 (at once) or more")
        if 0 < self.refresh_steps <= self.refresh_lag:
            raise ConfigError(
                f"mining.refresh_lag={self.refresh_lag} must be below mining.refresh_steps={self.refresh_steps}: a "
                "refresh takes effect before the next one starts"
            )
        for name in ("actors", "cpus"):
            if getattr(self, name) < 1:
                raise ConfigError(f"mining.{name}={getattr(self, name)} must be at least 1")
        if self.gpus < 0:
            raise ConfigError(f"mining.gpus={self.gpus:g} must be 0 (on the CPU) or more")
        if self.run == "beside" and self.source != "dataset":
            raise ConfigError(
                "mining.run=beside refreshes the table of mining.source=dataset; mining.source=batch has none"
            )
        if self.anchors == "near" and self.source != "dataset":
            raise ConfigError(
                "mining.anchors=near goes by the neighbour table of mining.source=dataset; mining.source=batch has none"
            )

    @property
    def is_beside(self) -> bool:
        """Whether actors beside the training workers do the mining."""
        return self.run == "beside"
