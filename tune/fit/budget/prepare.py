"""Measurements and decisions of a fit before its first round."""

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from fsl_dist.config import RunConfig
from fsl_dist.models.backbones import build_network
from fsl_dist.models.config import BackboneConfig
from fsl_dist.models.layers import layer_numbers
from index.base.errors import RequestError
from index.base.settings import validate
from tune.fit.budget.clock import Clock
from tune.fit.budget.plan import FitPlan
from tune.fit.budget.planning import (
    END_SHARE,
    FINAL_EPOCHS,
    LEAST_EPOCHS,
    ROUNDS_SHARE,
    SIZES,
    Overheads,
    Rates,
    choose_batch,
    choose_size,
    least_seconds,
    plan_rounds,
)
from tune.fit.budget.rates import Machine, find_batch, measure_rates
from tune.fit.config import FitConfig
from tune.fit.data import Parts
from tune.fit.recipes import Recipe, list_recipes
from tune.fit.records import ProfileRecord
from tune.fit.runs import FOREVER, build_config, network_input, recipe_point
from tune.space import Point, nested

log = logging.getLogger(__name__)

LAST_BLOCKS = 0.25
"""share of a network's layers that is trained if the whole network is too slow: its last four or five layers"""
MOST_EMBEDDING = 0.2
"""share of the budget for embedding all images with a pretrained network,
where small networks from scratch are tried too"""
LEAST_EMBEDDING_S = 5.0
"""seconds for embedding that are used even after the end of the budget: a shorter delay is no reason to give up"""
MEASURED_PX = 96


def choose_backbone(given: Point) -> tuple[Point, bool]:
    """Return (settings of the pretrained network, whether it starts from weights).

    The default is MobileNetV2 on a CPU and ResNet50 on a GPU, with ImageNet weights. Raises RequestError or
    ConfigError if weights are not available, or do not fit.
    """
    default = "resnet50" if torch.cuda.is_available() else "mobilenet_v2"
    name = str(given.get("backbone.name", default))
    weights = str(given.get("backbone.weights", ""))
    is_new = name in ("conv4", "mlp")
    pretrained = not weights and bool(given.get("backbone.pretrained", not is_new))
    backbone: Point = {
        "backbone.name": name,
        "backbone.weights": weights,
        "backbone.pretrained": pretrained,
        **network_input(name),
    }
    return backbone, bool(weights) or pretrained


def check_weights(backbone: Point, channels: int) -> int:
    """Load the network once, and count its layers. Raises RequestError where its weights cannot be had."""
    config = validate(BackboneConfig, nested(backbone)["backbone"], "the fit's settings", "backbone")
    try:
        network = build_network(config, sample_shape=(channels, MEASURED_PX, MEASURED_PX))
    except RequestError as error:
        raise RequestError(
            f"{error}; backbone.pretrained=false fits a small network from scratch, without pretrained weights"
            if backbone["backbone.pretrained"]
            else str(error)
        ) from error
    return max(layer_numbers(network.backbone).values(), default=-1) + 1


def check_backbone(given: Point) -> None:
    """Raise RequestError if the pretrained network's weights are not available, before anything else is done."""
    backbone, has_weights = choose_backbone(given)
    if has_weights:
        check_weights(backbone, int(str(given.get("data.channels", 3))))


