"""Samples in existing WebDataset shards: members with one key, their image, label and further values."""

import glob
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fsl_dist.data.catalogue import SPLITS, ShardFile
from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.ingest.listing import Candidate, Listing
from fsl_dist.data.ingest.member_images import Place
from fsl_dist.data.ingest.tar_members import Member, list_members
from fsl_dist.data.names.readings import read_value
from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import RequestError

DEFAULT_LABEL_KEYS = ("label", "class", "cls")
# Labels and metadata are text of a few bytes to a few kilobytes.
_MAX_TEXT_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleKeys:
    """Where a sample's values are found; an empty name means none."""

    label: str = ""
    """key of `.json`; empty: `.cls`, else the first of `label`, `class`, `cls` in `.json`"""
    group: str = ""
    """key of `.json`"""
    split: str = ""
    """key of `.json`: train, val, test or novel"""
    unit: str = ""
    """key of `.json`: samples with one value stay on one side of any split"""
    image_extensions: tuple[str, ...] = ()
    """which member is the image, the first that a sample has; empty: its only one that is named like an image"""
    mask: str = ""
    """extension of the member that is the image's mask, such as `mask.png`; a sample may lack it"""
    shard_in_key: bool = False
    """the shard's name goes before each key: for shards that all count from 0"""


@dataclass(slots=True)
class ShardListing:
    """What shards hold, sorted by key, each key once."""

    shards: list[ShardFile] = field(default_factory=list)
    """named as they were found; only those that hold samples"""
    listing: Listing = field(default_factory=lambda: Listing([], []))
    places: dict[str, Place] = field(default_factory=dict)
    """key → where its image is stored"""


def find_shards(pattern: str) -> list[Path]:
    """Tar files of a folder (at any depth), or of a pattern with `*`, `?` or `{a,b}`, `{000..012}`; sorted.

    RequestError where there are none, or where a named one is missing.
    """
    if os.path.isdir(pattern):
        found = sorted(path for path in Path(pattern).rglob("*.tar") if path.is_file())
        if not found:
            raise RequestError(f"shards '{pattern}': the folder has no .tar files")
        return found
    paths: list[str] = []
    for name in _expand_braces(pattern):
        matches = sorted(glob.glob(name, recursive=True)) if glob.has_magic(name) else [name]
        if not matches or not all(os.path.isfile(match) for match in matches):
            raise RequestError(
                f"shards '{pattern}': '{name}' names no file; give a folder of .tar files, or a pattern such as "
                "'shards/part-{000..012}.tar' or 'shards/*.tar'"
            )
        paths += matches
    return [Path(path) for path in dict.fromkeys(paths)]


def _expand_braces(pattern: str) -> Iterator[str]:
    """`{a,b}` and `{000..012}`, innermost first, as a shell does; numbers keep the width of the first."""
    found = re.search(r"\{([^{}]*,[^{}]*|(\d+)\.\.(\d+))\}", pattern)
    if found is None:
        yield pattern
        return
    if found[2]:
        parts = [str(n).zfill(len(found[2])) for n in range(int(found[2]), int(found[3]) + 1)]
    else:
        parts = found[1].split(",")
    for part in parts:
        yield from _expand_braces(pattern[: found.start()] + part + pattern[found.end() :])


def list_shards(paths: list[Path], keys: SampleKeys) -> ShardListing:
    """Samples of the shards at `paths`. Reads headers, labels and metadata, no image.

    RequestError where `keys.split` names other values than the four splits.
    """
    found = ShardListing()
    candidates: list[Candidate] = []
    bad: list[BadSample] = []
    first_of: dict[str, str] = {}
    num_ignored = 0
    for path in paths:
        shard = len(found.shards)
        is_used = False
        descriptor = os.open(path, os.O_RDONLY)
        try:
            for key, members in _group(descriptor, path, bad):
                if not key:
                    num_ignored += 1
                    continue
                sample = _read_sample(descriptor, path, shard, key, members, keys)
                if isinstance(sample, BadSample):
                    bad.append(sample)
                    continue
                candidate, place = sample
                if candidate.key in first_of:
                    bad.append(
                        BadSample(
                            candidate.path,
                            f"duplicate key '{candidate.key}', taken by {first_of[candidate.key]} "
                            "(shard_in_key=True keeps shards with equal keys apart)",
                        )
                    )
                    continue
                first_of[candidate.key] = candidate.path
                candidates.append(candidate)
                found.places[candidate.key] = place
                is_used = True
            if is_used:
                found.shards.append(ShardFile(str(path), os.fstat(descriptor).st_size))
        finally:
            os.close(descriptor)
    if keys.split:
        _check_splits(candidates, keys.split)
    candidates.sort(key=lambda candidate: candidate.key)
    found.listing = Listing(candidates, bad, num_ignored)
    return found


