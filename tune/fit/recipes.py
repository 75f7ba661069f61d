"""The recipes of a fit: the settings that all of its runs share,
and the recipes in the order in which they are tried."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tune.fit.records import ProfileRecord
from tune.space import Point, Value

Family = Literal["pretrained", "scratch"]

SMALL_PX = 40
"""images of at most so many pixels are shown to a small network from scratch too"""

_JOINT: Point = {"method.kind": "deep_knn", "method.cross_entropy_weight": 1.0}
_MEMORY: Point = {"mining.source": "dataset"}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way of training."""

    name: str
    family: Family
    settings: Point
    """its changes to the settings of its family"""


PRETRAINED = (
    Recipe("cross entropy and neighbours in the batch", "pretrained", _JOINT),
    Recipe("cross entropy", "pretrained", {"method.kind": "cross_entropy"}),
    Recipe("neighbours in the batch", "pretrained", {"method.kind": "deep_knn"}),
    Recipe(
        "cross entropy, balanced",
        "pretrained",
        {"method.kind": "cross_entropy", "method.balance": "sampling"},
    ),
    Recipe("cross entropy and neighbours in all images", "pretrained", {**_JOINT, **_MEMORY}),
    Recipe("neighbours in all images", "pretrained", {"method.kind": "deep_knn", **_MEMORY}),
)
"""in the order of their scores in docs/how_to/training.md: on photographs and dermatoscopic images the joint loss
gives the better of both heads, and the memory adds nothing if classes have few modes"""

SCRATCH = (
    Recipe("small network, cross entropy and neighbours in all images", "scratch", {**_JOINT, **_MEMORY}),
    Recipe("small network, cross entropy", "scratch", {"method.kind": "cross_entropy"}),
    Recipe("small network, neighbours in all images", "scratch", {"method.kind": "deep_knn", **_MEMORY}),
    Recipe("small network, cross entropy and neighbours in the batch", "scratch", _JOINT),
    Recipe(
        "small network, cross entropy, balanced",
        "scratch",
        {"method.kind": "cross_entropy", "method.balance": "sampling"},
    ),
)
"""for training from scratch with many modes, the memory of all training embeddings is better
(docs/how_to/training.md)"""


def list_recipes(profile: ProfileRecord, *, has_weights: bool, given: Mapping[str, Value]) -> list[Recipe]:
    """List the recipes that suit the data and the settings, in order of their prior.

    Args:
        profile: the data.
        has_weights: whether there is a network with pretrained weights.
        given: settings for all candidates; a recipe with other values is left out.
    """
    is_small = profile.is_grey or profile.shorter_side <= SMALL_PX
    names_network = "backbone.name" in given
    pretrained = list(PRETRAINED) if has_weights or names_network else []
    scratch = list(SCRATCH) if not names_network and (is_small or not has_weights) else []
    found = _interleave(scratch, pretrained) if is_small else [*pretrained, *scratch]
    episodes = _episodes(profile)
    if episodes is not None:
        family: Family = "scratch" if scratch and not pretrained else "pretrained"
        found.append(Recipe("prototypes (PCN)", family, episodes))
    fitting = [
        one for one in found if all(given.get(key, value) == value for key, value in one.settings.items())
    ]
    if fitting:
        return fitting
    family = "pretrained" if pretrained else "scratch"
    return [Recipe("the settings given", family, {})]


def _interleave(first: Sequence[Recipe], second: Sequence[Recipe]) -> list[Recipe]:
    """The first of each, the second of each, …"""
    longest = max(len(first), len(second))
    return [one for n in range(longest) for several in (first, second) for one in several[n : n + 1]]


def _episodes(profile: ProfileRecord) -> Point | None:
    """PCN's settings; None if classes are too small for episodes:
    4 support and 2 query images, with a fifth held out."""
    if profile.smallest_class < 12 or profile.num_classes < 2:
        return None
    return {
        "method.kind": "pcn",
        "method.clusters": max(1, min(4, profile.smallest_class // 10)),
        "episode.n_way": min(profile.num_classes, 16),
        "episode.k_shot": 4,
        "episode.n_query": 2,
        "episode.per_epoch": 50,
    }


def family_settings(
    family: Family, profile: ProfileRecord, *, size: int, batch_size: int, freeze: int, backbone: Point
) -> Point:
    """The settings of all runs of a family.

    Args:
        family: name of the family.
        profile: the data.
        size: side of the network's images, in pixels.
        batch_size: images per step.
        freeze: number of frozen leading layers.
        backbone: settings of the pretrained network and its weights.
    """
    shared: Point = {
        "data.resize": "exact",
        "data.resize_size": size,
        "data.image_size": size,
        "training.batch_size": batch_size,
        "episode.per_step": 1,
    }
    if family == "pretrained":
        return {
            **shared,
            **backbone,
            "data.crop_scale": (0.5, 1.0),
            "data.brightness": 0.2,
            "data.contrast": 0.2,
            "data.saturation": 0.2,
            # Mirrored, a letter or a digit is another sign.
            "data.flip": not profile.is_grey,
            "backbone.freeze": freeze,
        }
    return {
        **shared,
        "data.channels": 1 if profile.is_grey else 3,
        "data.mean": profile.mean,
        "data.std": profile.std,
        "data.random_crop": False,
        "data.flip": not profile.is_grey,
        "data.rotation": 14.0 if profile.is_grey else 0.0,
        "data.crop_scale": (0.7, 1.0),
        "data.crop_ratio": (0.85, 1.18),
        "backbone.name": "conv4",
        "backbone.width": 64,
        # Without a head the embedding is the output of a ReLU: a small part of the sphere.
        "backbone.embedding_dim": 64,
        "backbone.batch_norm": "ghost",
        "backbone.batch_norm_group": min(48, max(2, batch_size // 2)),
        "training.lr": 3e-3,
        "training.weight_decay": 0.01,
        "training.warmup": 0.05,
    }
