"""The commands `pack` and `inspect`. Data code is imported when a command runs, so that `--help` is quick."""

from typing import Any

import click

from cluster.commands.dataset_options import emit_written, split_options
from index.base.errors import RequestError


def _parse_extents(_context: object, _option: object, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise RequestError(f"--resize={text} must be height and width in pixels, such as 224x224")
    return int(height), int(width)


def _parse_range(_context: object, _option: object, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise RequestError(f"--pixel-range={text} must be two numbers, such as -1024:3071") from None


@click.command(
    epilog="Example: fsl-dist pack photos packed --table labels.csv --path-column file --label-column class "
    "--split base-novel --num-base 150"
)
@click.argument("source", metavar="SRC")
@click.argument("out")
@click.option(
    "--table",
    help="Table of images (CSV, TSV, Parquet, JSON, JSON lines); paths relative to SRC. Without it: class folders.",
)
@click.option("--path-column", help="Column of image paths.  [default: file]")
@click.option("--label-column", help="Column of class names.  [default: class]")
@click.option("--group-column", help="Column of a second label (subclass, patient …).")
@click.option(
    "--blind-group-column",
    help="Column of a label that was assigned without knowing the class (chai's joint).",
)
@click.option("--mask-column", help="Column of mask images, stored next to their images.")
@click.option("--split-column", help="Column with train, val, test or novel for every image.")
@click.option("--keep-together", metavar="COLUMN", help="Images with the same value are in the same split.")
@click.option(
    "--split-folders/--no-split-folders",
    default=None,
    help="Whether the folders train, val and test of SRC are splits with class folders.  [default: yes, if SRC has "
    "train and another of them]",
)
@split_options
@click.option("--append", is_flag=True, help="Add to the data set OUT, divided by its own rule and seed.")
@click.option(
    "--order",
    type=click.Choice(["mixed", "class"]),
    default="mixed",
    show_default=True,
    help="Bytes in the shards: shuffled over all classes, or each class's side by side.",
)
@click.option(
    "--resize-shorter", type=int, metavar="N", help="Store larger images with a shorter side of N pixels."
)
@click.option(
    "--resize", metavar="HxW", callback=_parse_extents, help="Store larger images H pixels high and W wide."
)
@click.option(
    "--pixel-range",
    metavar="LOW:HIGH",
    callback=_parse_range,
    help="Grey pixels of more than 8 bits become 8, LOW black and HIGH white.",
)
@click.option(
    "--dedupe",
    type=click.Choice(["name", "phash"]),
    help="Leave out near-duplicates of kept images: phash: compare all; name: only those with the same file name.",
)
@click.option("--num-classes", type=int, metavar="N", help="Pack only the N classes with the most images.")
@click.option("--shard-size-mb", type=int, default=256, show_default=True, help="Largest shard, 10⁶ bytes.")
@click.option(
    "--processes",
    type=click.IntRange(min=0),
    default=0,
    help="Processes that check, resize and write; 0: one a core.",
)
@click.option("--allow-bad", is_flag=True, help="Exit 0 although some images had to be left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def pack(source: str, out: str, allow_bad: bool, as_json: bool, **options: Any) -> None:
    """Pack images into WebDataset shards and a catalogue, in the new folder OUT, or --append them to the data set OUT.

    SRC contains one folder per class, or train, val and test with class folders in them, or the images that --table
    lists. Images are stored unchanged, or with --resize-shorter or --resize at the size for training; none is
    enlarged. Unusable ones are listed and left out: exit 1, or 0 with --allow-bad.
    """
    import fsl_dist

    done = "appended" if options["append"] else "packed"
    emit_written(done, fsl_dist.pack(source, out, **options), allow_bad, as_json)


@click.command(epilog="Example: fsl-dist inspect packed --verify --near-duplicates --plots pictures")
@click.argument("dataset")
@click.option(
    "--verify", is_flag=True, help="Read every image again and compare its checksum; exit 1 on damage."
)
@click.option(
    "--near-duplicates",
    "has_near_duplicates",
    is_flag=True,
    help="Decode every image and list pairs that are nearly the same, those of different splits and classes first.",
)
@click.option(
    "--plots", metavar="DIR", help="Draw class_distribution.png and samples.png into DIR, over older ones."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def inspect(dataset: str, verify: bool, has_near_duplicates: bool, plots: str | None, as_json: bool) -> None:
    """Describe the data set in folder DATASET: classes, counts, tail, sizes, splits,
    and the samples that were left out."""
    from dataclasses import asdict, replace

    from cluster.commands.output import emit
    from fsl_dist.data.catalogue import Catalogue
    from fsl_dist.data.ingest.inspection import describe, find_damage, summarise

    catalogue = Catalogue.open(dataset)
    summary = summarise(catalogue)
    if has_near_duplicates:
        from fsl_dist.data.ingest.duplicates import describe_near_duplicates, find_near_duplicates
        from fsl_dist.progress import counter

        found = find_near_duplicates(catalogue, counter())
        summary = replace(summary, flags=[*summary.flags, *found.flags])
    result: dict[str, object] = asdict(summary)
    text = describe(summary)
    if has_near_duplicates:
        result["near_duplicates"] = asdict(found)
        text = "\n".join([text, "", describe_near_duplicates(found)])
    if plots is not None:
        from fsl_dist.plots.dataset import draw_plots

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
