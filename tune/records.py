"""The files of a sweep's folder: the sweep, one folder per trial, the reports of the trials, and the durations.

    SWEEP/sweep-config.yaml            the sweep as it was started, including its whole base
    SWEEP/trials/NNNN/                 the folder of a run, as training creates it, with additional files:
                      trial.json       the point, written before the trial starts
                      evaluation.json  its scores, one entry per combination of the evaluation grid
                      validation.json  number of images per class that its validations score, written by the run
                      result.json      how it ended, written last: without it the trial is not finished
                      index/           in a sweep of indexes, instead of the run, until it is measured
    SWEEP/reports.jsonl                each validation of each trial, in chronological order
    SWEEP/sessions/NNNNNNNN.json       duration of each session of the sweep, and the working time of its trials

Every file is replaced in one step or appended to by lines, and has a checksum (`index.base.checksums`), which binds
it to its trial; nothing is pickled.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fsl_dist.metrics.standard_error import VALIDATION_FILE
from index.base.checksums import encode_json, read_json, read_lines
from index.base.errors import ConfigError, VersionError
from index.base.files import exists, write_atomic
from index.base.settings import validate
from tune.space import Point

TRIAL_FILE = "trial.json"
RESULT_FILE = "result.json"
EVALUATION_FILE = "evaluation.json"
REPORTS_FILE = "reports.jsonl"
_OF_A_TRIAL = ([TRIAL_FILE], [RESULT_FILE], [EVALUATION_FILE], [VALIDATION_FILE])


_Record = TypeVar("_Record")


def is_record(name: str) -> bool:
    """Whether a file, named relative to a sweep's folder, is one of these and no part of a run."""
    parts = name.split("/")
    return parts[0] in (REPORTS_FILE, "sessions") or (parts[0] == "trials" and parts[2:] in _OF_A_TRIAL)


