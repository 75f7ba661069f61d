"""The runs of one data set in a JSON file: finished runs are kept, so an interrupted comparison resumes."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.practice.parts import Prepared
from benchmarks.practice.spent import Spent
from benchmarks.suite.report import describe_machine, describe_versions
from fsl_dist.errors import RequestError
from index.base.files import write_atomic

PEERS = ("pytorch-metric-learning", "FLAML", "lightgbm", "xgboost")
"""libraries of peers, whose versions are recorded next to those of all benchmarks"""


@dataclass(frozen=True, slots=True)
class HeadScores:
    """One head of one run, fractions."""

    setting: str
    val: Mapping[str, float] | None
    test: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One finished run."""

    row: str
    seed: int
    rate: float
    """learning rate that validation chose with seed 0; 0 where there is none"""
    spent: Spent
    """by this run alone"""
    tuning: Spent
    """by the runs with the other learning rates, with seed 0; else nothing"""
    images: int
    """seen by this run"""
    threads: int
    heads: Mapping[str, HeadScores]


@dataclass(slots=True)
class SetRecord:
    """All runs of one data set."""

    config: Mapping[str, object]
    """what all rows get: a file with another one is not added to"""
    runs: list[RunRecord] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    """row → why it was not run"""
    machine: Mapping[str, object] = field(default_factory=describe_machine)
    versions: Mapping[str, str] = field(default_factory=lambda: describe_versions(PEERS))

    @property
    def name(self) -> str:
        """The set's name."""
        return str(self.config["set"])

    def of_row(self, row: str) -> list[RunRecord]:
        """The row's runs, by seed."""
        return sorted((run for run in self.runs if run.row == row), key=lambda run: run.seed)

    def find(self, row: str, seed: int) -> RunRecord | None:
        """The finished run, if it is there."""
        return next((run for run in self.of_row(row) if run.seed == seed), None)

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_atomic(path, (json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n").encode())


def read_record(path: Path) -> SetRecord:
    """What `write` wrote. Raises RequestError for a file that is none."""
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        runs = [
            RunRecord(
                **{
                    **run,
                    "spent": Spent(**run["spent"]),
                    "tuning": Spent(**run["tuning"]),
                    "heads": {name: HeadScores(**head) for name, head in run["heads"].items()},
                }
            )
            for run in plain["runs"]
        ]
        return SetRecord(**{**plain, "runs": runs})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{path} is not a file of `python -m benchmarks.suite practice` ({error}); move it away"
        ) from error


def open_record(path: Path, prepared: Prepared) -> SetRecord:
    """The file's record, or a new one.

    Raises:
        RequestError: the file is of another data set or of other settings.
    """
    chosen = prepared.set
    config = {
        "set": chosen.name,
        "about": chosen.about,
        "classes": prepared.classes,
        "train": len(prepared.train.rows),
        "val": len(prepared.val.rows),
        "test": len(prepared.test.rows),
        "image_size": chosen.image_size,
        "images": chosen.images,
        "rates": list(chosen.rates),
        "whole_rates": list(chosen.whole_rates),
        "copies": chosen.copies,
        "fingerprint": prepared.fingerprint,
    }
    if not path.exists():
        return SetRecord(config)
    found = read_record(path)
    if other := [key for key, value in config.items() if found.config.get(key) != value]:
        key = other[0]
        raise RequestError(
            f"{path} was measured with {key}={found.config.get(key)!r}, not {config[key]!r}; "
            "move it away or name another folder with --out"
        )
    return found
