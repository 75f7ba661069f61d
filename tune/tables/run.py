"""Running a paper's table: each of its runs trained once, scored as its columns ask, and put beside the paper.

Every run is a `fsl-dist` command of its own, so what a table did can be typed by hand, and a killed command goes on
where it was: OUT/FAMILY/RUN/seed-S is the run's folder, its scores lie in it, and both are found again.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl_dist.config import CONFIG_FILE, load_config, load_run, resolve_paths
from fsl_dist.training.resume import check_resumable
from index.base.errors import FslDistError, RequestError
from index.base.files import write_atomic
from index.base.settings import parse_overrides, parse_yaml
from tune.tables.tables import Row, Table, config_of, has_row, on_family, read_family, read_table

_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a table: one system, one seed."""

    folder: Path
    config: Path
    overrides: tuple[str, ...]
    after: "PlannedRun | None" = None
    """the run whose trained network it starts from"""

    def train_command(self) -> list[str]:
        """Arguments of `fsl-dist` that train it, or go on with it."""
        settings = list(self.overrides)
        if self.after:
            settings = [
                s for s in settings if not s.startswith(("backbone.weights=", "backbone.pretrained="))
            ]
            settings += [f"backbone.weights={self.after.folder}", "backbone.pretrained=false"]
        settings.append(f"run.dir={self.folder}")
        return ["train", "--config", str(self.config), *settings]


@dataclass(frozen=True, slots=True)
class Cell:
    """Where a score comes from: a metric under certain evaluation settings of a row's runs."""

    metric: str
    protocol: str
    evaluate: tuple[str, ...]

    def command(self, run: Path) -> list[str]:
        """Arguments of `fsl-dist` that measure it."""
        return [
            "evaluate",
            str(run),
            *(["--protocol", self.protocol] if self.protocol else []),
            *self.evaluate,
        ]

    def scores_file(self, run: Path) -> Path:
        """Where a run's scores under these settings are kept."""
        words = [self.protocol or "all", *(setting.removeprefix("evaluation.") for setting in self.evaluate)]
        return run / "scores" / f"{','.join(words)}.json"


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row as it was measured: for each column the scores of all seeds, None where the row has no such score."""

    row: Row
    runs: tuple[PlannedRun, ...]
    cells: tuple[Cell | None, ...]
    scores: tuple[list[Any], ...]
    problem: str = ""
    """why it was not measured"""
    commands: tuple[str, ...] = ()
    """what measured it, where it has no runs"""


def cells_of(table: Table, row: Row) -> tuple[Cell | None, ...]:
    """What a row's columns show."""
    metrics = row.metrics or tuple(column.metric for column in table.columns)
    return tuple(
        Cell(metric, row.protocol, (*row.evaluate, *column.evaluate)) if metric else None
        for metric, column in zip(metrics, table.columns, strict=True)
    )


def plan_run(
    out: Path, family: str, system: str, train: Iterable[str], after: str, seed: int, fixed: tuple[str, ...]
) -> PlannedRun:
    """The run of `system` with `train` over its YAML; its folder is named by what it is."""
    config = config_of(family, system)
    if config is None:
        raise RequestError(
            f"--family {family} has no system '{system}' (fsl_dist/experiments/{family}/{system}.yaml)"
        )
    train = _changes(config, train)
    name = ",".join(
        [system, *(setting.split(".", 1)[-1] for setting in train), *([f"after={after}"] if after else [])]
    )
    start = plan_run(out, family, after, (), "", seed, fixed) if after else None
    overrides = (*fixed, *train, f"run.seed={seed}")
    return PlannedRun(out / family / name / f"seed-{seed}", config, overrides, start)


def _changes(config: Path, settings: Iterable[str]) -> tuple[str, ...]:
    """Those of `settings` that the YAML does not hold already: a row may name what is a family's default."""
    own = parse_yaml(config.read_text("utf-8"), str(config))

    def is_new(setting: str) -> bool:
        part, _, name = setting.partition("=")[0].rpartition(".")
        return own.get(part, {}).get(name) != parse_overrides([setting])[part][name]

    return tuple(setting for setting in settings if is_new(setting))


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
    """Train and score what is missing of table `name`; returns its rows as measured.

    data: a packed data set, or the images it is packed from. settings: KEY=VALUE for every run, such as
    `workers.num=2`. A run that fails leaves its row without scores and the others as they are.

    Raises RequestError for an unknown table, family or data, before anything runs.
    """
    table = on_family(read_table(name), family)
    dataset = find_dataset(family, data, out, show)
    features = embed_features(family, dataset, out, settings, show)
    # Settings of the network that makes the features are not those of the networks that learn from them.
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
    """The packed data set of --data: itself, or packed from it once, as the family says."""
    if (data / "catalogue").is_dir():
        return data
    recipe = read_family(family)
    if not data.is_dir() or not recipe.pack:
        raise RequestError(f"--data {data} must name a packed data set, or {recipe.source}")
    packed = out / family / "data"
    if not (packed / "catalogue").is_dir():
        show(f"packing {data} to {packed}")
        _fsl_dist(
            ["pack", str(data), str(packed), *(option.format(data=data) for option in recipe.pack)], None
        )
    return packed


