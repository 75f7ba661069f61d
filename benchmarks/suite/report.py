"""Results of a benchmark: tables, and figures compared with a target; as JSON and as Markdown."""

import dataclasses
import datetime
import importlib.metadata
import os
import platform
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.suite.interleave import Measured
from cluster.planning.machine import processor_name

LIBRARIES = ("fsl-dist", "torch", "torchvision", "nvidia-dali-cuda130", "faiss-gpu-cuvs", "ray", "webdataset",
             "scikit-learn", "pillow", "numpy")  # fmt: skip


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """How a benchmark is run."""

    folder: Path
    """empty, for whatever the benchmark writes; removed after it"""
    is_smoke: bool = False
    """small, for the guard against regressions: ratios mean something, times do not"""
    rounds: int = 5
    """counted rounds of everything that is timed in turn, at least 1"""
    dataset: Path | None = None
    """a packed data set to measure on in place of a made one, where the benchmark takes one"""
    vectors: Sequence[tuple[str, int]] = ()
    """sets of `benchmarks.vectors` and how many vectors of each, where the benchmark takes them"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of figures."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float, ...], ...]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure and its target; mostly a ratio of two ways of doing the same work."""

    name: str
    """stable: the recorded bounds of `make bench-smoke` go by it"""
    values: Sequence[float]
    """one per round; the median counts"""
    at_most: float | None = None
    at_least: float | None = None
    is_guarded: bool = True
    """whether `make bench-smoke` watches it; only ratios that hold on any machine"""
    remark: str = ""
    """why it falls short, or what it depends on"""

    @property
    def value(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def holds(self) -> bool:
        """Whether the median meets the target."""
        return (self.at_most is None or self.value <= self.at_most) and (
            self.at_least is None or self.value >= self.at_least
        )

    @property
    def bound(self) -> str:
        """The target in words."""
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else "—"


@dataclass(frozen=True, slots=True)
class Report:
    """One run of one benchmark."""

    benchmark: str
    """its name: `python -m benchmarks.suite NAME`"""
    title: str
    """what was compared, in a sentence"""
    config: Mapping[str, object]
    """sizes and settings, JSON values"""
    tables: Sequence[Table]
    targets: Sequence[Target]
    notes: Sequence[str] = ()
    """what a reader must know about the figures, a sentence each"""
    is_smoke: bool = False
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    machine: Mapping[str, object] = field(default_factory=lambda: describe_machine())
    versions: Mapping[str, str] = field(default_factory=lambda: describe_versions())


def timing_table(
    title: str, measured: Measured, *, base: str, more: Mapping[str, Sequence[str | float]] | None = None
) -> Table:
    """Wall and CPU milliseconds a unit of each contender, units a second, and both clocks as ratios to `base`.

    `more`: further columns, one value a contender in their order.
    """
    more = more or {}
    unit = measured.unit
    units = {"query": "queries", "class": "classes"}.get(unit, f"{unit}s")
    rows = []
    for position, name in enumerate(measured.rounds):
        wall, cpu = measured.median_ms(name), measured.median_ms(name, "cpu")
        rows.append(
            (
                name,
                _round(wall),
                _round(cpu),
                _round(1000 / wall),
                _round(statistics.median(measured.ratios(name, base))),
                _round(statistics.median(measured.ratios(name, base, "cpu"))),
                *(values[position] for values in more.values()),
            )
        )
    columns = ("", f"wall ms/{unit}", f"CPU ms/{unit}", f"{units}/s", "wall ratio", "CPU ratio", *more)
    return Table(f"{title} (ratios to “{base}”)", columns, tuple(rows))


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def to_json(report: Report) -> dict:
    """The report as JSON values; each target with its median and whether it holds."""
    plain = dataclasses.asdict(report)
    plain["targets"] = [
        {**dataclasses.asdict(target), "values": list(target.values),
         "value": _round(target.value), "holds": target.holds}
        for target in report.targets
    ]  # fmt: skip
    return plain


def from_json(plain: Mapping) -> Report:
    """A report again, from what `to_json` gave."""
    targets = [
        Target(**{key: value for key, value in target.items() if key not in ("value", "holds")})
        for target in plain["targets"]
    ]
    tables = [
        Table(table["title"], tuple(table["columns"]), tuple(tuple(row) for row in table["rows"]))
        for table in plain["tables"]
    ]
    return Report(**{**plain, "targets": targets, "tables": tables})


def to_markdown(report: Report) -> str:
    """The report for a reader: targets first, then the tables, the settings and the machine."""
    command = f"python -m benchmarks.suite {report.benchmark}{' --smoke' if report.is_smoke else ''}"
    lines = [f"## `{command}`", "", _wrap(report.title), ""]
    if report.targets:
        has_remarks = any(target.remark for target in report.targets)
        lines += [
            "| | measured | target | |" + (" |" if has_remarks else ""),
            "| --- | ---: | ---: | --- |" + (" --- |" if has_remarks else ""),
        ]
        for target in report.targets:
            verdict = "—" if target.bound == "—" else "met" if target.holds else "**missed**"
            cells = [target.name, f"{target.value:.3g}", target.bound, verdict]
            lines.append(f"| {' | '.join(cells + ([target.remark] if has_remarks else []))} |")
        lines.append("")
    for table in report.tables:
        lines += [f"{table.title}:", "", f"| {' | '.join(table.columns)} |"]
        lines.append(f"| --- |{' ---: |' * (len(table.columns) - 1)}")
        lines += [f"| {' | '.join(_cell(value) for value in row)} |" for row in table.rows]
        lines.append("")
    lines += [_wrap(note) + "\n" for note in report.notes]
    settings = ", ".join(f"{key} {value}" for key, value in report.config.items())
    machine = ", ".join(f"{key} {value}" for key, value in report.machine.items())
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    lines += [_wrap(f"{report.date}. {settings}. Machine: {machine}. {versions}."), ""]
    return "\n".join(lines)


def _wrap(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False)


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def describe_machine() -> dict[str, object]:
    """Processor, cores and memory this process may use, and the GPU where there is one."""
    import torch

    machine: dict[str, object] = {
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name(0)
    return machine


def describe_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of Python and of the libraries that do the work, and of `more`, of those that are installed."""
    versions = {"python": platform.python_version()}
    for name in (*LIBRARIES, *more):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
