"""The networks of a fit: the frozen one, and those of the rounds,
with the scores of heads on their validation parts."""

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fsl_dist
from fsl_dist.data.split import holdout
from fsl_dist.heads import Embedded, HeadConfig
from fsl_dist.training.checkpoint import CheckpointFolder, read_progress
from fsl_dist.training.launch import train_run
from index.base.errors import FslDistError
from index.base.files import remove_folder
from tune.fit.budget.plan import FitPlan
from tune.fit.budget.planning import RoundPlan
from tune.fit.budget.rates import is_out_of_memory
from tune.fit.config import FitConfig, Metric
from tune.fit.data import Parts
from tune.fit.embeddings import embed_run, rows_of
from tune.fit.recipes import Recipe
from tune.fit.records import FROZEN
from tune.fit.runs import build_config, recipe_point, trial_point
from tune.fit.scoring import SIMPLE_HEAD, Scored, choose, plain, score_networks
from tune.quiet import logging_from
from tune.records import SweepFolder
from tune.space import Point
from tune.sweep_file import SWEEP_FILE, load_stored

log = logging.getLogger(__name__)

LAST_RESORT = 1.3
"""a round is ended after this multiple of its planned seconds, even if trials are still running"""

FEW_VALIDATION = 300
"""validation images below which the frozen network's head is chosen on more images than these"""
MOST_COMPARED = 600
"""images that its heads are compared on, at most: on two cores this takes up to 10 s"""
NUM_CUTS = 4


@dataclass(frozen=True, slots=True)
class Trained:
    """One network of a round."""

    recipe: Recipe
    part: int
    """number of its validation part"""
    run: Path
    point: Point
    images_seen: int
    seconds: float


@dataclass(frozen=True, slots=True)
class RoundResult:
    """The result of a round."""

    number: int
    trained: tuple[Trained, ...]
    scored: tuple[Scored, ...]
    """every recipe of which all parts were trained, with every head"""
    failed: tuple[tuple[str, str], ...] = ()
    """(recipe, why) of those that were not"""

    def of_recipe(self, name: str) -> list[Trained]:
        """The networks of a recipe, by part."""
        return [one for one in self.trained if one.recipe.name == name]


def frozen_name(plan: FitPlan, recipe: Recipe) -> str:
    """What tables call the network without training."""
    if recipe.family == "pretrained":
        return f"frozen {plan.backbone['backbone.name'].removeprefix('timm:')}, {plan.size} px"  # type: ignore[union-attr]
    return "untrained small network"


def make_frozen(plan: FitPlan, config: FitConfig, parts: Parts, out: Path) -> Path:
    """The frozen network as a run of no epochs: OUT/frozen."""
    recipe = plan.frozen_recipe(config.settings)
    point = {
        **recipe_point(plan, recipe, config.settings),
        # Raw embeddings of the network: heads normalise them themselves.
        "method.kind": "deep_knn",
        "method.normalise": False,
        "method.cross_entropy_weight": 0.0,
        "mining.source": "batch",
        "training.epochs": 0,
        "training.patience": 0,
        "run.seed": config.seed,
    }
    for key in [key for key in point if key.startswith("method.") and key not in _FROZEN_METHOD]:
        del point[key]
    run = out / FROZEN
    train_run(build_config(point, parts, run), resume=True)
    return run


_FROZEN_METHOD = ("method.kind", "method.normalise", "method.cross_entropy_weight")


def preselect_heads(run: Path, parts: Parts, out: Path, metric: Metric) -> list[HeadConfig]:
    """The frozen network's heads that are compared with other candidates; empty: all of them.

    With few validation images, the best of twenty heads is mostly the luckiest one: on 40 images of blood cells its
    score was 20 points above that on test. Then the heads are first compared on all images that may be trained on,
    cut several times without dividing a group. Only the best head stays, and the one that is always shown.
    """
    if len(parts.part(0).held) >= FEW_VALIDATION:
        return []
    pool, groups = parts.whole.rest, parts.catalogue.groups
    if len(pool) > MOST_COMPARED:
        _, pool = holdout(pool, groups, MOST_COMPARED / len(pool), parts.seed)
    cuts = [holdout(pool, groups, 1 / NUM_CUTS, parts.seed + number) for number in range(NUM_CUTS)]
    if any(len(held) == 0 for _, held in cuts):
        return []
    embedded = embed_frozen(run, parts, out)
    networks = [(rows_of(embedded, rest.ids), rows_of(embedded, held.ids)) for rest, held in cuts]
    scored = score_networks("", networks, parts.classes, cost=0, is_trained=False)
    return [plain(choose(scored, metric).chosen.head), SIMPLE_HEAD] if scored else []


def score_frozen(
    name: str, run: Path, parts: Parts, numbers: Sequence[int], out: Path, heads: Collection[HeadConfig] = ()
) -> list[Scored]:
    """The frozen network's heads, scored on some validation parts; `heads` names those to keep, if not all."""
    embedded = embed_frozen(run, parts, out)
    networks = []
    for number in numbers:
        part = parts.part(number)
        networks.append((rows_of(embedded, part.rest.ids), rows_of(embedded, part.held.ids)))
    scored = score_networks(name, networks, parts.classes, cost=0, is_trained=False)
    return [one for one in scored if plain(one.head) in heads] or scored


