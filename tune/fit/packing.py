"""The default packing of a folder of images for a fit: with its table, and with a test split."""

import csv
import inspect
import re
from pathlib import Path

import fsl_dist
from fsl_dist.data.catalogue import SPLITS, Catalogue, is_dataset
from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.ingest.split_folders import holds_splits
from index.base.errors import RequestError
from tune.fit.config import FitConfig

TABLE = "labels.csv"
FRACTIONS = (0.8, 0.0, 0.2)
"""train, val, test: validation images are held out of train, in several parts, and the final run trains on them too"""
_UNITS = ("group", "patient", "patient_id", "lesion", "lesion_id", "subject", "subject_id", "unit")
"""columns of a table whose values are units that no split divides"""


def open_or_pack(config: FitConfig, out: Path, *, progress: bool) -> Catalogue:
    """Open the data set of a fit: `folder` itself if it is packed, otherwise pack it into OUT/data.

    Raises RequestError if the folder contains neither a data set nor images that `pack` can read.
    """
    folder = Path(config.folder)
    if is_dataset(folder):
        if config.pack:
            raise RequestError(
                f"pack.{next(iter(config.pack))} applies to a folder of images; {folder} is already packed "
                "(`resplit` divides it otherwise)"
            )
        return fsl_dist.open_data(folder)
    packed = out / "data"
    if is_dataset(packed):
        return fsl_dist.open_data(packed)
    if not folder.is_dir():
        raise RequestError(f"folder={folder}: no such folder; use one with a folder of images for each class")
    options = pack_options(folder, dict(config.pack))
    try:
        return _pack(folder, packed, config, options, progress)
    except RequestError as error:
        # Folders with longer names that are splits too (`seg_train`): pack recognises them, and they define the test
        # split.
        is_ours = "fractions" in options and "fractions" not in config.pack
        if not is_ours or "give its splits" not in str(error):
            raise
        del options["fractions"]
        return _pack(folder, packed, config, options, progress)


def _pack(
    folder: Path, out: Path, config: FitConfig, options: dict[str, object], progress: bool
) -> Catalogue:
    """`pack`, whose arguments are `pack.…` in its errors."""
    try:
        return fsl_dist.pack(folder, out, seed=config.seed, progress=progress, **options)  # type: ignore[arg-type]
    except RequestError as error:
        names = "|".join(
            set(inspect.signature(fsl_dist.pack).parameters) - {"source", "out", "append", "seed"}
        )
        raise RequestError(re.sub(rf"(?<![\w./(])({names})=", r"pack.\1=", str(error))) from error


def pack_options(folder: Path, given: dict[str, object]) -> dict[str, object]:
    """The arguments of `pack`: the given ones, and those that follow from the folder.

    A table labels.csv is used if it has a column of paths and one of classes. Its column `split` is used if it
    contains splits, and a column that is named like a patient, a lesion or a group is kept together.
    """
    options = dict(given)
    if "table" not in options:
        columns = _read_columns(folder / TABLE)
        if {
            str(options.get("path_column", "file")),
            str(options.get("label_column", "class")),
        } <= columns.keys():
            options["table"] = str(folder / TABLE)
            splits = set(columns.get("split", ()))
            if not _says_split(options) and "train" in splits and splits <= set(SPLITS):
                options["split_column"] = "split"
            units = [name for name in _UNITS if name in columns]
            if units and "keep_together" not in options:
                options["keep_together"] = units[0]
    if "keep_together" in options:
        # Held-out validation images follow the groups.
        options.setdefault("group_column", options["keep_together"])
    are_folders = (
        "table" not in options
        and options.get("split_folders") is not False
        and (holds_splits(path.name for path in folder.iterdir() if path.is_dir()))
    )
    if not _says_split(options) and not are_folders:
        options["fractions"] = FRACTIONS
    return options


def describe_table(folder: Path, given: dict[str, object]) -> list[str]:
    """A warning if there is a table labels.csv that is not used because its columns have other names."""
    columns = _read_columns(folder / TABLE) if folder.is_dir() and not is_dataset(folder) else {}
    if not columns or "table" in pack_options(folder, given):
        return []
    return [
        f"{TABLE} is not used: its columns are {', '.join(columns)}, and none is called file or none class "
        "(pack.path_column=… pack.label_column=… name them)"
    ]


def describe_nesting(folder: Path) -> list[str]:
    """A warning where the folders of `folder` have no images themselves but several folders of images:
    which are the classes?"""
    if is_dataset(folder) or not folder.is_dir() or (folder / TABLE).is_file():
        return []
    outer = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    if not outer or holds_splits(path.name for path in outer):
        return []
    inner = [sorted(path.name for path in one.iterdir() if path.is_dir()) for one in outer]
    has_images = any(path.suffix.lower() in IMAGE_SUFFIXES for one in outer for path in one.iterdir())
    if has_images or not all(len(names) > 1 for names in inner):
        return []
    names = ", ".join(f"'{one.name}'" for one in outer[:3])
    return [
        f"The classes are the {len(outer)} folders of {folder.name} ({names}); their images are in subfolders, such as "
        f"'{outer[0].name}/{inner[0][0]}'. Where those are the classes, fit '{outer[0].name}' or another one "
        f"alone, or name the class of each image in a table {TABLE} with the columns file and class."
    ]


def _says_split(options: dict[str, object]) -> bool:
    return bool({"split", "split_column", "fractions", "num_base", "split_folders"} & options.keys())


def _read_columns(table: Path) -> dict[str, list[str]]:
    """The columns of a CSV file; empty if the file is missing or not a table (`pack` reports the reason if it is
    requested)."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    names = [name for name in (rows[0] if rows else ()) if isinstance(name, str)]
    return {name: [row[name] or "" for row in rows] for name in names}
