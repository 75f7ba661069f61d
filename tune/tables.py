"""Tables of the papers as lists of runs: which system a row trains, how it is scored, what the paper says.

A table is `experiments/tables/NAME.yaml`. A family is a folder of `experiments/` with one YAML a system, trained on one
data set: `experiments/omniglot/pcn.yaml`. The same table can be run on every family that has its systems.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from index.errors import ConfigError, RequestError
from index.gate import parse_yaml, validate

EXPERIMENTS = Path(os.path.relpath(Path(__file__).resolve().parents[1] / "experiments"))
"""relative to the working folder, so that printed commands can be typed there"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One score of every row."""

    title: str
    metric: str = ""
    """as `fsl-dist evaluate` names it; a row may name its own"""
    evaluate: tuple[str, ...] = ()
    """evaluation.KEY=VALUE that this score is measured with"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One system of a table."""

    name: str
    system: str = ""
    """YAML of the family that trains it, without its ending"""
    baseline: str = ""
    """in place of a system: `fsl-dist baseline` of this name on the family's features"""
    train: tuple[str, ...] = ()
    """KEY=VALUE over the system's YAML"""
    after: str = ""
    """system whose trained network this one starts from (backbone.weights)"""
    evaluate: tuple[str, ...] = ()
    """evaluation.KEY=VALUE for all of the row's scores"""
    protocol: str = ""
    """protocol of `fsl-dist evaluate`; empty: all the method has"""
    metrics: tuple[str, ...] = ()
    """one for each column, in place of the columns' own; empty text: the row has no such score"""
    x: float | None = None
    """where the row stands in a curve"""
    curve: str = ""
    """name of the curve it belongs to"""
    paper: tuple[str, ...] = ()
    """what the paper prints, one for each column; empty text: nothing"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table or figure of a paper."""

    title: str
    paper_data: str
    """data set of the paper's figures"""
    family: str
    """family that it is run on unless another is named"""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    x_title: str = ""
    """what `Row.x` counts; empty: the plot is of bars"""
    notes: tuple[str, ...] = ()
    """footnotes: misprints, and what differs from the paper"""

    def __post_init__(self) -> None:
        for row in self.rows:
            if bool(row.system) == bool(row.baseline):
                raise ConfigError(f"rows: '{row.name}' needs either a system or a baseline")
            for name, cells in (("metrics", row.metrics), ("paper", row.paper)):
                if cells and len(cells) != len(self.columns):
                    raise ConfigError(
                        f"rows: '{row.name}' has {len(cells)} {name} for {len(self.columns)} columns; one a column, "
                        "empty where there is none"
                    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """Where a family's images come from."""

    title: str
    source: str
    """what --data must name, in words"""
    pack: tuple[str, ...] = ()
    """options of `fsl-dist pack`; {data} stands for the folder of --data"""
    embed: str = ""
    """FAMILY/SYSTEM whose network turns the images into the features that this family trains on; empty: images"""


def list_tables() -> dict[str, Table]:
    """All tables by name."""
    return {path.stem: read_table(path.stem) for path in sorted((EXPERIMENTS / "tables").glob("*.yaml"))}


def read_table(name: str) -> Table:
    """The table `name`; RequestError where there is none."""
    path = EXPERIMENTS / "tables" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        raise RequestError(f"there is no table '{name}'; there are {known}")
    return validate(Table, parse_yaml(path.read_text("utf-8"), str(path)), str(path))


def read_family(name: str) -> Family:
    """The family `name`; RequestError where there is none."""
    path = EXPERIMENTS / name / "family.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.parent.name for path in EXPERIMENTS.glob("*/family.yaml")))
        raise RequestError(f"--family {name}: there is no such family; there are {known}")
    return validate(Family, parse_yaml(path.read_text("utf-8"), str(path)), str(path))


def config_of(family: str, system: str) -> Path | None:
    """The YAML that trains `system` on the data of `family`; None where that family has none."""
    path = EXPERIMENTS / family / f"{system}.yaml"
    return path if path.is_file() else None


def families_of(table: Table) -> list[str]:
    """Families that have every system of the table."""
    families = sorted(path.parent.name for path in EXPERIMENTS.glob("*/family.yaml"))
    return [family for family in families if all(has_row(family, row) for row in table.rows)]


def has_row(family: str, row: Row) -> bool:
    """Whether the family can run the row."""
    return bool(read_family(family).embed) if row.baseline else config_of(family, row.system) is not None
