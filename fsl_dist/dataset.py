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
        version: version of the catalogue; None for the current one.

    Returns:
        The catalogue: `len(data)`, `data.class_names`, `data.select("train")`.

    Raises:
        RequestError: the data set or the version does not exist.
        VersionError: the catalogue is damaged or incomplete.
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

    Unusable images are left out: a warning is logged, and `data.report.bad_samples` lists them with reasons.

    Args:
        source: folder with one folder of images per class; or with `train/`, `val/` and `test/`, which contain class
            folders; or the folder that the table's paths are relative to.
        out: new folder for the data set, or its address at s3:// or gs://.
        table: CSV, TSV, Parquet, JSON or JSON lines file with one row per image, instead of class folders.
        path_column: the table's column of image paths; `file` by default.
        label_column: its column of class names; `class` by default.
        group_column: its column of a second label (subclass, patient).
        blind_group_column: its column of a label that was assigned without knowing the class.
        mask_column: its column of mask images, which are stored with their images.
        split_column: its column with train, val, test or novel for every image.
        keep_together: its column of units; images of the same unit are in the same split.
        split_folders: whether folders of `source` named train, val (valid, validation, dev), test (eval) or novel are
            splits, also with more words (`training_set`). By default they are if train and another one exist. False
            reads them as classes.
        split: `stratified` divides every class by `fractions`, `classes` divides whole classes, `base-novel` makes the
            `num_base` largest classes base and the others novel, `column` follows `split_column`. The default is
            stratified, or column if `split_column` is set.
        num_base: number of base classes.
        fractions: shares of train, val and test; their sum is 1.
        seed: of the order and the split, 0 or more.
        append: add to the existing data set `out` instead; its own split rule, seed and image size apply.
        order: of bytes in the shards: shuffled over all classes, or class by class.
        resize_shorter: store larger images with this many pixels on the shorter side.
        resize: (height, width) in pixels; store larger images at this size.
        pixel_range: (low, high): store grey images of more than 8 bits (16 bits, signed, floating point) as 8-bit PNG,
            scaled linearly from low (black) to high (white) and clipped. By default whole numbers of 0 … 65535 are
            stored unchanged, and images with other values are left out.
        dedupe: leave out near-duplicates: `phash` compares all images, `name` only those with the same file name.
        num_classes: pack only this many classes, those with the most images.
        shard_size_mb: maximum size of a shard, in 10⁶ bytes.
        processes: number of processes that check, resize and write; 0 for one per core.
        progress: show a progress line on a terminal or in a notebook.

    Returns:
        The data set; its `report` lists what was written and what was left out.

    Raises:
        RequestError: the request is invalid; nothing was written.
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
            "select columns of a table; set the table with table=FILE"
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
    """Index existing WebDataset shards in a catalogue; the shards are not moved or changed.

    Args:
        shards: folder of .tar files, or a pattern with `*` or `{000..012}`. Compressed shards are not supported;
            concatenated ones are.
        out: new folder for the catalogue, or the folder that contains the shards.
        label_key: key of `.json` with the label; by default `.cls`, otherwise label, class or cls in `.json`.
        group_key: key of `.json` with a second label.
        split_key: key of `.json` with train, val, test or novel.
        keep_together: key of `.json`; images with the same value are in the same split.
        image_extensions: extensions of a sample's image (jpg, left.png), the first match counts; by default the only
            member with an image extension.
        mask_key: extension of the image's mask, such as mask.png; samples may lack it.
        shard_in_key: put the shard's name before keys, if every shard counts from 0.
        relative: name the shards relative to `out`, so that both can be moved together.
        split: as for `pack`.
        num_base: number of base classes.
        fractions: shares of train, val and test; their sum is 1.
        seed: of the split, 0 or more.
        processes: number of processes that check images; 0 for one per core.
        progress: show a progress line on a terminal or in a notebook.

    Returns:
        The data set; its `report` lists what was written and what was left out.

    Raises:
        RequestError: the request is invalid; nothing was written.
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
    keep_others: bool = False,
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
    """Change splits, labels or groups of a data set: the next version of its catalogue, over the same shards.

    Without a split option, images keep their splits. Earlier versions and their ids do not change.

    Args:
        dataset: folder of the data set, or its address at s3:// or gs://.
        table: table, as for `pack`, with one row per sample; samples without a row are left out.
        key_column: the table's column of keys.
        path_column: its column of image paths as they were packed, instead of keys.
        keep_others: keep samples without a row as they are; of several rows of a sample, the last one counts. A row
            with an empty label leaves its sample out.
        label_column: its column of class names; by default classes are kept.
        group_column: its column of a second label; by default groups are kept.
        blind_group_column: its column of a label that was assigned without knowing the class; by default kept.
        split_column: its column with train, val, test or novel for every image.
        keep_together: its column of units; images of the same unit are in the same split.
        split: as for `pack`.
        num_base: number of base classes.
        fractions: shares of train, val and test; their sum is 1.
        seed: of the split, 0 or more.

    Returns:
        The new version; its `report` lists what was written and what was left out.

    Raises:
        RequestError: the request is invalid; nothing was written.
    """
    _check_choices(split=(split, Split))
    options = resplitting.ResplitOptions(
        table="" if table is None else os.fspath(table),
        key_column=key_column or "",
        path_column=path_column or "",
        keep_others=keep_others,
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
            raise RequestError(f"{name}={value!r} must be one of {', '.join(get_args(kind))}")


def _open_written(report: WriteReport) -> Catalogue:
    data = Catalogue.open(report.dataset, report.version)
    data.report = report
    return data
