"""Data sets from Python: packed from images, adopted from shards, divided again, opened."""

import os
from typing import Literal, get_args

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest import adopt as adopting
from fsl_dist.data.ingest import pack as packing
from fsl_dist.data.ingest import resplit as resplitting
from fsl_dist.data.ingest.listing import TableColumns
from fsl_dist.data.ingest.options import PackOptions
from fsl_dist.data.ingest.shards.wds_samples import SampleKeys
from fsl_dist.data.write_report import WriteReport
from fsl_dist.errors import RequestError
from fsl_dist.progress import counter

Split = Literal["stratified", "classes", "base-novel", "column"]
Order = Literal["mixed", "class"]
Dedupe = Literal["name", "phash"]
PathLike = str | os.PathLike[str]


def open_data(dataset: PathLike, *, version: int | None = None) -> Catalogue:
    """Open a data set.

    Args:
        dataset: its folder, or its address at s3:// or gs://.
        version: of its catalogue; None for the current one.

    Returns:
        The catalogue: `len(data)`, `data.class_names`, `data.select("train")`.

    Raises:
        RequestError: there is no data set, or no such version.
        VersionError: the catalogue is damaged or unfinished.
    """
    return Catalogue.open(os.fspath(dataset), version)


def pack(
    source: PathLike,
    out: PathLike,
    *,
    table: PathLike | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    blind_group_column: str | None = None,
    mask_column: str | None = None,
    split_column: str | None = None,
    keep_together: str | None = None,
    split_folders: bool | None = None,
    split: Split | None = None,
    num_base: int | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    append: bool = False,
    order: Order = "mixed",
    resize_shorter: int | None = None,
    resize: tuple[int, int] | None = None,
    pixel_range: tuple[float, float] | None = None,
    dedupe: Dedupe | None = None,
    num_classes: int | None = None,
    shard_size_mb: int = 256,
    processes: int = 0,
    progress: bool = True,
) -> Catalogue:
    """Pack images into WebDataset shards and a catalogue.

    Images that cannot be used are left out: a warning is logged, and `data.report.bad_samples` lists them with reasons.

    Args:
        source: folder with one folder of images for each class, or with `train/`, `val/` and `test/` that hold class folders,
            or the folder that the table's paths start from.
        out: new folder for the data set, or its address at s3:// or gs://.
        table: CSV, TSV, Parquet, JSON or JSON lines file with one row for each image, instead of class folders.
        path_column: the table's column of image paths; `file` by default.
        label_column: its column of class names; `class` by default.
        group_column: its column of a second label (subclass, patient).
        blind_group_column: its column of a label given without knowing the class.
        mask_column: its column of mask images, which are stored with their images.
        split_column: its column with train, val, test or novel for every image.
        keep_together: its column of units; images of one unit stay on one side of any split.
        split_folders: whether folders of `source` named train, val (valid, validation, dev), test (eval) or novel are splits,
            also with more words (`training_set`); by default they are where train and another one are there. False reads them as classes.
        split: `stratified` divides every class by `fractions`, `classes` divides whole classes, `base-novel` makes the
            `num_base` largest classes base and the others novel, `column` follows `split_column`. By default stratified,
            or column where `split_column` is given.
        num_base: number of base classes.
        fractions: shares of train, val and test, which sum to 1.
        seed: of the order and the split, 0 or more.
        append: add to the existing data set `out` instead; its own split rule, seed and image size apply.
        order: of bytes in the shards: shuffled over all classes, or class by class.
        resize_shorter: pixels of the shorter side at which larger images are stored.
        resize: (height, width) in pixels at which larger images are stored.
        pixel_range: (low, high): grey pixels of more than 8 bits (16 bits, signed, floating point) are stored as PNG of 8
            bits, scaled linearly from low, black, to high, white; values outside are clipped. By default whole numbers of
            0 … 65535 stay as they are, and images with others are left out.
        dedupe: leave out near-duplicates: `phash` all of them, `name` those that share a file name.
        num_classes: pack only this many classes, those with the most images.
        shard_size_mb: size of the largest shard, 10⁶ bytes.
        processes: that check, resize and write; 0 for one on each core.
        progress: show a line on a terminal or in a notebook.

    Returns:
        The data set, with `report` set to what was written and what was left out.

    Raises:
        RequestError: the request cannot be served; nothing is written.
        DataError: a file changed while it was packed.
    """
    _check_choices(split=(split, Split), order=(order, Order), dedupe=(dedupe, Dedupe))
    columns = None
    names = (
        path_column,
        label_column,
        group_column,
        blind_group_column,
        mask_column,
        split_column,
        keep_together,
    )
    if table is not None:
        columns = TableColumns(
            table=os.fspath(table),
            path=path_column or "file",
            label=label_column or "class",
            group=group_column or "",
            blind_group=blind_group_column or "",
            split=split_column or "",
            unit=keep_together or "",
            mask=mask_column or "",
        )
    elif any(names):
        raise RequestError(
            "path_column, label_column, group_column, blind_group_column, mask_column, split_column and keep_together "
            "name columns of a table; say which with table=FILE"
        )
    options = PackOptions(
        columns=columns,
        split_folders=split_folders,
        split=split or "",
        num_base=num_base,
        fractions=fractions,
        seed=seed,
        order=order,
        resize_shorter=resize_shorter,
        resize=resize,
        pixel_range=pixel_range,
        dedupe=dedupe,
        num_classes=num_classes,
        shard_size_mb=shard_size_mb,
        processes=processes,
    )
    write = packing.append if append else packing.pack
    return _open_written(write(os.fspath(source), os.fspath(out), options, counter() if progress else None))


