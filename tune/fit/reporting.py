"""The report on a fit: its record and embeddings, converted for the page."""

from dataclasses import asdict
from pathlib import Path

from fsl_dist.heads import Embedded, Head, HeadConfig
from fsl_dist.plots.fit_report.inputs import Candidate, Overview, Score
from fsl_dist.plots.fit_report.measuring import Chosen, measure_fit
from fsl_dist.plots.fit_report.page import write_fit_report
from index.base.settings import validate
from tune.fit.data import Parts
from tune.fit.records import CandidateRecord, FitRecord, ScoreRecord


def write_report(
    out: Path,
    record: FitRecord,
    parts: Parts,
    *,
    head: Head,
    train: Embedded,
    scored: Embedded,
    frozen: Embedded,
    seconds: float,
) -> Path:
    """Write OUT/report.html within about `seconds`; parts that do not fit are listed in it.

    Args:
        out: the fit's folder.
        record: the candidates and the choice.
        parts: the data.
        head: of the chosen candidate, fitted to `train`.
        train: training images, embedded by the chosen network.
        scored: test images, or validation images if there are none, embedded by it.
        frozen: training images, embedded by the frozen network.
        seconds: time limit.
    """
    run = out / record.final_run
    overview = Overview(
        dataset=parts.catalogue.folder.name if parts.catalogue.folder.parent != out else out.name,
        candidates=tuple(_candidate(one) for one in record.candidates),
        chosen=record.chosen,
        equal=tuple(record.equal),
        budget_s=record.budget_s,
        spent_s=record.spent_s,
        notes=tuple(record.notes),
        warnings=tuple(record.warnings),
        commands=(
            f'run = fsl_dist.open_run("{run}")',
            'run.predict(["image.jpg"])',
            'run.explain(["image.jpg"], out="evidence")',
        ),
    )
    chosen = Chosen(head=head, train=train, scored=scored, split=parts.test_split or "val")
    return write_fit_report(
        out, measure_fit(overview, parts.catalogue, chosen, frozen=frozen, seconds=seconds)
    )


def _candidate(one: CandidateRecord) -> Candidate:
    head = validate(HeadConfig, one.head, "fit.json", "head")
    return Candidate(
        name=one.name,
        head="" if one.name.endswith(head.name) else head.name,
        validation=_score(one.validation),
        test=_score(one.test),
        images_seen=one.images_seen,
        seconds=one.seconds,
        state=one.state,
        note=one.note,
        round=None if one.round < 1 else one.round,
        is_frozen=one.round == 0,
    )


def _score(found: ScoreRecord | None) -> Score | None:
    return None if found is None else Score(**asdict(found))
