"""Source folders that are splits: SRC/train/CLASS/…/IMAGE with SRC/val and SRC/test, under the names in use."""

import re
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
    "eval": "test",
    "evaluation": "test",
    "novel": "novel",
}
# Words of a name: runs of letters, also split before a capital letter that follows a small one (TrainData).
_WORD = re.compile(r"[^\W\d_]+?(?:(?<=[a-z])(?=[A-Z])|(?![^\W\d_]))")
_SET = re.compile(r"(?:sets?|data)$")
_AS_CLASSES = "split_folders=False reads all of them as classes"


def find_split_folders(
    source: Path, folders: Mapping[str, Mapping[str, int]], is_wanted: bool | None
) -> dict[str, str]:
    """Return folder → split for the folders of `source` that are splits; empty if they are classes.

    Args:
        source: for messages.
        folders: for each folder in `source`, the number of images in each of its folders, and under "" those directly
            in it.
        is_wanted: whether folders with names of splits are splits. None: if train and another split exist, also as
            one word of longer names (`seg_train`, `training_set`) that are otherwise equal or contain the same classes.

    Raises:
        RequestError: the folders are ambiguous, or splits are wanted and cannot be read.
    """
    if is_wanted is False:
        return {}
    found = {name: _SPLIT_OF[name.casefold()] for name in folders if name.casefold() in _SPLIT_OF}
    longer = _read_names(folders)
    if is_wanted or (is_wanted is None and not holds_splits(found) and _are_splits(folders, longer)):
        found |= {name: split for name, (split, _) in longer.items() if folders[name]}
    others = [name for name, images in folders.items() if name not in found and images]
    if is_wanted is None and not {"train"} < set(found.values()):
        is_likely = len(set(found.values())) > 1 and not others
        if is_likely and all(_has_classes(folders[name]) for name in found):
            raise RequestError(
                f"source '{source}' has the split folders {_listed(found)} but no train: split_folders=True reads "
                f"them as splits, {_AS_CLASSES}"
            )
        return {}
    if not found:
        raise RequestError(
            f"source '{source}' has no folder that is named like a split ({', '.join(_SPLIT_OF)}); "
            "split_folders=True needs them, and so does append=True where the data set was made of such folders"
        )
    if others:
        raise RequestError(
            f"source '{source}' has the split folders {_listed(found)} next to other folders with images "
            f"({_listed(others)}): move the others elsewhere to read splits, or {_AS_CLASSES}"
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
        link = _find_link(source, trained) if trained else ""
        if link:
            raise RequestError(
                f"source '{source}' has the split folders {_listed(found)}, and '{link}' is a link to a folder, "
                "which is not followed: replace the link by the folder itself, or pack a folder without links"
            )
        raise RequestError(
            f"source '{source}' has the split folders {_listed(found)}, and '{trained or next(iter(found))}' has "
            f"no class folders with images: name the classes with table=…, or {_AS_CLASSES}"
        )
    return found


def describe_folders(
    source: Path, folders: Mapping[str, Mapping[str, int]], split_of: Mapping[str, str]
) -> list[str]:
    """Sentences on how `source` was read; none for ordinary class folders. Arguments:
    those and the result of `find_split_folders`."""
    if not split_of:
        named = [name for name in folders if name.casefold() in _SPLIT_OF]
        longer, hint = [name for name in _read_names(folders) if name not in named], ""
        if longer and _names_splits(folders, [*named, *longer]):
            named, hint = [*named, *longer], "; split_folders=True reads them as splits"
        notes = [f"'{source}' was read as class folders, also {_listed(named)}{hint}"] if named else []
        nested = [name for name, images in folders.items() if holds_splits(images)]
        if nested:
            notes.append(
                f"folders named like splits in the class folders ({_listed(nested)}) were read like any other; if "
                f"these are splits with class folders, pack '{source / nested[0]}'"
            )
        elif len(folders) == 1:
            (only, images), *_ = folders.items()
            if _has_classes(images):
                notes.append(
                    f"'{only}' is the only class; if its folders ({_listed(filter(None, images))}) are the "
                    f"classes, pack '{source / only}'"
                )
        return notes
    folder_of = {split: name for name, split in split_of.items()}
    named = [
        split if folder_of[split] == split else f"{split} ({folder_of[split]}/)"
        for split in SPLITS
        if split in folder_of and folders[folder_of[split]]
    ]
    notes = [f"'{source}' was read as splits, {', '.join(named)}, each with class folders; {_AS_CLASSES}"]
    if "train" in folder_of and not folders.get(folder_of.get("val", "")):
        empty = " with images" if "val" in folder_of else ""
        notes.append(
            f"there is no folder for val{empty}: in a data set without val, a run that needs validation holds out "
            "data.holdout_fraction of train"
        )
    for name in split_of:
        if not folders[name]:
            link = _find_link(source, name)
            why = f": '{link}' is a link to a folder, which is not followed" if link else ""
            notes.append(f"'{source / name}' has no images{why}")
    return notes


def holds_splits(folders: Iterable[str]) -> bool:
    """Whether `folders` are named like train and another split."""
    splits = {_SPLIT_OF[name.casefold()] for name in folders if name.casefold() in _SPLIT_OF}
    return "train" in splits and len(splits) > 1


def _read_names(folders: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Folder → (split, the rest of its name) for the folders whose names have one word that is a split's,
    such as `trainset`."""
    found = {}
    for name in folders:
        words = [
            (match, word)
            for match in _WORD.finditer(name)
            if (word := match[0].casefold()) in _SPLIT_OF or (word := _SET.sub("", word)) in _SPLIT_OF
        ]
        if len(words) == 1:
            ((match, word),) = words
            rest = f"{name[: match.start()]}/{name[match.start() + len(word) :]}"
            found[name] = _SPLIT_OF[word], rest.casefold()
    return found


def _are_splits(folders: Mapping[str, Mapping[str, int]], named: Mapping[str, tuple[str, str]]) -> bool:
    """Whether all folders with images are splits with class folders, by equal names or equal classes."""
    filled = {name: images for name, images in folders.items() if images}
    splits = [named[name][0] for name in filled if name in named]
    if len(splits) < len(filled) or not {"train"} < set(splits) or len(set(splits)) < len(splits):
        return False
    inner = [set(filter(None, images)) for images in filled.values()]
    # seg_train/seg_train/CLASS: the classes are one folder further down.
    if not all(inner) or all(len(names) == 1 and _read_names(names) for names in inner):
        return False
    trained = inner[splits.index("train")]
    return len({named[name][1] for name in filled}) == 1 or all(trained & names for names in inner)


def _names_splits(folders: Mapping[str, Mapping[str, int]], named: Iterable[str]) -> bool:
    """Whether `named` are enough splits of `folders` to warn about reading them as classes."""
    named = set(named)
    is_all = all(name in named for name, images in folders.items() if images)
    splits = {split for split, _ in _read_names(named).values()}
    return len(splits) > 1 and (is_all or any(_has_classes(folders[name]) for name in named))


def _find_link(source: Path, folder: str) -> str:
    """`folder` of `source` if it is a link to a folder, otherwise a folder in it that is one;
    empty if there is none."""
    place = source / folder
    for path in (place, *sorted(place.iterdir() if place.is_dir() else ())):
        if path.is_symlink() and path.is_dir():
            return str(path.relative_to(source))
    return ""


def _has_classes(images: Mapping[str, int]) -> bool:
    return any(images)


def _listed(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(shown[:6]) + (f" … ({len(shown)} in all)" if len(shown) > 6 else "")
