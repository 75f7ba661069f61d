"""The verbs `pack` and `inspect`. Data code loads when a verb runs, so that `--help` stays quick."""

import sys
import time
from collections.abc import Callable

import click

_SPLITS = ["stratified", "classes", "base-novel", "column"]


@click.command(
    epilog="Example: fsl-dist pack photos packed --table labels.csv --path-column file --label-column class "
    "--split base-novel --num-base 150"
)
@click.argument("source", metavar="SRC")
@click.argument("out")
@click.option(
    "--table", help="CSV or Parquet table of images; paths relative to SRC. Without it: class folders."
)
@click.option("--path-column", help="Column of image paths.  [default: file]")
@click.option("--label-column", help="Column of class names.  [default: class]")
@click.option("--group-column", help="Column of a second label (subclass, patient …).")
@click.option("--blind-group-column", help="Column of a label that only the evaluation sees.")
@click.option("--split-column", help="Column with train, val, test or novel for every image.")
@click.option(
    "--keep-together", metavar="COLUMN", help="Images with one value stay on one side of any split."
)
@click.option(
    "--split",
    type=click.Choice(_SPLITS),
    help="stratified: every class by --fractions (default 0.7,0.1,0.2). classes: whole classes by --fractions "
    "(default 0.6,0.2,0.2). base-novel: the --num-base largest classes, each with max(5, 20%) of its images "
    "for val and for test; the others are novel. column: as --split-column says.  [default: stratified, or "
    "column where --split-column is given]",
)
@click.option("--num-base", type=int, help="How many classes are base (--split base-novel).")
@click.option("--fractions", metavar="TRAIN,VAL,TEST", help="Shares that sum to 1.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Order and splits.")
@click.option("--shard-size-mb", type=int, default=256, show_default=True, help="Largest shard, 10⁶ bytes.")
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Checking threads; 0: one a core, at most 8."
)
@click.option("--allow-bad", is_flag=True, help="Exit 0 although some images had to be left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def pack(
    source: str,
    out: str,
    table: str | None,
    path_column: str | None,
    label_column: str | None,
    group_column: str | None,
    blind_group_column: str | None,
    split_column: str | None,
    keep_together: str | None,
    split: str | None,
    num_base: int | None,
    fractions: str | None,
    seed: int,
    shard_size_mb: int,
    threads: int,
    allow_bad: bool,
    as_json: bool,
) -> None:
    """Pack images into WebDataset shards and a catalogue, in the new folder OUT.

    SRC holds one folder a class, or the images that --table names. Images are stored as they are.
    Those that cannot be used are named and left out: exit 1, or 0 with --allow-bad.
    """
    from dataclasses import asdict

    from cluster.output import emit
    from fsl_dist.data.listing import TableColumns
    from fsl_dist.data.pack import PackOptions
    from fsl_dist.data.pack import pack as pack_source
    from fsl_dist.errors import RequestError

    columns = None
    if table is not None:
        columns = TableColumns(
            table=table,
            path=path_column or "file",
            label=label_column or "class",
            group=group_column or "",
            blind_group=blind_group_column or "",
            split=split_column or "",
            unit=keep_together or "",
        )
    elif path_column or label_column or group_column or blind_group_column or split_column or keep_together:
        raise RequestError(
            "--path-column, --label-column, --group-column, --blind-group-column, --split-column and "
            "--keep-together name columns of a table; say which with --table"
        )
    options = PackOptions(
        columns=columns,
        split=split or "",  # type: ignore[arg-type]  # click has checked the choice
        num_base=num_base,
        fractions=_parse_fractions(fractions),
        seed=seed,
        shard_size_mb=shard_size_mb,
        threads=threads,
    )
    report = pack_source(source, out, options, _make_progress() if sys.stderr.isatty() else None)
    splits = ", ".join(f"{name} {count}" for name, count in report.split_counts.items())
    lines = [
        f"packed {report.num_samples} images of {report.num_classes} classes into {report.dataset}",
        f"{report.num_shards} shards, {report.size_bytes / 1e6:.1f} MB; {splits}",
    ]
    if report.bad_samples:
        lines.append(
            f"left out {len(report.bad_samples)} bad samples (named above; `fsl-dist inspect` lists them)"
        )
    emit({**asdict(report), "num_bad": len(report.bad_samples)}, as_json, "\n".join(lines))
    if report.bad_samples and not allow_bad:
        raise SystemExit(1)


def _parse_fractions(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    from fsl_dist.errors import RequestError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"--fractions={text} must be three numbers for train, val and test, such as 0.7,0.1,0.2"
        ) from error


def _make_progress() -> Callable[[str, int, int], None]:
    """Shows one line on a terminal, at most ten times a second."""
    shown_s = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if done == total or now_s - shown_s >= 0.1:
            shown_s = now_s
            click.echo(f"\r{stage} {done}/{total}", nl=done == total, err=True)

    return show


@click.command(epilog="Example: fsl-dist inspect packed --verify --plots pictures")
@click.argument("dataset")
@click.option(
    "--verify", is_flag=True, help="Read every image again and compare its checksum; exit 1 on damage."
)
@click.option(
    "--plots", metavar="DIR", help="Draw class_distribution.png and samples.png into DIR, over older ones."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def inspect(dataset: str, verify: bool, plots: str | None, as_json: bool) -> None:
    """Tell what the data set in folder DATASET holds: classes, counts, tail, sizes, splits, what was left out."""
    from dataclasses import asdict

    from cluster.output import emit
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.inspection import describe, find_damage, summarise

    catalogue = Catalogue.open(dataset)
    summary = summarise(catalogue)
    result: dict[str, object] = asdict(summary)
    text = describe(summary)
    if plots is not None:
        from fsl_dist.data.plots import draw_plots

        drawn = [str(path) for path in draw_plots(catalogue, plots)]
        result["plots"] = drawn
        text = "\n".join([text, "", *(f"drawn       {path}" for path in drawn)])
    damaged = find_damage(catalogue) if verify else []
    if verify:
        result["damaged"] = [asdict(sample) for sample in damaged]
        lines = [f"verified    {summary.num_samples} samples, {len(damaged)} damaged"]
        text = "\n".join([text, "", *lines, *(f"  {sample.path}: {sample.reason}" for sample in damaged)])
    emit(result, as_json, text)
    if damaged:
        raise SystemExit(1)