def embed_features(
    family: str, dataset: Path, out: Path, settings: tuple[str, ...], show: Callable[[str], None]
) -> Path | None:
    """The features that the family trains on, made once by the network it names; None where it trains on images."""
    maker, _, system = read_family(family).embed.partition("/")
    if not system:
        return None
    run = plan_run(out, maker, system, (), "", 0, (f"data.dataset={dataset}", *settings))
    features = out / family / "features.npy"
    if not features.is_file():
        show(f"embedding {dataset} by {maker}/{system}")
        _train(run)
        _fsl_dist(["embed", str(run.folder), str(dataset), "--out", str(features)], run.folder)
    return features


def draw_pictures(
    table: Table, results: list[RowResult], stem: Path, show: Callable[[str], None] = lambda line: None
) -> list[tuple[Path, str]]:
    """Draw the table's pictures as STEM-NAME.png; returns each file with its command. Those whose rows were not measured
    are left out.

    Raises FslDistError where a picture cannot be drawn.
    """
    first_run = {
        result.row.name: result.runs[0].folder for result in results if result.runs and not result.problem
    }
    drawn = []
    for picture in table.pictures:
        if not all(name in first_run for name in picture.rows):
            continue
        out = stem.with_name(f"{stem.name}-{picture.name}.png")
        runs = [str(first_run[name]) for name in picture.rows]
        command = ["plot", picture.plot, *runs, *picture.options, "--out", str(out)]
        show(f"drawing {out}")
        _fsl_dist(command, None)
        drawn.append((out, f"fsl-dist {' '.join(command)}"))
    return drawn


def _run_all(wanted: dict[PlannedRun, set[Cell]], jobs: int, show: Callable[[str], None]) -> dict[Path, str]:
    """Train and score every run, `jobs` at a time; returns what went wrong, by folder."""
    problems: dict[Path, str] = {}
    done = 0
    lock = threading.Lock()
    # One lock a folder: two rows may start from the same trained network.
    folders = {run.folder: threading.Lock() for run in wanted}
    folders |= {run.after.folder: threading.Lock() for run in wanted if run.after and run.after not in wanted}

    def work(run: PlannedRun) -> None:
        nonlocal done
        problem = ""
        try:
            if run.after:
                with folders[run.after.folder]:
                    _train(run.after)
            with folders[run.folder]:
                _train(run)
                for cell in sorted(wanted[run], key=str):
                    _score(run, cell)
        except FslDistError as error:
            problem = str(error)
        with lock:
            done += 1
            if problem:
                problems[run.folder] = problem
            place = f"{run.folder.parent.name} seed {run.folder.name.removeprefix('seed-')}"
            show(f"{done} of {len(wanted)}: {place} {problem or 'done'}")

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, wanted))
    return problems


def _train(run: PlannedRun) -> None:
    summary = run.folder / _SUMMARY
    if (run.folder / CONFIG_FILE).is_file():
        # The settings that make a run another one must be those it was started with.
        settings = run.train_command()[3:]
        config = resolve_paths(load_config(run.config, settings))
        check_resumable(config, load_run(run.folder), is_finished=True)
    if summary.is_file():
        return
    resume = ["--resume"] if (run.folder / CONFIG_FILE).is_file() else []
    write_atomic(summary, _fsl_dist([*run.train_command(), *resume, "--json"], run.folder).encode())


def _score(run: PlannedRun, cell: Cell) -> None:
    path = cell.scores_file(run.folder)
    if not path.is_file():
        write_atomic(path, _fsl_dist([*cell.command(run.folder), "--json"], run.folder).encode())


def _fsl_dist(arguments: list[str], folder: Path | None) -> str:
    """Run a command of this installation; what it prints. RequestError or FslDistError with its own last line."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    program = "import sys; from cluster.cli import main; sys.argv[0] = 'fsl-dist'; main()"
    finished = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=environment
    )
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "commands.log").open("a", encoding="utf-8") as file:
            file.write(f"fsl-dist {' '.join(arguments)}\n{finished.stderr}\n")
    if finished.returncode != 0:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or ["it printed nothing"]
        error = RequestError if finished.returncode == 2 else FslDistError
        raise error(f"fsl-dist {arguments[0]}: {lines[-1].removeprefix('error: ')}")
    return finished.stdout


def _score_baseline(
    table: Table, row: Row, dataset: Path, features: Path, folder: Path, show: Callable[[str], None]
) -> RowResult:
    """A baseline draws nothing at random: one score, whatever the number of seeds."""
    command = ["baseline", row.baseline, str(dataset), "--features", str(features), *row.evaluate]
    path = folder / "scores" / f"{','.join([row.baseline, *row.evaluate])}.json"
    try:
        if not path.is_file():
            write_atomic(path, _fsl_dist([*command, "--json"], folder).encode())
            show(f"baseline {row.baseline} done")
    except FslDistError as error:
        return _unmeasured(table, row, (), str(error))
    metrics = json.loads(path.read_text("utf-8"))["metrics"]
    cells = cells_of(table, row)
    scores = tuple([metrics[cell.metric]] if cell else [] for cell in cells)
    return RowResult(row, (), cells, scores, commands=(f"fsl-dist {' '.join(command)}",))


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
            metrics = json.loads(cell.scores_file(run.folder).read_text("utf-8"))["metrics"]
            if cell.metric not in metrics and column.optional:
                continue
            if cell.metric not in metrics:
                return _unmeasured(table, row, runs, f"{cell.metric} is not among the scores of {run.folder}")
            found.append(metrics[cell.metric])
        scores.append(found)
    return RowResult(row, runs, cells, tuple(scores))
