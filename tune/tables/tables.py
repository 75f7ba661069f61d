"""Tables of the papers as lists of runs: the system that a row trains, its evaluation, and the paper's figures.

A table is `tables/NAME.yaml` of the shipped configurations. A family is a folder of configurations with one YAML per
system, all trained on one data set, such as `omniglot/pcn`. The same table can be run on every family that has its
systems.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.shipped import EXPERIMENTS
from index.base.errors import ConfigError, RequestError
from index.base.settings import parse_yaml, validate


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One score of every row."""

    title: str
    metric: str = ""
    """name in `EvaluationReport`; a row may set another one"""
    evaluate: tuple[str, ...] = ()
    """evaluation.KEY=VALUE that this score is measured with"""
    is_count: bool = False
    """the score is a count, shown as it is; others are fractions, shown in percent"""
    optional: bool = False
    """a run may lack the score (a data set without masks); its cell is then empty"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One system of a table."""

    name: str
    system: str = ""
    """YAML of the family that trains it, without its ending"""
    baseline: str = ""
    """in place of a system: the baseline of this name on the family's features"""
    train: tuple[str, ...] = ()
    """KEY=VALUE over the system's YAML"""
    after: str = ""
    """system whose trained network this one starts from (backbone.weights)"""
    evaluate: tuple[str, ...] = ()
    """evaluation.KEY=VALUE for all of the row's scores"""
    protocol: str = ""
    """protocol of the evaluation; empty: all the method has"""
    metrics: tuple[str, ...] = ()
    """one for each column, instead of the columns' own; empty text: the row has no such score"""
    x: float | None = None
    """position of the row in a curve"""
    curve: str = ""
    """name of the curve it belongs to"""
    paper: tuple[str, ...] = ()
    """the paper's figures, one for each column; empty text: none"""
    paper_on: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """the same for families for whose data the paper has other figures"""
    optional: bool = False
    """a family may lack the system; the row is then left out there"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A figure drawn from the runs of seed 0; field names follow those of the plots."""

    name: str
    """of its file, behind the table's"""
    plot: Literal["comparison", "curves", "maps", "queries", "retrieval", "tsne"]
    """kind of plot"""
    rows: tuple[str, ...]
    """names of the rows whose runs are drawn, in this order"""
    metric: str = ""
    """curves: the logged metric"""
    split: str = ""
    """tsne: whose images; empty: those of the queries"""
    protocols: tuple[str, ...] = ()
    """comparison and queries: one for each run; empty: the default of each run's method"""
    evaluate: tuple[str, ...] = ()
    """comparison and queries: evaluation.KEY=VALUE"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table or figure of a paper."""

    title: str
    paper_data: str
    """data set of the paper's figures; empty: the table is not of a paper"""
    paper_data_on: dict[str, str] = field(default_factory=dict)
    """data set of `Row.paper_on`, by family"""
    family: str
    """default family"""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    x_title: str = ""
    """what `Row.x` counts; empty: the plot is of bars"""
    pictures: tuple[Picture, ...] = ()
    """figures in addition to the plot of the scores"""
    notes: tuple[str, ...] = ()
    """footnotes: misprints, and what differs from the paper"""

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows if row.system]
        for picture in self.pictures:
            for name in picture.rows:
                if name not in names:
                    raise ConfigError(
                        f"pictures: '{picture.name}' draws '{name}', which is not a row with a system"
                    )
        for row in self.rows:
            if bool(row.system) == bool(row.baseline):
                raise ConfigError(f"rows: '{row.name}' needs either a system or a baseline")
            papers = [(f"paper_on {family}", cells) for family, cells in row.paper_on.items()]
            for name, cells in (("metrics", row.metrics), ("paper", row.paper), *papers):
                if cells and len(cells) != len(self.columns):
                    raise ConfigError(
                        f"rows: '{row.name}' has {len(cells)} {name} for {len(self.columns)} columns; one a column, "
                        "empty where there is none"
                    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """The source of a family's images."""

    title: str
    source: str
    """what `data` must name, in words"""
    pack: PackOptions | None = None
    """how the images are packed; the table's path is relative to the images' folder"""
    embed: str = ""
    """FAMILY/SYSTEM whose network turns the images into the features that this family trains on; empty: images"""


def list_tables() -> dict[str, Table]:
    """All tables by name."""
    return {path.stem: read_table(path.stem) for path in sorted((EXPERIMENTS / "tables").glob("*.yaml"))}


def read_table(name: str) -> Table:
    """The table `name`; raises RequestError if it is unknown."""
    path = EXPERIMENTS / "tables" / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in path.parent.glob("*.yaml")))
        raise RequestError(f"there is no table '{name}'; there are {known}")
    return validate(Table, parse_yaml(path.read_text("utf-8"), str(path)), str(path))


def read_family(name: str) -> Family:
    """The family `name`; raises RequestError if it is unknown."""
    path = EXPERIMENTS / name / "family.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.parent.name for path in EXPERIMENTS.glob("*/family.yaml")))
        raise RequestError(f"family={name} is unknown; there are {known}")
    return validate(Family, parse_yaml(path.read_text("utf-8"), str(path)), str(path))


def on_family(table: Table, family: str) -> Table:
    """The table as `family` runs it: with the paper's figures on that data, without optional rows that it lacks."""
    rows = tuple(
        replace(row, paper=row.paper_on.get(family, () if family in table.paper_data_on else row.paper))
        for row in table.rows
        if not row.optional or has_row(family, row)
    )
    kept = {row.name for row in rows}
    pictures = tuple(picture for picture in table.pictures if kept.issuperset(picture.rows))
    paper_data = table.paper_data_on.get(family, table.paper_data)
    return replace(table, rows=rows, pictures=pictures, paper_data=paper_data)


def config_of(family: str, system: str) -> Path | None:
    """The YAML that trains `system` on the data of `family`; None if that family has none."""
    path = EXPERIMENTS / family / f"{system}.yaml"
    return path if path.is_file() else None


def families_of(table: Table) -> list[str]:
    """Families that have every system of the table but optional ones."""
    families = sorted(path.parent.name for path in EXPERIMENTS.glob("*/family.yaml"))
    return [family for family in families if all(row.optional or has_row(family, row) for row in table.rows)]


def has_row(family: str, row: Row) -> bool:
    """Whether the family can run the row."""
    return bool(read_family(family).embed) if row.baseline else config_of(family, row.system) is not None