def _group(descriptor: int, path: Path, bad: list[BadSample]) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, extension → member) of each run of members with one key; an empty key for what is no sample's."""
    key, members = "", dict[str, Member]()
    for member in list_members(descriptor, path.name):
        if isinstance(member, BadSample):
            bad.append(member)
            continue
        name = member.name.removeprefix("./")
        # WebDataset's rule: the key ends at the first dot of the last part; `__x__` is not a sample's.
        parts = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", name, re.DOTALL)
        if parts is None or re.fullmatch(r"__.*__", name.rsplit("/", 1)[-1]):
            yield "", {}
            continue
        extension = parts[2].lower()
        if members and (parts[1] != key or extension in members):
            yield key, members
            members = {}
        key = parts[1]
        members[extension] = member
    if members:
        yield key, members


def _read_sample(
    descriptor: int, path: Path, shard: int, key: str, members: dict[str, Member], keys: SampleKeys
) -> tuple[Candidate, Place] | BadSample:
    where = f"{path.name}:{key}"
    mask = members.pop(keys.mask, None) if keys.mask else None
    image = _choose_image(members, keys.image_extensions)
    if isinstance(image, str):
        return BadSample(where, image)
    try:
        values = _read_json(descriptor, members)
        candidate = Candidate(
            file=str(path),
            path=f"{path.name}:{image.name}",
            key=f"{path.name.split('.')[0]}/{key}" if keys.shard_in_key else key,
            label=_read_label(descriptor, members, values, keys.label),
            group=_as_text(values, keys.group),
            unit=_as_text(values, keys.unit),
            split=_as_text(values, keys.split),
            mask=str(path) if mask is not None else "",
            mask_path=f"{path.name}:{mask.name}" if mask is not None else "",
        )
    except _ValueError as error:
        return BadSample(f"{path.name}:{image.name}", str(error))
    if mask is None:
        return candidate, Place(shard, image.offset, image.size)
    return candidate, Place(shard, image.offset, image.size, mask.offset, mask.size)


class _ValueError(Exception):
    """A label or another value of a sample cannot be used."""


def _choose_image(members: dict[str, Member], extensions: tuple[str, ...]) -> Member | str:
    """The image among a sample's members, or why there is none."""
    if extensions:
        for extension in extensions:
            if extension in members:
                return members[extension]
        return f"has no member {' or '.join(extensions)}; it has {', '.join(members)}"
    found = [ext for ext in members if "." + ext.rsplit(".", 1)[-1] in IMAGE_SUFFIXES]
    plain = [ext for ext in found if "." not in ext]  # `jpg` before `mask.png`
    chosen = plain or found
    if len(chosen) > 1:
        return f"has several images, {', '.join(chosen)}; image_extensions=… names the one to take"
    return members[chosen[0]] if chosen else f"has no image; it has {', '.join(members)}"


def _read_json(descriptor: int, members: dict[str, Member]) -> dict[str, object]:
    if "json" not in members:
        return {}
    try:
        values = json.loads(_read_text(descriptor, members["json"]))
    except (ValueError, RecursionError) as error:
        raise _ValueError(f"its .json cannot be read: {str(error).splitlines()[0]}") from None
    if not isinstance(values, dict):
        raise _ValueError("its .json is not an object")
    return values


def _read_text(descriptor: int, member: Member) -> str:
    if member.size > _MAX_TEXT_BYTES:
        raise _ValueError(f"'{member.name}' has {member.size} bytes, more than {_MAX_TEXT_BYTES} of text")
    try:
        return os.pread(descriptor, member.size, member.offset).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise _ValueError(f"'{member.name}' is not UTF-8 text") from None


def _read_label(
    descriptor: int, members: dict[str, Member], values: dict[str, object], label_key: str
) -> str:
    if not label_key and "cls" in members:
        text = _read_text(descriptor, members["cls"])
        if any(character < " " and character not in "\t\r\n" for character in text):
            raise _ValueError(
                "its .cls is not text; write the label as a name or in digits, not as a binary number"
            )
        label = read_value(text)
        where = "its .cls is empty"
    else:
        wanted = (label_key,) if label_key else DEFAULT_LABEL_KEYS
        label = next((text for text in (_as_text(values, key) for key in wanted) if text), "")
        where = f"no .cls, and no {' or '.join(wanted)} in .json; label_key=… names the key"
        if label_key:
            where = f"no {label_key} in .json"
    if not label:
        raise _ValueError(f"has no label: {where}")
    return label


def _as_text(values: dict[str, object], key: str) -> str:
    """The name that a value holds; empty where there is none."""
    try:
        return read_value(values.get(key) if key else None)
    except ValueError as error:
        raise _ValueError(f"'{key}' in .json {error}") from None


def _check_splits(candidates: list[Candidate], key: str) -> None:
    seen = sorted({candidate.split for candidate in candidates})
    if not set(seen) <= set(SPLITS):
        raise RequestError(
            f"split_key={key} must hold {', '.join(SPLITS)} in every .json; it holds "
            f"{', '.join(repr(value) for value in seen[:8])}{' …' if len(seen) > 8 else ''}"
        )