def embed_frozen(run: Path, parts: Parts, out: Path) -> Embedded:
    """All images of the data set, embedded by the frozen network."""
    catalogue = parts.catalogue
    return embed_run(run, np.arange(catalogue.num_samples), catalogue, out / "embedded" / "frozen.npz")


def run_round(
    number: int,
    recipes: Sequence[Recipe],
    round_plan: RoundPlan,
    first_part: int,
    *,
    plan: FitPlan,
    config: FitConfig,
    parts: Parts,
    out: Path,
    progress: object,
) -> list[tuple[Recipe, int, Point]]:
    """Train recipes on validation parts, as the points of one sweep: OUT/rounds/N. An existing round is continued.

    Returns the requested (recipe, part, point) in the order of the trials.
    """
    wanted = [
        (recipe, part, trial_point(plan, recipe, config.settings, parts, part, round_plan.seconds))
        for part in range(first_part, first_part + round_plan.parts)
        for recipe in recipes
    ]
    folder = round_folder(out, number)
    if (folder / SWEEP_FILE).is_file() and not _has_batch(folder, plan):
        remove_folder(folder)
    show = progress if callable(progress) else False
    if (folder / SWEEP_FILE).is_file():
        with logging_from("tune.sweeps", logging.WARNING):  # its lines show all settings of each trial
            fsl_dist.sweep(dir=folder, resume=True, progress=show)
        return wanted
    waves = math.ceil(len(wanted) / plan.slots)
    planned_s = plan.overheads.startup + waves * (round_plan.seconds + plan.overheads.trial)
    sweep = {
        "base": _base(parts, plan, config),
        "search": "points",
        "points": [point for _, _, point in wanted],
        "include_base": False,
        "scores_trials": False,
        "resources": {"cpus": plan.cpus, "gpus": plan.gpus},
        "minutes": round(LAST_RESORT * planned_s / 60, 4),
    }
    with logging_from("tune.sweeps", logging.WARNING):
        fsl_dist.sweep(sweep, dir=folder, progress=show)
    return wanted


def round_folder(out: Path, number: int) -> Path:
    """The sweep of a round."""
    return out / "rounds" / str(number)


def _has_batch(folder: Path, plan: FitPlan) -> bool:
    """Whether a round has batches of the plan's size; it was planned for a larger memory otherwise."""
    sweep = load_stored(folder)
    sizes = {point.get("training.batch_size") for point in sweep.points}
    return sizes == {plan.batch_size}


def _base(parts: Parts, plan: FitPlan, config: FitConfig) -> dict[str, object]:
    """What all trials share and no point may change."""
    return {
        "run": {"trackers": [], "seed": config.seed},
        "data": {
            "dataset": str(parts.catalogue.folder),
            "version": parts.catalogue.version,
            "threads": max(1, min(plan.cpus, 4)),
            "holdout_fraction": parts.fraction,
        },
        "backbone": {"name": "conv4"},
        "training": {"patience": 1, "epochs": 1},
        "workers": {"cpus": plan.cpus},
        "evaluation": {"k_p": [1, 5]},
    }


def collect_round(
    number: int,
    wanted: Sequence[tuple[Recipe, int, Point]],
    *,
    plan: FitPlan,
    parts: Parts,
    out: Path,
    costs: dict[str, int],
) -> RoundResult:
    """Embed the images of each network of a round, and score all heads."""
    trials = {trial.draw: trial for trial in SweepFolder(round_folder(out, number)).trials()}
    trained: list[Trained] = []
    failed: dict[str, str] = {}
    for draw, (recipe, part, point) in enumerate(wanted):
        trial = trials.get(draw)
        result = None if trial is None else trial.result
        if trial is None or result is None or result.state in ("failed", "pruned") or result.value is None:
            failed[recipe.name] = (
                result.error if result and result.error else "the round ended before it was validated"
            )
            continue
        images, seconds = read_length(trial.folder)
        trained.append(Trained(recipe, part, trial.folder, point, images, seconds))
    train_ids = np.sort(np.concatenate([parts.part(0).rest.ids, parts.part(0).held.ids]))
    scored: list[Scored] = []
    for name in dict.fromkeys(one.recipe.name for one in trained):
        if name in failed:
            continue
        networks = []
        try:
            for one in trained:
                if one.recipe.name == name:
                    kept = out / "embedded" / f"round-{number}-{one.run.name}.npz"
                    embedded = embed_run(one.run, train_ids, parts.catalogue, kept)
                    cut = parts.part(one.part)
                    networks.append((rows_of(embedded, cut.rest.ids), rows_of(embedded, cut.held.ids)))
        except FslDistError as error:
            failed[name] = str(error)
            continue
        scored += score_networks(name, networks, parts.classes, cost=costs[name])
    return RoundResult(number, tuple(trained), tuple(scored), tuple(failed.items()))


def read_length(run: Path) -> tuple[int, float]:
    """(images seen, seconds inside training) of a run."""
    checkpoints = CheckpointFolder(run, keep=1, owner=None)
    checkpoints.refresh()
    latest = checkpoints.latest()
    if latest is None:
        return 0, 0.0
    progress = read_progress(latest)
    return progress.images_seen, progress.seconds


def is_memory_the_reason(result: RoundResult) -> bool:
    """Whether a round trained nothing because batches were too large for the memory."""
    return (
        not result.scored and bool(result.failed) and all(is_out_of_memory(why) for _, why in result.failed)
    )
