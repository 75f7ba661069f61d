"""The final run of a fit: the chosen recipe, trained for the time that is left."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import fsl_dist
from fsl_dist.config import CONFIG_FILE, load_run
from fsl_dist.heads import HeadConfig
from index.base.files import remove_folder
from tune.fit.budget.planning import LEAST_S
from tune.fit.budget.prepare import is_final_wanted, plan_final
from tune.fit.budget.rates import SMALLEST_BATCH, is_out_of_memory
from tune.fit.embeddings import embed_run, rows_of
from tune.fit.networks import RoundResult, read_length
from tune.fit.recipes import Recipe
from tune.fit.records import FINAL
from tune.fit.runs import build_config, trial_point
from tune.fit.scoring import SIMPLE_HEAD, Choice, Scored, choose, plain, recipes_of, score_networks
from tune.fit.session import Session

MEASURED_AGAIN_S = 30.0
"""a final run of at least this many seconds measures the machine again, which takes 2 to 5 s"""


@dataclass(frozen=True, slots=True)
class Final:
    """The final run."""

    recipe: Recipe
    head: HeadConfig
    run: Path
    trains_on_all: bool
    """whether it trained on the validation images too"""
    scored: tuple[Scored, ...] = ()
    """its heads on validation images, if it did not train on them"""

    @property
    def name(self) -> str:
        """As tables show it."""
        return f"final: {self.recipe.name} · {self.head.name}"

    @property
    def own(self) -> Scored | None:
        """Its head on validation images; None if it trained on them."""
        return next((one for one in self.scored if one.head == self.head), None)


def train_final(
    session: Session, recipes: Sequence[Recipe], last: RoundResult | None, choice: Choice
) -> Final | None:
    """Train the chosen recipe for the remaining time; None if there is nothing to train, or no time left.

    It also trains on the validation images if they were held out of train, or if `final` is true, since the same recipe
    in the rounds has already selected the head. It does not if the frozen network was better, or if there were no
    rounds: then validation decides again.
    """
    plan, parts, metric = session.plan, session.parts, session.config.metric
    if not plan.trains or (not is_final_wanted(session.config) and last is not None):
        return None
    is_frozen_ahead = choice.chosen.is_frozen
    scored = last.scored if last else ()
    recipe, head = recipes[0], SIMPLE_HEAD
    if scored:
        best = choose(scored, metric).chosen if is_frozen_ahead else choice.chosen
        recipe, head = next(one for one in recipes if one.name == best.recipe), best.head
    if is_frozen_ahead and scored:
        session.note(
            "In the rounds the frozen network was better: the final run keeps the validation images out, and is "
            "used only if it is better on them."
        )
    may_take_val = parts.are_cut or session.config.final is True
    trains_on_all = may_take_val and bool(scored) and not is_frozen_ahead
    # Each network of the last round is opened once more, for the test images.
    reserve_s = session.reserve_s + plan.overheads.trial * len(recipes_of(scored))
    run = _train(session, recipe, reserve_s, trains_on_all=trains_on_all)
    if run is None or trains_on_all:
        return None if run is None else Final(recipe, head, run, True)
    part = parts.part(0)
    ids = np.sort(np.concatenate([part.rest.ids, part.held.ids]))
    embedded = embed_run(run, ids, parts.catalogue, session.out / "embedded" / f"{FINAL}.npz")
    networks = [(rows_of(embedded, part.rest.ids), rows_of(embedded, part.held.ids))]
    found = score_networks(recipe.name, networks, parts.classes, cost=1)
    # The head of the same recipe in the rounds is kept, if there is one: it was selected among many by the same images.
    kept = [one for one in found if plain(one.head) == plain(head)] if scored and not is_frozen_ahead else []
    chosen = kept[0] if kept else choose(found, metric).chosen
    return Final(recipe, chosen.head, run, False, tuple(found))


def _train(session: Session, recipe: Recipe, reserve_s: float, *, trains_on_all: bool) -> Path | None:
    """Train, or resume; batches are halved if they are too large for the memory."""
    plan, run = session.plan, session.out / FINAL
    seconds, batch_size = session.clock.left_s - reserve_s, plan.batch_size
    if (run / CONFIG_FILE).is_file():
        _, done_s = read_length(run)
        stored = load_run(run).training
        seconds, batch_size = min(60 * stored.minutes, seconds + done_s), stored.batch_size
    elif seconds < LEAST_S:
        session.note("There was no time left for a final run: the best run of the last round is the result.")
        return None
    elif seconds > MEASURED_AGAIN_S and not plan.joins:
        parts = session.parts
        part = parts.part(0)
        num_train = len(parts.whole.rest if trains_on_all else part.rest)
        size = plan.size
        plan = plan_final(plan, session.config, recipe, parts, seconds, num_train)
        if plan.size > size:
            session.note(f"The final run has time for larger images: {plan.size} px.")
        seconds = session.clock.left_s - reserve_s * (plan.size / size) ** 2
    while True:
        settings = session.config.settings
        point = trial_point(
            replace(plan, batch_size=batch_size), recipe, settings, session.parts, 0, max(seconds, 0.1)
        )
        if trains_on_all:
            # Of a val split of the data set's own; what was cut off train comes back by holding nothing out.
            point |= {
                "data.holdout_fraction": 0.0,
                "data.train_on_val": not session.parts.are_cut,
                "training.patience": 0,
            }
        config = build_config(point, session.parts, run, cpus=plan.slots * plan.cpus)
        if plan.joins:
            config = replace(config, workers=replace(config.workers, launch="ray", cpus=plan.cpus))
        session.owner.check()
        images = "train and validation images" if trains_on_all else "train images"
        session.say(f"final run: {recipe.name}, {seconds:.0f} s on {images}")
        try:
            fsl_dist.train(
                config, resume=True, progress=session.progress if callable(session.progress) else False
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or batch_size // 2 < SMALLEST_BATCH:
                raise
        else:
            return run
        remove_folder(run)
        batch_size //= 2
        seconds = max(LEAST_S, session.clock.left_s - reserve_s)
        session.note(
            f"The memory does not suffice for larger batches: training.batch_size={batch_size} in the final run."
        )
