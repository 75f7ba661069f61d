"""Run a paper's table: each of its runs is trained once, scored as its columns require,
and shown with the paper's figures.

Every run has a separate process. OUT/FAMILY/RUN/seed-S is the run's folder, which also contains its scores. Both are
reused, so an interrupted table resumes. The commands that a table lists do the same from a terminal.
"""

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fsl_dist.config import load_config
from index.base.errors import FslDistError, RequestError
from tune.tables.planned import Cell, PlannedRun, RowResult, cells_of, plan_run, read_metrics, write_json
from tune.tables.processes import run_alone
from tune.tables.tables import Family, Row, Table, has_row, on_family, read_family, read_table


def reproduce(
    name: str,
    *,
    family: str,
    data: Path,
    out: Path,
    seeds: int,
    jobs: int,
    settings: tuple[str, ...] = (),
    show: Callable[[str], None] = lambda line: None,
) -> tuple[Table, list[RowResult]]:
    """Train and score the missing parts of table `name`; return its rows as measured.

    Args:
        data: a packed data set, or the images from which it is packed.
        jobs: concurrent runs.
        settings: KEY=VALUE for every run, such as `workers.num=2`.

    A failing run leaves its row without scores and does not affect the others.

    Raises:
        RequestError: the table, family or data are unknown; nothing was run.
    """
    table = on_family(read_table(name), family)
    dataset = find_dataset(family, data, out, show)
    features = embed_features(family, dataset, out, settings, show)
    # Settings of the network that computes the features do not apply to the networks that learn from them.
    fixed = (f"data.dataset={dataset}", *([f"data.features={features}"] if features else settings))
    wanted: dict[PlannedRun, set[Cell]] = {}
    runs_of: list[tuple[PlannedRun, ...]] = []
    for row in table.rows:
        runs: tuple[PlannedRun, ...] = ()
        if row.system and has_row(family, row):
            runs = tuple(
                plan_run(out, family, row.system, row.train, row.after, seed, fixed) for seed in range(seeds)
            )
        for run in runs:
            wanted.setdefault(run, set()).update(cell for cell in cells_of(table, row) if cell)
        runs_of.append(runs)
    problems = _run_all(wanted, jobs, show)
    results = []
    for row, runs in zip(table.rows, runs_of, strict=True):
        if row.baseline and features:
            results.append(_score_baseline(table, row, dataset, features, out / family, show))
        elif runs:
            results.append(_collect(table, row, runs, problems))
        else:
            results.append(
                _unmeasured(table, row, runs, f"family {family} has no {row.system or row.baseline}")
            )
    return table, results


def find_dataset(family: str, data: Path, out: Path, show: Callable[[str], None]) -> Path:
    """The packed data set `data`, or the one that is packed from it once, as the family defines."""
    if (data / "catalogue").is_dir():
        return data
    recipe = read_family(family)
    if not data.is_dir() or recipe.pack is None:
        raise RequestError(f"data={data} must name a packed data set, or {recipe.source}")
    packed = out / family / "data"
    if not (packed / "catalogue").is_dir():
        show(f"packing {data} to {packed}")
        pack_family(recipe, data, packed)
    return packed


def pack_family(recipe: Family, data: Path, packed: Path) -> None:
    """Pack a family's images; FslDistError where some had to be left out."""
    from fsl_dist.data.ingest.pack import pack

    options = recipe.pack
    assert options is not None
    if options.columns is not None:
        columns = dataclasses.replace(options.columns, table=str(data / options.columns.table))
        options = dataclasses.replace(options, columns=columns)
    if bad := pack(data, packed, options).bad_samples:
        raise FslDistError(
            f"{packed} lacks {len(bad)} bad images of {data} (named above); run again to do without them"
        )


def embed_features(
    family: str,
    dataset: Path,
    out: Path,
    settings: tuple[str, ...],
    show: Callable[[str], None],
) -> Path | None:
    """The features that the family trains on, computed once by its network; None if it trains on images."""
    maker, _, system = read_family(family).embed.partition("/")
    if not system:
        return None
    run = plan_run(out, maker, system, (), "", 0, (f"data.dataset={dataset}", *settings))
    features = out / family / "features.npy"
    if not features.is_file():
        show(f"embedding {dataset} by {maker}/{system}")
        if not run.is_finished():
            run_alone(run.train, log=run.log)
        run_alone(_embed, run.folder, dataset, features, log=run.log)
    return features


