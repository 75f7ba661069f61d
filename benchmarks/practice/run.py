"""Running the comparison: each row of each set and seed once; what is finished is not run again."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.practice.outcome import Job
from benchmarks.practice.parts import Prepared
from benchmarks.practice.records import HeadScores, RunRecord, SetRecord, open_record
from benchmarks.practice.rows import ROWS, Row
from benchmarks.practice.sets import PracticeSet, open_set
from benchmarks.practice.spent import Spent
from fsl_dist.errors import FslDistError


def run_set(
    chosen: PracticeSet,
    *,
    archives: Path | None,
    weights: Path,
    work: Path,
    out: Path,
    seeds: int,
    rows: Sequence[Row] = tuple(ROWS.values()),
    say: Callable[[str], None] = print,
) -> SetRecord:
    """Run what is missing of a set, and write OUT/SET.json after each run.

    Args:
        chosen: the data set.
        archives: folder of archives, for sets that have one.
        weights: torchvision's MobileNetV2.
        work: folder for unpacked and packed data and cached activations; reused.
        out: existing folder of results.
        seeds: runs of each row that differs by its seed, at least 1.
        rows: those to run, in this order.
        say: gets a line for each finished run.

    A row that fails is recorded as missing with its reason, and the next row is run.

    Raises:
        RequestError: archive or weights are missing, or the results are of other settings.
    """
    place = work / (f"{chosen.name}-{chosen.key}" if chosen.key else chosen.name)
    prepared = Prepared(chosen, open_set(chosen, archives, place), weights, place)
    path = out / f"{chosen.name}.json"
    record = open_record(path, prepared)
    for row in rows:
        if reason := _find_obstacle(row, record):
            record.missing[row.name] = reason
            record.write(path)
            say(f"{chosen.name}: {row.name} is left out: {reason}")
            continue
        record.missing.pop(row.name, None)
        for seed in range(seeds if row.is_seeded else 1):
            if record.find(row.name, seed) is not None:
                continue
            try:
                run = _run(row, prepared, record, seed)
            except FslDistError as error:
                record.missing[row.name] = f"seed {seed} failed: {error}"
                record.write(path)
                say(f"{chosen.name}: {row.name}, {record.missing[row.name]}")
                break
            record.runs.append(run)
            record.write(path)
            say(f"{chosen.name}: {describe_run(run)}")
    return record


def describe_run(run: RunRecord) -> str:
    """A finished run in a line."""
    scores = "; ".join(
        f"{name or 'own'} {100 * head.test['acc']:.1f} / {100 * head.test['mcr']:.1f}"
        for name, head in run.heads.items()
    )
    rate = f", rate {run.rate:g}" if run.rate else ""
    return f"{run.row}, seed {run.seed}{rate}: {scores} in {run.spent.seconds:.0f} s"


def _find_obstacle(row: Row, record: SetRecord) -> str:
    """Why the row cannot run; empty where it can."""
    if not row.missing and row.budget_of and not record.of_row(row.budget_of):
        return f"it is given the seconds of “{row.budget_of}”, which has not been run"
    return row.missing


def _run(row: Row, prepared: Prepared, record: SetRecord, seed: int) -> RunRecord:
    """Seed 0 tries all learning rates and keeps the one that is best on validation; other seeds follow it."""
    first = record.find(row.name, 0)
    rates = row.rates_on(prepared.set) if first is None else (first.rate,)
    budget = _budget_of(row, record)
    tried = [(rate, row.run(Job(prepared, seed, rate, budget))) for rate in rates]
    chosen, outcome = max(tried, key=lambda pair: pair[1].validated)
    tuning = sum((other.spent for rate, other in tried if rate != chosen), Spent())
    heads = {
        name: HeadScores(
            result.setting, None if result.val is None else result.val.to_json(), result.test().to_json()
        )
        for name, result in outcome.results.items()
    }
    return RunRecord(
        row=row.name,
        seed=seed,
        rate=chosen,
        spent=outcome.spent + outcome.setup,
        tuning=tuning,
        images=outcome.images,
        threads=torch.get_num_threads(),
        heads=heads,
    )


def _budget_of(row: Row, record: SetRecord) -> float:
    """Seconds that the row is given: the mean over the other row's runs, with its tuning where the row says so."""
    if not row.budget_of:
        return 0.0
    runs = record.of_row(row.budget_of)
    tuning_s = runs[0].tuning.seconds if row.with_tuning else 0.0
    return max(row.least_s, statistics.fmean(run.spent.seconds for run in runs) + tuning_s)
