"""Source folders that are splits: SRC/train/CLASS/…/IMAGE with SRC/val and SRC/test, under the names in use."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from fsl_dist.data.catalogue import SPLITS
from fsl_dist.errors import RequestError

_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "novel": "novel",
}
_AS_CLASSES = "split_folders=False reads all of them as classes"


def find_split_folders(
    source: Path, folders: Mapping[str, Mapping[str, int]], is_wanted: bool | None
) -> dict[str, str]:
    """Folder → split for the folders of `source` that are splits; empty where they are classes.

    Args:
        source: for messages.
        folders: of each folder in `source`, the images in each of its folders, and under "" those directly in it.
        is_wanted: whether folders with names of splits are splits; None: where train and another split are there.

    Raises:
        RequestError: the folders can be read either way, or splits are wanted and cannot be read.
    """
    if is_wanted is False:
        return {}
    found = {name: _SPLIT_OF[name.casefold()] for name in folders if name.casefold() in _SPLIT_OF}
    others = [name for name, images in folders.items() if name not in found and images]
    if is_wanted is None and not holds_splits(folders):
        is_likely = len(set(found.values())) > 1 and not others
        if is_likely and all(_has_classes(folders[name]) for name in found):
            raise RequestError(
                f"source '{source}' has the split folders {_listed(found)} and no train: split_folders=True reads them as "
                f"splits, {_AS_CLASSES}"
            )
        return {}
    if not found:
        raise RequestError(
            f"source '{source}' has no folder that is named like a split ({', '.join(_SPLIT_OF)}); split_folders=True needs "
            "them, and so does append=True where the data set was made of such folders"
        )
    if others:
        raise RequestError(
            f"source '{source}' has the split folders {_listed(found)} next to other folders with images "
            f"({_listed(others)}): move the others away to read splits, or {_AS_CLASSES}"
        )
    for split in SPLITS:
        same = [name for name in found if found[name] == split]
        if len(same) > 1:
            raise RequestError(
                f"source '{source}': the folders {_listed(same)} are all named like the split {split}; leave one of "
                f"them, or {_AS_CLASSES}"
            )
    trained = next((name for name in found if found[name] == "train"), "")
    if (trained and not _has_classes(folders[trained])) or not any(map(_has_classes, folders.values())):
        raise RequestError(
            f"source '{source}' has the split folders {_listed(found)}, and '{trained or next(iter(found))}' has no class "
            f"folders with images: name the classes with table=…, or {_AS_CLASSES}"
        )
    return found


def describe_folders(
    source: Path, folders: Mapping[str, Mapping[str, int]], split_of: Mapping[str, str]
) -> list[str]:
    """How `source` was read, as sentences; none for class folders of other names. folders as for `find_split_folders`, split_of as it returns."""
    if not split_of:
        named = [name for name in folders if name.casefold() in _SPLIT_OF]
        notes = [f"'{source}' was read as class folders, also {_listed(named)}"] if named else []
        nested = [name for name, images in folders.items() if holds_splits(images)]
        if nested:
            notes.append(
                f"folders named like splits in the class folders ({_listed(nested)}) were read as any other; where these are "
                f"splits with class folders, pack '{source / nested[0]}'"
            )
        elif len(folders) == 1:
            (only, images), *_ = folders.items()
            if _has_classes(images):
                notes.append(
                    f"'{only}' is the only class; if its folders ({_listed(filter(None, images))}) are the classes, pack "
                    f"'{source / only}'"
                )
        return notes
    folder_of = {split: name for name, split in split_of.items()}
    named = [
        split if folder_of[split] == split else f"{split} ({folder_of[split]}/)"
        for split in SPLITS
        if split in folder_of
    ]
    notes = [f"'{source}' was read as splits, {', '.join(named)}, each with class folders; {_AS_CLASSES}"]
    if "train" in folder_of and "val" not in folder_of:
        notes.append(
            "there is no folder for val: in a data set without val, a run that needs validation holds out "
            "data.holdout_fraction of train"
        )
    return notes + [f"'{source / name}' has no images" for name in split_of if not folders[name]]


def holds_splits(folders: Iterable[str]) -> bool:
    """Whether `folders` are named like train and another split."""
    splits = {_SPLIT_OF[name.casefold()] for name in folders if name.casefold() in _SPLIT_OF}
    return "train" in splits and len(splits) > 1


def _has_classes(images: Mapping[str, int]) -> bool:
    return any(images)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:6]) + (f" … ({len(shown)} in all)" if len(shown) > 6 else "")
