"""A fit from its data to its record: data check, measurements, rounds, choice, final run, test."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch

from fsl_dist.config import CONFIG_FILE
from index.base.files import Owner
from tune.fit.budget.clock import Clock
from tune.fit.budget.plan import FitPlan
from tune.fit.budget.planning import LEAST_S, RoundPlan
from tune.fit.budget.prepare import check_backbone, make_plan, reconsider
from tune.fit.budget.rates import SMALLEST_BATCH, Machine, describe_machine
from tune.fit.config import FitConfig
from tune.fit.data import look_at, open_parts
from tune.fit.final import train_final
from tune.fit.finish import finish
from tune.fit.networks import (
    RoundResult,
    collect_round,
    embed_frozen,
    frozen_name,
    is_memory_the_reason,
    make_frozen,
    preselect_heads,
    round_folder,
    run_round,
    score_frozen,
)
from tune.fit.packing import describe_nesting, describe_table, open_or_pack
from tune.fit.recipes import Recipe
from tune.fit.records import FINAL, FitRecord
from tune.fit.scoring import Scored, choose, of_recipe, recipes_of, top_heads
from tune.fit.session import Session
from tune.sweep_file import SWEEP_FILE

log = logging.getLogger(__name__)

MOST_AT_A_TIME = 6
"""maximum number of concurrent trials: with more cores each trial has several"""


def run_flow(
    config: FitConfig, out: Path, owner: Owner, clock: Clock, say: Callable[[str], None], progress: object
) -> FitRecord:
    """Run the remaining steps of a fit; results in its folder are reused."""
    with ExitStack() as stack:
        session = _open(config, out, owner, clock, say, progress, stack)
        plan, parts = session.plan, session.parts
        if plan.rates is not None:
            torch.set_num_threads(plan.rates.threads)
        recipes = plan.recipes(config.settings)
        name = frozen_name(plan, plan.frozen_recipe(config.settings))
        with clock.phase("frozen"):
            started = time.monotonic()
            run = make_frozen(plan, config, parts, out)
            embed_frozen(run, parts, out)
            session.embedding_s = time.monotonic() - started
            heads = preselect_heads(run, parts, out, config.metric)
            frozen = score_frozen(name, run, parts, [0], out, heads)
            say(_describe(top_heads(frozen, config.metric, 1)[0], "frozen"))
        if not plan.trains and not (out / FINAL / CONFIG_FILE).is_file():
            _reconsider(session)
        rounds = _rounds(session, recipes, stack) if session.plan.trains and plan.rounds else []
    owner.check()
    last = rounds[-1] if rounds else None
    numbers = sorted({one.part for one in last.trained}) if last else [0]
    if numbers != [0]:
        with clock.phase("frozen"):
            frozen = score_frozen(name, run, parts, numbers, out, heads)
    choice = choose([*frozen, *(last.scored if last else ())], config.metric)
    with clock.phase("final"):
        final = train_final(session, recipes, last, choice)
        # The final run is validated on the first part.
        if final is not None and final.own is not None and numbers != [0]:
            frozen = score_frozen(name, run, parts, [0], out, heads)
    with clock.phase("test"):
        owner.check()
        return finish(session, frozen, rounds, choice, final)


def _open(
    config: FitConfig,
    out: Path,
    owner: Owner,
    clock: Clock,
    say: Callable[[str], None],
    progress: object,
    stack: ExitStack,
) -> Session:
    """The data, and the plan: that of an earlier session, or a new one."""
    plan = FitPlan.read(out)
    if plan is None:
        check_backbone(config.settings)  # before any slow step
    with clock.phase("pack"):
        parts = open_parts(open_or_pack(config, out, progress=bool(progress)), config)
    with clock.phase("measure"):
        profile, warnings = look_at(parts.catalogue, parts)
        folder = Path(config.folder)
        warnings = [*describe_nesting(folder), *describe_table(folder, dict(config.pack)), *warnings]
        if plan is None:
            for warning in warnings:
                say(warning)
            plan = make_plan(config, profile, parts, _find_machine(stack), clock, say)
            owner.check()
            plan.write(out)
    return Session(
        config=config,
        out=out,
        owner=owner,
        clock=clock,
        parts=parts,
        plan=plan,
        say=say,
        progress=progress,
        notes=list(plan.notes),
        warnings=warnings,
    )


def _reconsider(session: Session) -> None:
    """Decide again whether there is time to train, after all images were embedded; the plan stores it for a resume."""
    parts, notes = session.parts, session.plan.notes
    num_train = len(parts.part(0).rest)
    plan = reconsider(session.plan, session.config, session.clock.left_s, session.embedding_s, num_train)
    for note in plan.notes[len(notes) :]:
        session.note(note)
    session.plan = plan
    if plan.trains:
        plan.write(session.out)


def _find_machine(stack: ExitStack) -> Machine:
    """The machine for the trials: the Ray cluster to join, otherwise this one,
    where Ray is started for the first round."""
    from fsl_dist.errors import CapacityError
    from fsl_dist.training.ray.capacity import wait_for_capacity
    from fsl_dist.training.ray.session import cluster_size, prepare_import, ray_session

    if not prepare_import():
        return describe_machine(MOST_AT_A_TIME)
    stack.enter_context(ray_session(1, importing="torch"))

    def find_size() -> tuple[float, float]:
        cpus, gpus = cluster_size()
        if cpus < 1:
            raise CapacityError("the Ray cluster has no CPU core for trials (a larger cluster)")
        return cpus, gpus

    return describe_machine(MOST_AT_A_TIME, *wait_for_capacity(find_size))


def _rounds(session: Session, recipes: Sequence[Recipe], stack: ExitStack) -> list[RoundResult]:
    """The rounds, each with the best recipes of the one before."""
    from fsl_dist.training.ray.session import ray_session

    plan, clock, metric = session.plan, session.clock, session.config.metric
    results: list[RoundResult] = []
    taking, first_part = list(recipes), 0
    for number, planned in enumerate(plan.rounds, start=1):
        taking = taking[: planned.candidates]
        if results and not (round_folder(session.out, number) / SWEEP_FILE).is_file():
            planned = _shorten(planned, plan, plan.rounds_end_s - clock.used_s)
            if planned.seconds < LEAST_S:
                session.note(
                    "The first round took longer than planned, or was interrupted, so there was no second one."
                )
                break
        with clock.phase(f"round {number}"):
            stack.enter_context(ray_session(plan.slots * plan.cpus, importing="torch"))
            several = f", on {planned.parts} validation parts" if planned.parts > 1 else ""
            session.say(f"round {number}: {len(taking)} recipes, {planned.seconds:.0f} s each{several}")
            result = _one_round(session, number, taking, planned, first_part, recipes)
        if not result.scored:
            break
        results.append(result)
        best = {
            name: top_heads(of_recipe(result.scored, name), metric, 1)[0]
            for name in recipes_of(result.scored)
        }
        for one in best.values():
            session.say(_describe(one, f"round {number}"))
        taking = sorted(
            (one for one in taking if one.name in best), key=lambda one: -best[one.name].value(metric)
        )
        first_part += planned.parts if session.parts.are_cut else 0
    return results


def _one_round(
    session: Session,
    number: int,
    taking: Sequence[Recipe],
    planned: RoundPlan,
    first_part: int,
    recipes: Sequence[Recipe],
) -> RoundResult:
    """One round; where its batches are too large for the memory, once more with batches of half the size."""
    costs = {recipe.name: place + 1 for place, recipe in enumerate(recipes)}
    while True:
        plan = session.plan
        wanted = run_round(
            number, taking, planned, first_part,
            plan=plan, config=session.config, parts=session.parts, out=session.out, progress=session.progress,
        )  # fmt: skip
        result = collect_round(number, wanted, plan=plan, parts=session.parts, out=session.out, costs=costs)
        session.owner.check()
        if not is_memory_the_reason(result) or plan.batch_size // 2 < SMALLEST_BATCH:
            break
        session.plan = replace(plan, batch_size=plan.batch_size // 2)
        session.note(
            f"The memory does not suffice for larger batches: training.batch_size={session.plan.batch_size}."
        )
        # A resumed fit uses these batches.
        session.plan = replace(session.plan, notes=tuple(session.notes))
        session.plan.write(session.out)
    for name, why in result.failed:
        session.note(f"'{name}' has no score in round {number}: {why}.")
    return result


def _shorten(planned: RoundPlan, plan: FitPlan, left_s: float) -> RoundPlan:
    """A later round in the time that is left for it."""
    waves = -(-planned.candidates * planned.parts // plan.slots)
    return replace(
        planned,
        seconds=min(
            planned.seconds * 1.5, (left_s - plan.overheads.startup / 2) / waves - plan.overheads.trial
        ),
    )


def _describe(one: Scored, where: str) -> str:
    return f"{where}: {one.name}: validation acc {100 * one.score.acc:.1f} mcr {100 * one.score.mcr:.1f}"
