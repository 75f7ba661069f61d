"""The end of a fit: test images are scored, once; head, index, record, table and report are written."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fsl_dist.heads import Embedded, HeadConfig, HeadScore, fit_head, score_head, write_head
from fsl_dist.indexing import build_from_run
from index import IndexConfig
from index.base.errors import FslDistError
from index.base.settings import dump
from tune.fit.config import Metric
from tune.fit.data import Part
from tune.fit.embeddings import embed_run, rows_of
from tune.fit.final import Final
from tune.fit.networks import RoundResult, read_length
from tune.fit.records import FINAL, FROZEN, CandidateRecord, FitRecord
from tune.fit.reporting import write_report
from tune.fit.scoring import (
    FROZEN_SE,
    SIMPLE_HEAD,
    Choice,
    Scored,
    choose,
    exceeds,
    of_recipe,
    plain,
    recipes_of,
    to_record,
    top_heads,
)
from tune.fit.session import Session
from tune.fit.table import write_csv

log = logging.getLogger(__name__)

SHOWN_HEADS = 2
"""best heads of each network that the record lists"""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of the fit."""

    name: str
    """of its candidate"""
    run: Path
    head: HeadConfig
    part: Part | None
    """what its run was trained on, and what it was not; None: the frozen network, its head fitted to all of train"""
    note: str = ""


def finish(
    session: Session,
    frozen: Sequence[Scored],
    rounds: Sequence[RoundResult],
    choice: Choice,
    final: Final | None,
) -> FitRecord:
    """Determine the result, score it on test, and write everything."""
    metric, out = session.config.metric, session.out
    result = _settle(session, frozen, rounds, choice, final)
    # The result, and the candidates that it was compared with, are always listed.
    needed = {result.name, choice.chosen.name, choice.best.name}
    records = [*_frozen_records(session, frozen, needed), *_round_records(session, rounds, needed)]
    if final is not None:
        records.append(_final_record(session, final, choice, result))
        if final.own is not None:
            # It was scored on the same images as the frozen network: that comparison counts.
            own = final.own
            choice = choose([own, *(one for one in frozen if one.parts == own.parts)], metric)
    listed = {one.name for one in records} - {result.name}
    # The best itself is among those that are equal to the best.
    equal = [one.name for one in (choice.best, *choice.equal) if one.name in listed]
    _explain(session, choice, equal)
    session.owner.check()
    write_head(result.run, result.head)
    _build_index(session, result.run)
    record = FitRecord(
        profile=session.plan.profile,
        metric=metric,
        budget_s=session.config.budget_s,
        spent_s=session.clock.by_phase(),
        candidates=records,
        equal=equal,
        chosen=result.name,
        final_run=str(result.run.relative_to(out)),
        notes=session.notes,
        warnings=session.warnings,
    )
    with session.clock.phase("report"):
        _report(session, record, result)
    record = replace(record, spent_s=session.clock.by_phase(), notes=session.notes)
    session.owner.check()
    write_csv(out, record)
    record.write(out)
    return record


def _settle(
    session: Session,
    frozen: Sequence[Scored],
    rounds: Sequence[RoundResult],
    choice: Choice,
    final: Final | None,
) -> Result:
    """The result: the final run, or the choice of the rounds, or the frozen network."""
    metric = session.config.metric
    best_frozen = choose(frozen, metric).best
    of_frozen = Result(best_frozen.name, session.out / FROZEN, best_frozen.head, None)
    if final is None:
        if choice.chosen.is_frozen:
            return replace(of_frozen, name=choice.chosen.name, head=choice.chosen.head)
        trained = rounds[-1].of_recipe(choice.chosen.recipe)[0]
        return Result(choice.chosen.name, trained.run, choice.chosen.head, session.parts.part(trained.part))
    if final.own is None:
        note = f"head and calibration of '{choice.chosen.name}'; trained on the validation images too"
        return Result(final.name, final.run, final.head, session.parts.whole, note)
    if best_frozen.parts == final.own.parts and exceeds(best_frozen, final.own, metric, FROZEN_SE):
        session.note(
            "The frozen network is better on validation than the final run by more than a standard error, and is the "
            "result."
        )
        return of_frozen
    part = session.parts.part(0)
    return Result(
        final.name, final.run, final.head, part, "scored on validation images that it did not train on"
    )


def _frozen_records(
    session: Session, frozen: Sequence[Scored], needed: Collection[str]
) -> list[CandidateRecord]:
    shown = shown_heads(frozen, session.config.metric, needed)
    shown += [one for one in frozen if plain(one.head) == SIMPLE_HEAD and one not in shown]
    run = session.out / FROZEN
    return [_record(one, 0, {}, "", score_test(session, run, one.head, None)) for one in shown]


def shown_heads(scored: Sequence[Scored], metric: Metric, needed: Collection[str]) -> list[Scored]:
    """The best heads, and those that are needed."""
    shown = top_heads(scored, metric, SHOWN_HEADS)
    return shown + [one for one in scored if one.name in needed and one not in shown]


