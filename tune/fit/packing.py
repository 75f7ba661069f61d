"""How a folder of images is packed for a fit, where the user says nothing: with its table, and with a test split."""

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
"""train, val, test: validation images are held out of train, on several parts, and the final run trains on them too"""
_UNITS = ("group", "patient", "patient_id", "lesion", "lesion_id", "subject", "subject_id", "unit")
"""columns of a table whose values are units that no split divides"""


def open_or_pack(config: FitConfig, out: Path, *, progress: bool) -> Catalogue:
    """The data set of a fit: `folder` itself where it is packed, else what is packed of it into OUT/data.

    Raises RequestError where the folder holds no data set and no images that `pack` can read.
    """
    folder = Path(config.folder)
    if is_dataset(folder):
        if config.pack:
            raise RequestError(
                f"pack.{next(iter(config.pack))} is for a folder of images; {folder} is packed already (`resplit` divides it "
                "otherwise)"
            )
        return fsl_dist.open_data(folder)
    packed = out / "data"
    if is_dataset(packed):
        return fsl_dist.open_data(packed)
    if not folder.is_dir():
        raise RequestError(
            f"folder={folder}: no such folder; name one with a folder of images for each class"
        )
    options = pack_options(folder, dict(config.pack))
    try:
        return _pack(folder, packed, config, options, progress)
    except RequestError as error:
        # Folders of longer names that are splits too (`seg_train`): pack knows them, and they say what is in test.
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
    """The arguments of `pack`: those that are given, and what the folder says of the others.

    A table labels.csv is used where it has a column of paths and one of classes. Its column `split` is followed where it holds
    splits, and a column that is named like a patient, a lesion or a group is kept together.
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
        # What is held out for validation follows the groups.
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
    """A warning where a table labels.csv is there and not used, for its columns have other names."""
    columns = _read_columns(folder / TABLE) if folder.is_dir() and not is_dataset(folder) else {}
    if not columns or "table" in pack_options(folder, given):
        return []
    return [
        f"{TABLE} is not used: its columns are {', '.join(columns)}, and none is called file or none class (pack.path_column=… "
        "pack.label_column=… name them)"
    ]


def describe_nesting(folder: Path) -> list[str]:
    """A warning where the folders of `folder` have no images themselves but several folders of images: which are the classes?"""
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
        f"The classes are the {len(outer)} folders of {folder.name} ({names}); their images are in folders of their own, such as "
        f"'{outer[0].name}/{inner[0][0]}'. Where those are the classes, fit '{outer[0].name}' or another one alone, or name the "
        f"class of each image in a table {TABLE} with the columns file and class."
    ]


def _says_split(options: dict[str, object]) -> bool:
    return bool({"split", "split_column", "fractions", "num_base", "split_folders"} & options.keys())


def _read_columns(table: Path) -> dict[str, list[str]]:
    """The columns of a CSV file; none where there is no such file, or it is no table (`pack` says why, asked for it)."""
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return {}
    names = [name for name in (rows[0] if rows else ()) if isinstance(name, str)]
    return {name: [row[name] or "" for row in rows] for name in names}