def make_plan(
    config: FitConfig,
    profile: ProfileRecord,
    parts: Parts,
    machine: Machine,
    clock: Clock,
    say: Callable[[str], None],
) -> FitPlan:
    """Measure the speed of the machine with this network and these images, and divide the time.

    Raises RequestError if the budget does not even suffice to embed the images.
    """
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        say(text)

    backbone, has_weights = choose_backbone(config.settings)
    channels = int(str(config.settings.get("data.channels", 3)))
    recipes = list_recipes(profile, has_weights=has_weights, given=config.settings)
    has_network = any(recipe.family == "pretrained" for recipe in recipes)
    num_layers = check_weights(backbone, channels) if has_network else 0
    if has_network and "backbone.name" not in config.settings:
        note(f"The pretrained network is {backbone['backbone.name']} (backbone.name names another).")
    elif not has_network:
        note("There are no pretrained weights: small networks are trained from scratch.")
    num_train = sum(parts.part(0).rest.counts) if not parts.are_cut else len(parts.catalogue.select("train"))
    own_px = max(profile.shorter_side, 16)
    first_px = min(MEASURED_PX, own_px) if own_px >= SIZES[0] else SIZES[0]
    plan = FitPlan(
        profile=profile,
        backbone=backbone,
        has_weights=has_weights,
        size=int(str(config.settings.get("data.image_size", first_px))),
        scratch_size=int(str(config.settings.get("data.image_size", _scratch_size(profile)))),
        batch_size=int(str(config.settings.get("training.batch_size", choose_batch(int(num_train))))),
        freeze=int(str(config.settings.get("backbone.freeze", 0))),
        slots=machine.slots,
        cpus=machine.cpus,
        gpus=machine.gpus,
        joins=machine.joins,
    )
    # The pretrained network is the slower one.
    leading = next((one for one in recipes if one.family == "pretrained"), recipes[0])
    small = next((one for one in recipes if one.family == "scratch" and one is not leading), None)
    rates, batch_size = find_batch(
        lambda batch: measure_rates(
            _measured(replace(plan, batch_size=batch), leading, config, parts, machine), machine
        ),
        plan.batch_size,
        note,
    )
    num_images = int(num_train)
    if _training_s(plan, rates, clock, config) * rates.final < LEAST_EPOCHS * num_images:
        # Other programs can only slow a measurement down: use the better of two.
        again = measure_rates(
            _measured(replace(plan, batch_size=batch_size), leading, config, parts, machine), machine
        )
        rates = max(rates, again, key=lambda one: one.final)
    plan = replace(plan, batch_size=batch_size, rates=rates)
    if small and profile.num_images / rates.embed > MOST_EMBEDDING * config.budget_s:
        note(
            f"Embedding the {profile.num_images} images with {backbone['backbone.name']} would take "
            f"{profile.num_images / rates.embed:.0f} s: "
            "only small networks are trained, from scratch."
        )
        leading, small = small, None
        rates = measure_rates(_measured(plan, leading, config, parts, machine), machine)
        plan = replace(plan, pretrained="unused", rates=rates)
    _check_embedding(plan, rates, config, clock, num_train=int(num_train))
    final_s = _training_s(plan, rates, clock, config) * (1 - ROUNDS_SHARE)
    if leading.family == "pretrained":
        plan = _settle_size(
            plan, config, leading, small, parts, machine, final_s, int(num_train), num_layers, note
        )
        rates = plan.rates or rates
    recipes = plan.recipes(config.settings)
    epochs = final_s * rates.final / num_train
    if epochs < 1:  # decided again once the images were embedded
        return replace(plan, trains=False, notes=tuple(notes))
    rounds_s = _training_s(plan, rates, clock, config) * (ROUNDS_SHARE if is_final_wanted(config) else 1.0)
    rounds_end_s = clock.used_s + profile.num_images / rates.embed + rounds_s
    overheads = Overheads.after_start(clock.spent_s.get("start", 0.0))
    rounds = plan_rounds(
        rounds_s,
        slots=plan.slots,
        least_s=least_seconds(rates.trial, len(parts.part(0).rest)),
        overheads=overheads,
        num_recipes=len(recipes),
        can_repeat=parts.are_cut,
    )
    if not rounds:
        note(
            f"The budget has no time to compare recipes: '{recipes[0].name}' is trained, and validation chooses "
            "its head."
            if len(recipes) > 1
            else f"The settings leave one recipe: '{recipes[0].name}'."
        )
    return replace(
        plan, rounds=tuple(rounds), rounds_end_s=rounds_end_s, overheads=overheads, notes=tuple(notes)
    )


def reconsider(
    plan: FitPlan, config: FitConfig, left_s: float, embedding_s: float, num_train: int
) -> FitPlan:
    """Decide again whether to train, if the first measurement left no time for one epoch.

    Embedding all images took `embedding_s`, which is more reliable than the few steps of the first measurement.

    Args:
        plan: a plan without training.
        config: the settings of the fit.
        left_s: remaining seconds of the budget.
        embedding_s: seconds for embedding in this session; 0: it was done before.
        num_train: number of training images.
    """
    rates = plan.rates
    assert rates is not None
    seen = plan.profile.num_images / embedding_s if embedding_s else 0.0
    factor = max(1.0, seen / rates.embed)
    rates = replace(rates, trial=rates.trial * factor, final=rates.final * factor, embed=rates.embed * factor)
    final_s = left_s - embeddings_s(plan, rates) - end_s(config)
    if final_s * rates.final >= num_train:
        return replace(plan, rates=rates, trains=True)
    share = 100 * max(final_s, 0.0) * rates.final / num_train
    note = (
        f"The budget is too small to train: {max(final_s, 0.0):.0f} s would show the network {share:.0f} % of the "
        f"{num_train} training images once. The frozen network with its best head is the result."
    )
    return replace(plan, notes=(*plan.notes, note))


def is_final_wanted(config: FitConfig) -> bool:
    """Whether most of the time is reserved for a final run of the chosen recipe."""
    return config.final is not False


def embeddings_s(plan: FitPlan, rates: Rates) -> float:
    """Seconds for embedding at the end: all images by the final run,
    and test images by the other runs of the last round."""
    splits = plan.profile.splits
    images = plan.profile.num_images + 2 * splits.get("test", splits.get("val", 0))
    return images / rates.embed