def _round_records(
    session: Session, rounds: Sequence[RoundResult], needed: Collection[str]
) -> list[CandidateRecord]:
    """The best heads of each recipe in each round; those of the last round are scored on test."""
    records = []
    for result in rounds:
        for name in recipes_of(result.scored):
            runs = result.of_recipe(name)
            for one in shown_heads(of_recipe(result.scored, name), session.config.metric, needed):
                test = None
                if result is rounds[-1]:
                    test = score_test(session, runs[0].run, one.head, session.parts.part(runs[0].part))
                records.append(
                    replace(
                        _record(one, result.number, dict(runs[0].point), _place(session, runs[0].run), test),
                        images_seen=max(run.images_seen for run in runs),
                        seconds=round(sum(run.seconds for run in runs), 1),
                    )
                )
    return records


def _final_record(session: Session, final: Final, choice: Choice, result: Result) -> CandidateRecord:
    images, seconds = read_length(final.run)
    part = session.parts.whole if final.trains_on_all else session.parts.part(0)
    test = score_test(session, final.run, final.head, part)
    is_result = result.run == final.run
    return CandidateRecord(
        name=final.name,
        round=-1,
        settings=dict(final.recipe.settings),
        run=FINAL,
        head=dump(final.head),
        validation=to_record(final.own.score, final.own.of_parts) if final.own else None,
        test=to_record(test) if test else None,
        images_seen=images,
        seconds=round(seconds, 1),
        note=result.note if is_result else "worse on validation than the frozen network",
    )


def _record(
    one: Scored, number: int, settings: dict[str, object], run: str, test: HeadScore | None
) -> CandidateRecord:
    return CandidateRecord(
        name=one.name,
        round=number,
        settings=settings,
        run=run,
        head=dump(one.head),
        validation=to_record(one.score, one.of_parts),
        test=to_record(test) if test else None,
    )


def score_test(session: Session, run: Path, head: HeadConfig, part: Part | None) -> HeadScore | None:
    """Score a network and a head on test; None if there is no test image.

    The head is fitted to the images that the network was trained on: all of train, or a part's `rest`.
    """
    ids = session.parts.test_ids
    if not len(ids):
        return None
    train = session.parts.catalogue.select("train").ids if part is None else part.rest.ids
    embedded = _embed(session, run, np.concatenate([train, ids]))
    fitted = fit_head(head, rows_of(embedded, train), session.parts.classes)
    return score_head(fitted, rows_of(embedded, ids))


def _embed(session: Session, run: Path, ids: NDArray[np.int64]) -> Embedded:
    return embed_run(
        run, ids, session.parts.catalogue, session.out / "embedded" / f"{_kept(session, run)}.npz"
    )


def _kept(session: Session, run: Path) -> str:
    """Name of the cache file of a run's embeddings: `frozen`, `final`, `round-1-0003`."""
    path = run.relative_to(session.out).parts
    return path[0] if len(path) == 1 else f"round-{path[1]}-{path[-1]}"


def _place(session: Session, run: Path) -> str:
    return str(run.relative_to(session.out))


def _explain(session: Session, choice: Choice, equal: Sequence[str]) -> None:
    """Sentences on how sure the choice is."""
    if choice.chosen is not choice.best:
        reason = "the difference on validation is below half of its standard error, and it is the cheaper one"
        if choice.best.is_frozen and not choice.chosen.is_frozen:
            reason = (
                "the frozen network is better on validation by less than a standard error, and a trained one "
                "improves in the final run"
            )
        session.note(f"'{choice.chosen.name}' was chosen before '{choice.best.name}': {reason}.")
    if others := [name for name in equal if name != choice.best.name]:
        session.note(
            f"{len(others)} of the candidates listed are equal to the best one within noise on "
            f"{choice.best.score.n} validation images."
        )


def _build_index(session: Session, run: Path) -> None:
    """Build OUT/index from the cached embeddings."""
    build_from_run(
        run,
        session.parts.catalogue.folder,
        session.out / "index",
        IndexConfig(metric="cosine"),
        known=lambda ids: _embed(session, run, ids).vectors,
    )


def _report(session: Session, record: FitRecord, result: Result) -> None:
    """Write OUT/report.html in the remaining time; a failure is logged and does not affect the result."""
    parts = session.parts
    train_ids = parts.catalogue.select("train").ids if result.part is None else result.part.rest.ids
    test_ids = parts.test_ids if len(parts.test_ids) else parts.part(0).held.ids
    train = _embed(session, result.run, train_ids)
    scored = _embed(session, result.run, test_ids)
    frozen = _embed(session, session.out / FROZEN, parts.catalogue.select("train").ids)
    try:
        write_report(
            session.out,
            record,
            parts,
            head=fit_head(result.head, train, parts.classes),
            train=train,
            scored=scored,
            frozen=frozen,
            seconds=max(2.0, session.clock.left_s - 2.0),
        )
    except (FslDistError, OSError) as error:
        session.note(f"The report could not be written: {error}")