def _embed(run: Path, dataset: Path, out: Path) -> None:
    from contextlib import closing

    from fsl_dist.indexing import write_embeddings
    from fsl_dist.training.trained import open_trained

    with closing(open_trained(run, dataset=dataset)) as trained:
        write_embeddings(trained, out)


def _run_all(wanted: dict[PlannedRun, set[Cell]], jobs: int, show: Callable[[str], None]) -> dict[Path, str]:
    """Train and score every run, `jobs` at a time; return the errors by folder."""
    problems: dict[Path, str] = {}
    done = 0
    lock = threading.Lock()
    # One lock for each folder: two rows may start from the same trained network.
    folders = {run.folder: threading.Lock() for run in wanted}
    folders |= {run.after.folder: threading.Lock() for run in wanted if run.after and run.after not in wanted}

    def work(run: PlannedRun) -> None:
        nonlocal done
        problem = ""
        try:
            if run.after:
                with folders[run.after.folder]:
                    _complete(run.after, [])
            with folders[run.folder]:
                _complete(run, sorted(wanted[run], key=str))
        except FslDistError as error:
            problem = str(error)
        with lock:
            done += 1
            if problem:
                problems[run.folder] = problem
            what = f"{run.folder.parent.name} seed {run.folder.name.removeprefix('seed-')}"
            show(f"{done} of {len(wanted)}: {what} {problem or 'done'}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, wanted))
    return problems


def _complete(run: PlannedRun, cells: list[Cell]) -> None:
    """Train a run and score it, as far as neither was done before; a process is only started if there is work."""
    is_finished = run.is_finished()
    missing = [cell for cell in cells if not cell.scores_file(run.folder).is_file()]
    if missing or not is_finished:
        run_alone(_train_and_score, run, not is_finished, missing, log=run.log)


def _train_and_score(run: PlannedRun, trains: bool, cells: list[Cell]) -> None:
    if trains:
        run.train()
    for cell in cells:
        if not cell.scores_file(run.folder).is_file():  # two metrics may share one evaluation
            cell.score(run.folder)


def _score_baseline(
    table: Table, row: Row, dataset: Path, features: Path, folder: Path, show: Callable[[str], None]
) -> RowResult:
    """A baseline is deterministic: one score, for any number of seeds."""
    words = ["fsl-dist", "baseline", row.baseline, str(dataset), "--features", str(features), *row.evaluate]
    path = folder / "scores" / f"{','.join([row.baseline, *row.evaluate])}.json"
    try:
        if not path.is_file():
            run_alone(_evaluate_baseline, row, dataset, features, path, log=folder / "commands.log")
            show(f"baseline {row.baseline} done")
    except FslDistError as error:
        return _unmeasured(table, row, (), str(error))
    metrics = read_metrics(path, folder)
    cells = cells_of(table, row)
    scores = tuple([metrics[cell.metric]] if cell else [] for cell in cells)
    return RowResult(row, (), cells, scores, commands=(" ".join(words),))


def _evaluate_baseline(row: Row, dataset: Path, features: Path, path: Path) -> None:
    from fsl_dist.evaluation.baselines import evaluate_baseline

    config = load_config(None, [f"data.dataset={dataset}", f"data.features={features}", *row.evaluate])
    report = evaluate_baseline(row.baseline, config)  # type: ignore[arg-type]  # checked there
    write_json(path, dataclasses.asdict(report))


def _unmeasured(table: Table, row: Row, runs: tuple[PlannedRun, ...], problem: str) -> RowResult:
    cells = cells_of(table, row)
    return RowResult(row, runs, cells, tuple([] for _ in cells), problem)


def _collect(table: Table, row: Row, runs: tuple[PlannedRun, ...], problems: dict[Path, str]) -> RowResult:
    cells = cells_of(table, row)
    if failed := [problems[run.folder] for run in runs if run.folder in problems]:
        return _unmeasured(table, row, runs, failed[0])
    scores: list[list[Any]] = []
    for column, cell in zip(table.columns, cells, strict=True):
        found = []
        for run in runs if cell else ():
            assert cell is not None
            metrics = read_metrics(cell.scores_file(run.folder), run.folder)
            if cell.metric not in metrics and column.optional:
                continue
            if cell.metric not in metrics:
                return _unmeasured(table, row, runs, f"{cell.metric} is not among the scores of {run.folder}")
            found.append(metrics[cell.metric])
        scores.append(found)
    return RowResult(row, runs, cells, tuple(scores))
