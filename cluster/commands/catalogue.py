"""The verbs `adopt` and `resplit`: catalogues over shards that are there."""

from typing import Any

import click

from cluster.commands.dataset_options import emit_written, make_progress, split_options


@click.command(
    epilog="Example: fsl-dist adopt 'shards/part-{000..012}.tar' adopted --label-key species --split base-novel "
    "--num-base 150"
)
@click.argument("shards")
@click.argument("out")
@click.option(
    "--label-key",
    help="Key of .json that holds the label.  [default: .cls, else label, class or cls in .json]",
)
@click.option("--group-key", help="Key of .json that holds a second label.")
@click.option("--split-key", help="Key of .json that holds train, val, test or novel.")
@click.option(
    "--keep-together",
    metavar="KEY",
    help="Key of .json; images with one value stay on one side of any split.",
)
@click.option(
    "--image-extension",
    "image_extensions",
    multiple=True,
    help="Which member of a sample is the image (jpg, left.png …); repeat it to name others, the first found counts.  "
    "[default: the only one called like an image]",
)
@click.option(
    "--mask-key",
    metavar="EXT",
    help="Member that is the image's mask, such as mask.png; samples may lack it.",
)
@click.option(
    "--shard-in-key", is_flag=True, help="Put the shard's name before keys, where every shard counts from 0."
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
@click.option("--allow-bad", is_flag=True, help="Exit 0 although some samples had to be left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def adopt(
    shards: str,
    out: str,
    label_key: str | None,
    group_key: str | None,
    split_key: str | None,
    keep_together: str | None,
    image_extensions: tuple[str, ...],
    mask_key: str | None,
    shard_in_key: bool,
    relative: bool,
    split: dict[str, Any],
    processes: int,
    allow_bad: bool,
    as_json: bool,
) -> None:
    """Catalogue existing WebDataset shards in the folder OUT; the shards stay where and as they are.

    SHARDS is a folder of .tar files, or a quoted pattern with * or {000..012}. OUT is new, or the folder that holds
    the shards. Samples that cannot be used are named and left out: exit 1, or 0 with --allow-bad.
    """
    from fsl_dist.data.ingest.adopt import AdoptOptions
    from fsl_dist.data.ingest.adopt import adopt as adopt_shards
    from fsl_dist.data.ingest.wds_samples import SampleKeys

    keys = SampleKeys(
        label=label_key or "",
        group=group_key or "",
        split=split_key or "",
        unit=keep_together or "",
        mask=(mask_key or "").lower().lstrip("."),
        image_extensions=tuple(extension.lower().lstrip(".") for extension in image_extensions),
        shard_in_key=shard_in_key,
    )
    options = AdoptOptions(keys=keys, relative=relative, processes=processes, **split)
    emit_written("adopted", adopt_shards(shards, out, options, make_progress()), allow_bad, as_json)


@click.command(
    epilog="Example: fsl-dist resplit packed --table labels.csv --path-column file --label-column species "
    "--split classes --seed 1"
)
@click.argument("dataset")
@click.option(
    "--table", help="CSV or Parquet table, a row a sample; samples that it does not name are left out."
)
@click.option("--key-column", help="Column of keys (`DATASET`'s own names of its samples).")
@click.option("--path-column", help="Column of image paths as they were packed, instead of keys.")
@click.option("--label-column", help="Column of class names.  [default: classes stay]")
@click.option("--group-column", help="Column of a second label.  [default: groups stay]")
@click.option(
    "--blind-group-column",
    help="Column of a label given without a look at the class (chai's joint).  [default: they stay]",
)
@click.option("--split-column", help="Column with train, val, test or novel for every image.")
@click.option(
    "--keep-together",
    metavar="COLUMN",
    help="Images with one value stay on one side of any split.  [default: those that were packed so]",
)
@split_options
@click.option("--allow-bad", is_flag=True, help="Exit 0 although some samples had to be left out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def resplit(
    dataset: str,
    table: str | None,
    key_column: str | None,
    path_column: str | None,
    label_column: str | None,
    group_column: str | None,
    blind_group_column: str | None,
    split_column: str | None,
    keep_together: str | None,
    split: dict[str, Any],
    allow_bad: bool,
    as_json: bool,
) -> None:
    """Give the data set in folder DATASET another split, label or group: its next catalogue version, over the same shards.

    Without a split option, images stay on their sides. Earlier versions and their ids stay as they are.
    """
    from fsl_dist.data.ingest.resplit import ResplitOptions
    from fsl_dist.data.ingest.resplit import resplit as resplit_dataset

    options = ResplitOptions(
        table=table or "",
        key_column=key_column or "",
        path_column=path_column or "",
        label_column=label_column or "",
        group_column=group_column or "",
        blind_group_column=blind_group_column or "",
        split_column=split_column or "",
        keep_together=keep_together or "",
        **split,
    )
    emit_written("divided", resplit_dataset(dataset, options), allow_bad, as_json)