def _training_s(plan: FitPlan, rates: Rates, clock: Clock, config: FitConfig) -> float:
    """Seconds for all training: the rest after the embeddings before and after it, and a reserve."""
    frozen_s = plan.profile.num_images / rates.embed
    return clock.left_s - frozen_s - embeddings_s(plan, rates) - end_s(config)


def end_s(config: FitConfig) -> float:
    """Seconds that nothing is planned in: heads are fitted, the report is written, processes end."""
    return max(3.0, END_SHARE * config.budget_s)


def _scratch_size(profile: ProfileRecord) -> int:
    """28 px for signs, as published for Conv4; 32 for small images, 64 for larger colour images."""
    if profile.shorter_side <= 28 or profile.is_grey:
        return 28
    return 32 if profile.shorter_side < 64 else 64


def plan_final(
    plan: FitPlan, config: FitConfig, recipe: Recipe, parts: Parts, seconds: float, num_train: int
) -> FitPlan:
    """Return the plan with newly measured threads and image size for the final run:
    the machine may be faster or slower now.

    The size grows if there is time for it. It does not shrink, because candidates were compared at that size.
    """
    assert plan.rates is not None
    machine = Machine(plan.slots, plan.cpus, plan.gpus, plan.gpus > 0, plan.joins)
    if not machine.has_gpu:
        torch.set_num_threads(plan.slots * plan.cpus)  # fewer may have been faster before
    rates = measure_rates(_measured(plan, recipe, config, parts, machine), machine)
    size = plan.size
    if recipe.family == "pretrained" and "data.image_size" not in config.settings:
        size = max(size, choose_size(rates.final, rates.size, seconds, num_train, plan.profile.shorter_side))
    return replace(plan, size=size, rates=replace(plan.rates, threads=rates.threads))


def _measured(plan: FitPlan, recipe: Recipe, config: FitConfig, parts: Parts, machine: Machine) -> RunConfig:
    """A run that is only measured: the recipe, without a pass over all images."""
    point = {
        **recipe_point(plan, recipe, config.settings),
        "mining.source": "batch",
        "training.epochs": FOREVER,
    }
    return build_config(point, parts, parts.catalogue.folder / "unwritten", cpus=machine.cpus)


def _check_embedding(plan: FitPlan, rates: Rates, config: FitConfig, clock: Clock, *, num_train: int) -> None:
    needed_s = (plan.profile.num_images + num_train) / rates.embed
    if clock.left_s <= 0 or needed_s > max(clock.left_s, LEAST_EMBEDDING_S):
        minutes = math.ceil((clock.used_s + needed_s * 1.3 + 10) / 6) / 10
        raise RequestError(
            f"minutes={config.minutes:g} is too small: embedding the {plan.profile.num_images} images takes about "
            f"{needed_s:.0f} s on this machine, and {clock.used_s:.0f} s are already used (minutes={minutes:g} "
            "suffices for the frozen network, more trains one)"
        )


def _settle_size(
    plan: FitPlan,
    config: FitConfig,
    recipe: Recipe,
    small: Recipe | None,
    parts: Parts,
    machine: Machine,
    final_s: float,
    num_train: int,
    num_layers: int,
    note: Callable[[str], None],
) -> FitPlan:
    """Choose the image size, and the trained part of the network; rates are those at that size.

    small: a recipe from scratch that is trained instead of a part of the pretrained network.
    """
    rates = plan.rates
    assert rates is not None
    is_size_given = "data.image_size" in config.settings

    def best_size(found: Rates) -> int:
        if is_size_given:
            return plan.size
        return choose_size(found.final, found.size, final_s, num_train, plan.profile.shorter_side)

    size = best_size(rates)
    epochs = rates.at(size).final * final_s / num_train
    if epochs < LEAST_EPOCHS and small is not None:
        note(
            f"The pretrained network would see each image {epochs:.1f} times: it is scored without training, and "
            "small networks are trained from scratch."
        )
        found = measure_rates(_measured(plan, small, config, parts, machine), machine)
        return replace(plan, size=size, pretrained="frozen", rates=replace(found, embed=rates.at(size).embed))
    if epochs < LEAST_EPOCHS and "backbone.freeze" not in config.settings and num_layers > 1:
        freeze = max(1, round((1 - LAST_BLOCKS) * num_layers))
        frozen = replace(plan, freeze=freeze)
        rates = measure_rates(_measured(frozen, recipe, config, parts, machine), machine)
        size = best_size(rates)
        note(
            f"The whole network would see each image {epochs:.1f} times: its last {num_layers - freeze} of "
            f"{num_layers} layers are trained (backbone.freeze={freeze})."
        )
        plan = frozen
    rates = rates.at(size)
    epochs = rates.final * final_s / num_train
    if not is_size_given:
        note(
            f"Images are shown at {size} px: a final run of {final_s:.0f} s sees each about {epochs:.0f} times "
            f"(about {FINAL_EPOCHS} are wanted; data.image_size sets another size)."
        )
    return replace(plan, size=size, rates=rates)