def adopt(
    shards: PathLike,
    out: PathLike,
    *,
    label_key: str | None = None,
    group_key: str | None = None,
    split_key: str | None = None,
    keep_together: str | None = None,
    image_extensions: tuple[str, ...] = (),
    mask_key: str | None = None,
    shard_in_key: bool = False,
    relative: bool = False,
    split: Split | None = None,
    num_base: int | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
    processes: int = 0,
    progress: bool = True,
) -> Catalogue:
    """Catalogue existing WebDataset shards; the shards are not moved or changed.

    Args:
        shards: folder of .tar files, or a pattern with `*` or `{000..012}`. Compressed shards cannot be used; joined ones
            are read whole.
        out: new folder for the catalogue, or the folder that holds the shards.
        label_key: key of `.json` that holds the label; by default `.cls`, else label, class or cls in `.json`.
        group_key: key of `.json` that holds a second label.
        split_key: key of `.json` that holds train, val, test or novel.
        keep_together: key of `.json`; images with one value stay on one side of any split.
        image_extensions: which member of a sample is the image (jpg, left.png), the first found counts; by default the only
            one that is named like an image.
        mask_key: extension of the member that is the image's mask, such as mask.png; samples may lack it.
        shard_in_key: put the shard's name before keys, where every shard counts from 0.
        relative: name the shards relative to `out`, so that both can move together.
        split: as for `pack`.
        num_base: number of base classes.
        fractions: shares of train, val and test, which sum to 1.
        seed: of the split, 0 or more.
        processes: that check images; 0 for one on each core.
        progress: show a line on a terminal or in a notebook.

    Returns:
        The data set, with `report` set to what was written and what was left out.

    Raises:
        RequestError: the request cannot be served; nothing is written.
    """
    _check_choices(split=(split, Split))
    options = adopting.AdoptOptions(
        keys=SampleKeys(
            label=label_key or "",
            group=group_key or "",
            split=split_key or "",
            unit=keep_together or "",
            mask=(mask_key or "").lower().lstrip("."),
            image_extensions=tuple(extension.lower().lstrip(".") for extension in image_extensions),
            shard_in_key=shard_in_key,
        ),
        relative=relative,
        processes=processes,
        split=split or "",
        num_base=num_base,
        fractions=fractions,
        seed=seed,
    )
    report = adopting.adopt(os.fspath(shards), os.fspath(out), options, counter() if progress else None)
    return _open_written(report)


def resplit(
    dataset: PathLike,
    *,
    table: PathLike | None = None,
    key_column: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    group_column: str | None = None,
    blind_group_column: str | None = None,
    split_column: str | None = None,
    keep_together: str | None = None,
    split: Split | None = None,
    num_base: int | None = None,
    fractions: tuple[float, float, float] | None = None,
    seed: int = 0,
) -> Catalogue:
    """Give a data set another split, label or group: the next version of its catalogue, over the same shards.

    Without a split option, images stay on their sides. Earlier versions and their ids stay as they are.

    Args:
        dataset: folder of the data set, or its address at s3:// or gs://.
        table: table, as for `pack`, with one row for each sample; samples that it does not name are left out.
        key_column: the table's column of keys.
        path_column: its column of image paths as they were packed, instead of keys.
        label_column: its column of class names; by default classes stay.
        group_column: its column of a second label; by default groups stay.
        blind_group_column: its column of a label given without knowing the class; by default they stay.
        split_column: its column with train, val, test or novel for every image.
        keep_together: its column of units; images of one unit stay on one side of any split.
        split: as for `pack`.
        num_base: number of base classes.
        fractions: shares of train, val and test, which sum to 1.
        seed: of the split, 0 or more.

    Returns:
        The new version, with `report` set to what was written and what was left out.

    Raises:
        RequestError: the request cannot be served; nothing is written.
    """
    _check_choices(split=(split, Split))
    options = resplitting.ResplitOptions(
        table="" if table is None else os.fspath(table),
        key_column=key_column or "",
        path_column=path_column or "",
        label_column=label_column or "",
        group_column=group_column or "",
        blind_group_column=blind_group_column or "",
        split_column=split_column or "",
        keep_together=keep_together or "",
        split=split or "",
        num_base=num_base,
        fractions=fractions,
        seed=seed,
    )
    return _open_written(resplitting.resplit(os.fspath(dataset), options))


def _check_choices(**choices: tuple[str | None, object]) -> None:
    for name, (value, kind) in choices.items():
        if value is not None and value not in get_args(kind):
            raise RequestError(f"{name}={value!r} is none of {', '.join(get_args(kind))}")


def _open_written(report: WriteReport) -> Catalogue:
    data = Catalogue.open(report.dataset, report.version)
    data.report = report
    return data
