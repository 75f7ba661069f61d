"""The runs and scores of a table before and during their computation: their files, and the equivalent commands."""

import dataclasses
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsl_dist.config import (
    CONFIG_FILE,
    RunConfig,
    load_config,
    load_evaluation,
    load_run,
    read_config,
    resolve_paths,
)
from fsl_dist.training.resume import check_resumable
from index.base.checksums import encode_json, read_json
from index.base.errors import RequestError, VersionError
from index.base.files import write_atomic
from index.base.settings import parse_overrides
from tune.tables.tables import Row, Table, config_of

_SUMMARY = "summary.json"


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a table: one system, one seed."""

    folder: Path
    family: str
    system: str
    overrides: tuple[str, ...]
    after: "PlannedRun | None" = None
    """the run whose trained network it starts from"""

    @property
    def log(self) -> Path:
        """What its processes print."""
        return self.folder / "commands.log"

    @property
    def settings(self) -> tuple[str, ...]:
        """KEY=VALUE over the system's configuration."""
        settings = list(self.overrides)
        if self.after:
            settings = [
                s for s in settings if not s.startswith(("backbone.weights=", "backbone.pretrained="))
            ]
            settings += [f"backbone.weights={self.after.folder}", "backbone.pretrained=false"]
        return (*settings, f"run.dir={self.folder}")

    def command(self) -> str:
        """The command that trains it, or resumes it."""
        return f"fsl-dist train --config {self.family}/{self.system} {' '.join(self.settings)}"

    def is_finished(self) -> bool:
        """Whether it is trained; RequestError if its folder contains a run with other settings."""
        if (self.folder / CONFIG_FILE).is_file():
            check_resumable(self._config(), load_run(self.folder), is_finished=True)
        return (self.folder / _SUMMARY).is_file()

    def train(self) -> None:
        """Train it, from its last checkpoint if there is one."""
        from fsl_dist.training.launch import train_run

        print(self.command(), file=sys.stderr, flush=True)
        summary = train_run(self._config(), resume=(self.folder / CONFIG_FILE).is_file())
        write_json(self.folder / _SUMMARY, dataclasses.asdict(summary))

    def _config(self) -> RunConfig:
        return resolve_paths(load_config(config_of(self.family, self.system), self.settings))


@dataclass(frozen=True, slots=True)
class Cell:
    """The source of a score: a metric under certain evaluation settings of a row's runs."""

    metric: str
    protocol: str
    evaluate: tuple[str, ...]

    def command(self, run: Path) -> str:
        """The command that measures it."""
        options = ["--protocol", self.protocol] if self.protocol else []
        return f"fsl-dist evaluate {' '.join([str(run), *options, *self.evaluate])}"

    def scores_file(self, run: Path) -> Path:
        """The file of a run's scores under these settings."""
        words = [self.protocol or "all", *(setting.removeprefix("evaluation.") for setting in self.evaluate)]
        return run / "scores" / f"{','.join(words)}.json"

    def score(self, run: Path) -> None:
        """Score a trained run under these settings."""
        from fsl_dist.evaluation.report import evaluate_run

        print(self.command(run), file=sys.stderr, flush=True)
        settings = load_evaluation(run, self.evaluate)
        report = evaluate_run(run, protocol=self.protocol or None, settings=settings)
        write_json(self.scores_file(run), report.to_json())


@dataclass(frozen=True, slots=True)
class RowResult:
    """A measured row: for each column the scores of all seeds, empty if the row has no such score."""

    row: Row
    runs: tuple[PlannedRun, ...]
    cells: tuple[Cell | None, ...]
    scores: tuple[list[Any], ...]
    problem: str = ""
    """why it was not measured"""
    commands: tuple[str, ...] = ()
    """the commands that measured it, if it has no runs"""


def cells_of(table: Table, row: Row) -> tuple[Cell | None, ...]:
    """The cells of a row's columns."""
    metrics = row.metrics or tuple(column.metric for column in table.columns)
    return tuple(
        Cell(metric, row.protocol, (*row.evaluate, *column.evaluate)) if metric else None
        for metric, column in zip(metrics, table.columns, strict=True)
    )


def plan_run(
    out: Path, family: str, system: str, train: Iterable[str], after: str, seed: int, fixed: tuple[str, ...]
) -> PlannedRun:
    """The run of `system` with the settings `train` added to its configuration; its folder is named by its content."""
    config = config_of(family, system)
    if config is None:
        raise RequestError(f"family={family} has no system '{system}': there is no {family}/{system}")
    train = _changes(config, train)
    name = ",".join(
        [system, *(setting.split(".", 1)[-1] for setting in train), *([f"after={after}"] if after else [])]
    )
    start = plan_run(out, family, after, (), "", seed, fixed) if after else None
    overrides = (*fixed, *train, f"run.seed={seed}")
    return PlannedRun(out / family / name / f"seed-{seed}", family, system, overrides, start)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as one JSON object with its checksum, whole or not at all."""
    write_atomic(path, encode_json(value, path.name))


def read_metrics(path: Path, run: Path) -> dict[str, Any]:
    """The scores in a file that `write_json` wrote into the folder `run`. Raises VersionError if it is damaged."""
    metrics = read_json(path, root=run, name=path.name).get("metrics")
    if not isinstance(metrics, dict):
        raise VersionError(f"{path} is damaged: it has no metrics (remove it to score the run again)")
    return metrics


def _changes(config: Path, settings: Iterable[str]) -> tuple[str, ...]:
    """Those of `settings` that differ from the YAML: a row may repeat a family's default."""
    own, _ = read_config(config)

    def is_new(setting: str) -> bool:
        part, _, name = setting.partition("=")[0].rpartition(".")
        return own.get(part, {}).get(name) != parse_overrides([setting])[part][name]

    return tuple(setting for setting in settings if is_new(setting))
