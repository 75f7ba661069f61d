"""The shared parts of the commands that write data sets: the split options and the report."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fsl_dist.data.catalogue import Catalogue

_SPLITS = ["stratified", "classes", "base-novel", "column"]


def _parse_fractions(_context: object, _option: object, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    from fsl_dist.errors import RequestError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"--fractions={text} must be three numbers for train, val and test, such as 0.7,0.1,0.2"
        ) from error


def split_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add --split, --num-base, --fractions and --seed."""

    for option in (
        click.option(
            "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Order and splits."
        ),
        click.option(
            "--fractions", metavar="TRAIN,VAL,TEST", callback=_parse_fractions, help="Shares that sum to 1."
        ),
        click.option("--num-base", type=int, help="Number of base classes (--split base-novel)."),
        click.option(
            "--split",
            type=click.Choice(_SPLITS),
            help="With stratified, every class is split by --fractions (default 0.7,0.1,0.2). With classes, whole "
            "classes are assigned by --fractions (default 0.6,0.2,0.2). With base-novel, the --num-base largest classes "
            "are base, each with max(5, 20%) of its images for val and for test; the others are novel. With column, "
            "--split-column decides.  [default: stratified, or column if --split-column is given]",
        ),
    ):
        command = option(command)
    return command


def emit_written(done: str, data: "Catalogue", allow_bad: bool, as_json: bool) -> None:
    """Print the report; exit 1 if samples were left out, unless `allow_bad`."""
    from dataclasses import asdict

    from cluster.commands.output import emit

    report = data.report
    assert report is not None
    splits = ", ".join(f"{name} {count}" for name, count in report.split_counts.items())
    lines = [
        f"{done} {report.num_samples} images of {report.num_classes} classes: {report.dataset}, catalogue version "
        f"{report.version}",
        f"{report.num_shards} shards, {report.size_bytes / 1e6:.1f} MB; {splits}",
    ]
    if report.bad_samples:
        lines.append(
            f"left out {len(report.bad_samples)} bad samples (named above; `fsl-dist inspect` lists them)"
        )
    num_conflicts = sum(duplicate.is_conflict for duplicate in report.duplicates)
    if report.duplicates:
        lines.append(
            f"left out {len(report.duplicates)} near-duplicates, {num_conflicts} of another class than the image kept "
            "(`fsl-dist inspect` lists them)"
        )
    counts = {
        "num_bad": len(report.bad_samples),
        "num_duplicates": len(report.duplicates),
        "num_label_conflicts": num_conflicts,
    }
    emit({**asdict(report), **counts}, as_json, "\n".join(lines))
    if report.bad_samples and not allow_bad:
        raise SystemExit(1)
