"""The commands `adopt` and `resplit`: new catalogues over existing shards."""

from typing import Any

import click

from cluster.commands.dataset_options import emit_written, split_options


@click.command(
    epilog="Example: fsl-dist adopt 'shards/part-{000..012}.tar' adopted --label-key species --split base-novel "
    "--num-base 150"
)
@click.argument("shards")
@click.argument("out")
@click.option(
    "--label-key",
    help="Key of .json with the label.  [default: .cls, else label, class or cls in .json]",
)
@click.option("--group-key", help="Key of .json with a second label.")
@click.option("--split-key", help="Key of .json with train, val, test or novel.")
@click.option(
    "--keep-together",
    metavar="KEY",
    help="Key of .json; images with the same value are in the same split.",
)
@click.option(
    "--image-extension",
    "image_extensions",
    multiple=True,
    help="Extension of a sample's image (jpg, left.png …); repeat it for alternatives, the first match counts.  "
    "[default: the only one called like an image]",
)
@click.option(
    "--mask-key",
    metavar="EXT",
    help="Member that is the image's mask, such as mask.png; samples may lack it.",
)
@click.option(
    "--shard-in-key", is_flag=True, help="Put the shard's name before keys, if every shard counts from 0."
)
@click.option(
    "--relative",
    is_flag=True,
    help="Name the shards relative to OUT, so that both move together.  [default: absolute]",
)
@split_options
@click.option(
    "--processes", type=click.IntRange(min=0), default=0, help="Processes that check; 0: one a core."
)
@click.option(
    "--allow-bad", is_flag=True, help="Exit 0 although some samples had to be left out, unless none remains."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def adopt(shards: str, out: str, allow_bad: bool, as_json: bool, **options: Any) -> None:
    """Index existing WebDataset shards in a catalogue in the folder OUT; the shards are not moved or changed.

    SHARDS is a folder of .tar files, or a quoted pattern with * or {000..012}. OUT is new, or the folder that
    contains the shards. Unusable samples, and shards that are truncated, empty or compressed, are listed and left
    out: exit 1, or 0 with --allow-bad.
    """
    import fsl_dist

    emit_written("adopted", fsl_dist.adopt(shards, out, **options), allow_bad, as_json)


@click.command(
    epilog="Example: fsl-dist resplit packed --table labels.csv --path-column file --label-column species "
    "--split classes --seed 1"
)
@click.argument("dataset")
@click.option(
    "--table", help="Table as for pack, a row a sample; samples that it does not name are left out."
)
@click.option("--key-column", help="Column of keys (`DATASET`'s own names of its samples).")
@click.option("--path-column", help="Column of image paths as they were packed, instead of keys.")
@click.option(
    "--keep-others",
    is_flag=True,
    help="Keep samples that the table does not name; the last row of a sample counts.",
)
@click.option("--label-column", help="Column of class names.  [default: classes are kept]")
@click.option("--group-column", help="Column of a second label.  [default: groups are kept]")
@click.option(
    "--blind-group-column",
    help="Column of a label that was assigned without knowing the class (chai's joint).  [default: kept]",
)
@click.option("--split-column", help="Column with train, val, test or novel for every image.")
@click.option(
    "--keep-together",
    metavar="COLUMN",
    help="Images with the same value are in the same split.  [default: the column of the pack]",
)
@split_options
@click.option("--allow-bad", is_flag=True, help="Exit 0 although some samples had to be left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def resplit(dataset: str, allow_bad: bool, as_json: bool, **options: Any) -> None:
    """Change splits, labels or groups of the data set in folder DATASET:
    its next catalogue version, over the same shards.

    Without a split option, images keep their splits. Earlier versions and their ids do not change.
    """
    import fsl_dist

    emit_written("divided", fsl_dist.resplit(dataset, **options), allow_bad, as_json)