State = Literal["finished", "stopped", "pruned", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How a trial ended."""

    state: State
    """finished: to its end; stopped: by the scheduler; pruned: its point is invalid; failed: by an error"""
    value: float | None = None
    """best validation value of the sweep's metric; of an index, the metric at its best search parameters"""
    epochs: int = 0
    """epochs trained"""
    train_s: float = 0.0
    """seconds inside training, or building an index, since the trial was last started"""
    evaluate_s: float = 0.0
    """seconds inside evaluation, or measuring an index"""
    error: str = ""
    """one line: why it was pruned or failed"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One time that a trial continued with another trial's network, with other settings (population based training)."""

    donor: int
    """number of the trial whose network it was"""
    epoch: int
    """epochs that the donor had done"""
    before: Point
    """the trial's changes to the base until then"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One trial as recorded in its folder."""

    number: int
    """of its folder, from 0"""
    folder: Path
    point: Point
    """its changes to the base; empty: it is the base"""
    draw: int = -1
    """number of the point among those of the search; −1 for the base"""
    result: Result | None = None
    """None: under way, or cut off"""
    changes: tuple[Change, ...] = ()
    """how it came to its point, the first change first; none but under population based training"""

    @property
    def is_scored(self) -> bool:
        """Whether it has a value to compare."""
        return self.result is not None and self.result.value is not None and self.result.state != "failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """One start of a sweep."""

    started: str
    """date and time"""
    wall_s: float = 0.0
    """seconds since then, at the last writing"""
    busy_core_s: float = 0.0
    """seconds of trials inside training and evaluation, times the cores of a trial"""
    cores: float = 0.0
    """number of cores available to the trials"""


@dataclass(frozen=True, slots=True)
class Report:
    """One validation of a trial."""

    trial: int
    epoch: int
    """epochs done"""
    value: float
    stops: bool
    """whether the scheduler ended the trial here"""
    change: int = 0
    """changes of the trial before it (`Trial.changes`)"""


@dataclass(frozen=True, slots=True)
class SweepFolder:
    """The files of one sweep."""

    folder: Path

    def trial_folder(self, number: int) -> Path:
        """The run folder of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def trials(self) -> list[Trial]:
        """All trials that were started or pruned, by number."""
        found = []
        for path in sorted((self.folder / "trials").glob(f"*/{TRIAL_FILE}")):
            about = _read(_About, path)
            if path.parent != self.trial_folder(about.number):
                raise VersionError(f"{path} is that of trial {about.number}: the file was swapped")
            changes = [replace(change, before=_read_point(change.before)) for change in about.changes]
            found.append(
                Trial(
                    number=about.number,
                    folder=path.parent,
                    point=_read_point(about.point),
                    draw=about.draw,
                    result=_read_result(path.parent),
                    changes=tuple(changes),
                )
            )
        return found

    def start(self, number: int, draw: int, point: Point) -> Trial:
        """Record a trial's point; the trial keeps it from now on."""
        folder = self.trial_folder(number)
        _write(folder / TRIAL_FILE, {"number": number, "draw": draw, "point": point})
        return Trial(number=number, folder=folder, point=point, draw=draw)

    def change(self, trial: Trial, donor: int, epoch: int, point: Point) -> Trial:
        """Record that a trial continues with the network that trial `donor` had after `epoch` epochs,
        at another point."""
        changes = (*trial.changes, Change(donor=donor, epoch=epoch, before=trial.point))
        about = {"number": trial.number, "draw": trial.draw, "point": point}
        _write(trial.folder / TRIAL_FILE, {**about, "changes": list(map(asdict, changes))})
        return replace(trial, point=point, changes=changes)

    def finish(self, trial: Trial, result: Result) -> Trial:
        """Write down how a trial ended."""
        _write(trial.folder / RESULT_FILE, asdict(result))
        return replace(trial, result=result)

    def reports(self) -> list[Report]:
        """All reports in chronological order; an incomplete last line is left out."""
        path = self.folder / REPORTS_FILE
        if not exists(path):
            return []
        lines = read_lines(path, root=self.folder)
        return [_as(Report, line, f"{path}, line {number},") for number, line in enumerate(lines, start=1)]

    def sessions(self) -> list[Session]:
        """All starts of the sweep."""
        paths = sorted((self.folder / "sessions").glob("*.json"))
        return [_as(Session, read_json(p, root=self.folder, name=p.name), str(p)) for p in paths]

    def write_session(self, number: int, session: Session) -> None:
        """Replace the record of one session."""
        path = self.folder / "sessions" / f"{number:08d}.json"
        write_atomic(path, encode_json(asdict(session), path.name))


@dataclass(frozen=True, slots=True)
class Cell:
    """A trial's scores under one combination of the evaluation grid."""

    settings: Point
    """evaluation settings that distinguish it; `k_p`, `delta_tau` and `k` are part of the scores' names"""
    metrics: dict[str, Any] = field(default_factory=dict)
    """as `EvaluationReport` has them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _About:
    """The content of `trial.json`."""

    number: int
    draw: int
    point: Point
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evaluation:
    """The content of `evaluation.json`."""

    split: str
    cells: tuple[Cell, ...]


def write_evaluation(folder: Path, split: str, cells: list[Cell]) -> None:
    """Write a trial's scores."""
    _write(folder / EVALUATION_FILE, {"split": split, "cells": [asdict(c) for c in cells]})


def read_evaluation(folder: Path) -> Iterator[Cell]:
    """A trial's scores; empty if it was not evaluated."""
    if (folder / EVALUATION_FILE).is_file():
        for cell in _read(_Evaluation, folder / EVALUATION_FILE).cells:
            for name, value in cell.metrics.items():
                numbers = (
                    value.values() if isinstance(value, dict) and {"mean", "std"} <= set(value) else [value]
                )
                if not all(isinstance(number, int | float) for number in numbers):
                    raise VersionError(f"{folder / EVALUATION_FILE} is damaged: {name} is not a score")
            yield cell


def read_split(folder: Path) -> str:
    """The split of the base classes' queries of a trial's scores: test, otherwise val;
    empty if it was not evaluated."""
    path = folder / EVALUATION_FILE
    return _read(_Evaluation, path).split if path.is_file() else ""


def _read_point(data: dict) -> Point:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in data.items()}


def _read_result(folder: Path) -> Result | None:
    path = folder / RESULT_FILE
    return _read(Result, path) if path.is_file() else None


def _read(cls: type[_Record], path: Path) -> _Record:
    """The content of a trial's file `path`. Raises VersionError if it is damaged, or another trial's."""
    trial = path.parent
    return _as(cls, read_json(path, root=trial.parent.parent, name=trial.name), str(path))


def _as(cls: type[_Record], data: dict[str, Any], place: str) -> _Record:
    try:
        return validate(cls, data, place)
    except ConfigError as error:
        raise VersionError(f"{place} is damaged: {error}") from None


def _write(path: Path, data: dict[str, Any]) -> None:
    write_atomic(path, encode_json(data, path.parent.name))
