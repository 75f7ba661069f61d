"""The configurations of a fit's runs: what all share, and what each recipe, part and length adds."""

from pathlib import Path

from fsl_dist.config import RunConfig, parse_config
from fsl_dist.models.config import TIMM
from index.base.settings import merge, to_yaml
from tune.fit.budget.plan import FitPlan
from tune.fit.data import Parts
from tune.fit.recipes import Recipe, family_settings
from tune.space import Point, nested

FOREVER = 1_000_000
"""epochs: a run that is limited by minutes has no other end"""
CHECKPOINT_S = 20.0
"""seconds between two checkpoints: the most that a killed trial loses, and a little more on a busy machine"""


def network_input(name: str) -> Point:
    """The normalisation of images for a network's pretrained weights, if it differs from ImageNet's usual one."""
    if name.startswith(TIMM):
        from fsl_dist.models.timm_backbone import input_settings

        found = input_settings(name, {})
        return {
            "data.mean": tuple(found["mean"]),
            "data.std": tuple(found["std"]),
            "data.interpolation": str(found["interpolation"]),
        }
    half = (0.5, 0.5, 0.5)
    return {"data.mean": half, "data.std": half} if name == "resnet50_v2" else {}


def recipe_point(plan: FitPlan, recipe: Recipe, given: Point) -> Point:
    """All changes of a recipe to a run's defaults; the given settings come last.

    If there is a pretrained network, `backbone.*` applies to it, not to small networks from scratch.
    """
    if recipe.family == "scratch" and plan.has_weights:
        given = {key: value for key, value in given.items() if not key.startswith("backbone.")}
    family = family_settings(
        recipe.family,
        plan.profile,
        size=plan.size if recipe.family == "pretrained" else plan.scratch_size,
        batch_size=plan.batch_size,
        freeze=plan.freeze,
        backbone=plan.backbone,
    )
    return {**family, **recipe.settings, **given}


def trial_point(
    plan: FitPlan, recipe: Recipe, given: Point, parts: Parts, part: int, seconds: float
) -> Point:
    """A training of a round: a recipe on a validation part, for so many seconds, validated at its end."""
    point = recipe_point(plan, recipe, given)
    rate = plan.rates.trial if plan.rates is not None else 1.0
    batch = int(str(point["training.batch_size"]))
    return {
        **point,
        "run.seed": parts.seed + part,
        "data.holdout_fraction": parts.fraction,
        "training.epochs": FOREVER,
        "training.minutes": round(seconds / 60, 5),
        "training.patience": FOREVER,
        "training.validate_every": FOREVER,
        "training.validate_start": False,
        "training.checkpoint_steps": max(1, round(CHECKPOINT_S * rate / batch)),
        "training.keep_checkpoints": 1,
        "training.stop_metric": "mca/base" if has_classifier(point) else "",
    }


def has_classifier(point: Point) -> bool:
    """Whether the run of a point validates by its own classifier, which needs no embedding of training images."""
    return point.get("method.kind") in ("cross_entropy", "pcn") or bool(
        point.get("method.cross_entropy_weight")
    )


def build_config(point: Point, parts: Parts, folder: Path, *, cpus: int = 1) -> RunConfig:
    """The run of a point."""
    own = {
        "run": {"dir": str(folder), "trackers": []},
        "data": {
            "dataset": str(parts.catalogue.folder),
            "version": parts.catalogue.version,
            "threads": max(1, min(cpus, 4)),
        },
        "workers": {"cpus": cpus},
        "evaluation": {"k_p": [1, 5]},
    }
    return parse_config(to_yaml(merge(own, nested(point))), [], "the fit's settings")
