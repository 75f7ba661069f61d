"""`doctor`: a complete check of a run, data set, index or sweep, with the damage found and possible repairs."""

import os
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from fsl_dist.checking import check_dataset, check_run, is_run
from fsl_dist.data.catalogue import is_dataset
from index.base.checkup import Checkup, Finding
from index.base.errors import RequestError
from index.base.files import exists, unpack_arrays
from index.base.object_cache import bring, with_addresses, working_folder
from index.checking import check_index, is_index
from tune.fit.budget.clock import CLOCK_FILE
from tune.fit.budget.plan import PLAN_FILE, FitPlan
from tune.fit.config import FIT_FILE, read_stored
from tune.fit.records import FINAL, FROZEN, RECORD_FILE, FitRecord
from tune.index_sweeps.trial import TRUTH_FILE
from tune.records import (
    EVALUATION_FILE,
    REPORTS_FILE,
    RESULT_FILE,
    TRIAL_FILE,
    SweepFolder,
    read_evaluation,
)
from tune.sweep_file import SWEEP_FILE, load_stored

_EDITED = "restore it from a copy; if you edited it, remove its first line, and write_checksums=True writes a new one"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The findings of `doctor`."""

    path: str
    kind: str
    """run, data set, index, sweep or fit"""
    num_checked: int
    """files and groups of files that were read whole"""
    damaged: tuple[Finding, ...]
    without_checksum: tuple[str, ...]
    """sound files of an earlier version that have no checksum; empty once they were written"""
    written: tuple[str, ...] = ()
    """files that were given a checksum"""

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged

    def to_json(self) -> dict[str, object]:
        """As a mapping for JSON."""
        return {**asdict(self), "is_sound": self.is_sound}

    def __str__(self) -> str:
        state = "is sound" if self.is_sound else f"has {len(self.damaged)} damaged"
        lines = [
            f"{self.kind} {with_addresses(self.path)} {state}; {self.num_checked} files and groups of files checked"
        ]
        for finding in self.damaged:
            lines += [f"damaged: {finding.path}", f"  {finding.problem}", f"  what to do: {finding.repair}"]
        if self.without_checksum:
            lines.append(
                f"{len(self.without_checksum)} sound files have no checksum (the first: {self.without_checksum[0]}); "
                f"doctor({self.path}, write_checksums=True) adds them"
            )
        if self.written:
            lines.append(f"checksums were written to {len(self.written)} files")
        return "\n".join(lines)


def doctor(path: str | os.PathLike[str], *, write_checksums: bool = False) -> Diagnosis:
    """Check a run, data set, index or sweep completely: every checksum, a data set's images, checkpoints, searches.

    Args:
        path: its folder, or its address at s3:// or gs://. All files in it are read.
        write_checksums: add checksums to intact files that have none: those of an earlier version, and those that
            were edited after their checksum was removed. No other process may write to the folder meanwhile.

    Returns:
        The damaged files with possible repairs, and the files without a checksum.

    Raises:
        RequestError: `path` is none of these.
    """
    folder = working_folder(os.fspath(path))
    checkup = Checkup()
    if is_dataset(folder):
        kind = "data set"
        check_dataset(folder, checkup)
    else:
        bring(folder)
        kind = _check(folder, checkup)
    missing = tuple(map(str, checkup.unchecked))
    written = tuple(map(str, checkup.write_checksums())) if write_checksums else ()
    return Diagnosis(
        str(folder), kind, checkup.num_checked, tuple(checkup.findings), () if written else missing, written
    )


def _check(folder: Path, checkup: Checkup) -> str:
    if exists(folder / FIT_FILE):
        _check_fit(folder, checkup)
        return "fit"
    if exists(folder / SWEEP_FILE):
        _check_sweep(folder, checkup)
        return "sweep"
    if is_run(folder):
        check_run(folder, checkup)
        return "run"
    if is_index(folder):
        check_index(folder, checkup)
        return "index"
    raise RequestError(
        f"'{folder}' is not a run (config.yaml), data set (catalogue/), index (current, versions/), sweep "
        f"({SWEEP_FILE}) or fit ({FIT_FILE})"
        if folder.is_dir()
        else f"'{folder}': no such folder"
    )


def _check_fit(folder: Path, checkup: Checkup) -> None:
    """Check all parts of a fit: its runs, its rounds, its index, and the data set if the fit packed one."""
    if checkup.run(folder / FIT_FILE, _EDITED, lambda: read_stored(folder)) is not None:
        checkup.yaml(folder / FIT_FILE)
    again = "restore it from a copy, or fit again into another folder"
    for name, read in ((PLAN_FILE, FitPlan.read), (RECORD_FILE, FitRecord.read)):
        if exists(folder / name) and checkup.run(folder / name, again, partial(read, folder)) is not None:
            checkup.json(folder / name, name)
    if exists(folder / CLOCK_FILE):
        repair = "remove it: a resumed fit then has its whole budget again"
        checkup.run(folder / CLOCK_FILE, repair, partial(checkup.json, folder / CLOCK_FILE, CLOCK_FILE))
    for run in (folder / FINAL, folder / FROZEN):
        if is_run(run):
            check_run(run, checkup)
    if is_index(folder / "index"):
        check_index(folder / "index", checkup)
    if is_dataset(folder / "data"):
        check_dataset(folder / "data", checkup)
    for sweep in sorted((folder / "rounds").glob("*")):
        if exists(sweep / SWEEP_FILE):
            _check_sweep(sweep, checkup)


def _read_scores(trial: Path) -> None:
    list(read_evaluation(trial))


def _check_sweep(folder: Path, checkup: Checkup) -> None:
    if checkup.run(folder / SWEEP_FILE, _EDITED, lambda: load_stored(folder)) is not None:
        checkup.yaml(folder / SWEEP_FILE)
    records = SweepFolder(folder)
    again = "restore it from a copy, or remove the trial's folder: resuming the sweep runs the trial again"
    checkup.run(folder / "trials", again, records.trials)
    if (folder / REPORTS_FILE).is_file():
        repair = "remove the lines that it names; resuming the sweep reports those validations again"
        if checkup.run(folder / REPORTS_FILE, repair, records.reports) is not None:
            checkup.lines(folder / REPORTS_FILE)
    if checkup.run(
        folder / "sessions", "remove the file: it contains the duration of a session", records.sessions
    ):
        for path in sorted((folder / "sessions").glob("*.json")):
            checkup.json(path, path.name)
    if (folder / TRUTH_FILE).is_file():
        repair = "remove it: resuming the sweep searches for the true neighbours again"
        checkup.run(folder / TRUTH_FILE, repair, partial(unpack_arrays, folder / TRUTH_FILE))
    for trial in sorted(path for path in (folder / "trials").glob("*") if path.is_dir()):
        for name in (TRIAL_FILE, RESULT_FILE, EVALUATION_FILE):
            path = trial / name
            if path.is_file():
                checkup.run(path, again, partial(checkup.json, path, trial.name))
        if (trial / EVALUATION_FILE).is_file():
            checkup.run(trial / EVALUATION_FILE, again, partial(_read_scores, trial))
        if is_run(trial):
            check_run(trial, checkup)
