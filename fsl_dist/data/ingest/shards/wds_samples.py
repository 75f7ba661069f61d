"""Samples in existing WebDataset shards: members with one key, their image, label and further values."""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fsl_dist.data.catalogue import SPLITS, ShardFile
from fsl_dist.data.images import IMAGE_SUFFIXES
from fsl_dist.data.ingest.listing import Candidate, Listing
from fsl_dist.data.ingest.rows import log_bad
from fsl_dist.data.ingest.shards.member_images import Place
from fsl_dist.data.ingest.shards.shard_paths import FoundShards
from fsl_dist.data.ingest.shards.tar_members import Member, NextArchive, list_members
from fsl_dist.data.ingest.split_folders import holds_splits
from fsl_dist.data.names.keys import make_key
from fsl_dist.data.names.readings import read_value
from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import DataError, RequestError

DEFAULT_LABEL_KEYS = ("label", "class", "cls")
# Labels and metadata are text of a few bytes to a few kilobytes.
_MAX_TEXT_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleKeys:
    """Where a sample's values are read; an empty name means none."""

    label: str = ""
    """key of `.json`; empty: `.cls`, otherwise the first of `label`, `class`, `cls` in `.json`"""
    group: str = ""
    """key of `.json`"""
    split: str = ""
    """key of `.json`: train, val, test or novel"""
    unit: str = ""
    """key of `.json`: samples with the same value are in the same split"""
    image_extensions: tuple[str, ...] = ()
    """which member is the image, the first that a sample has; empty: its only one that is named like an image"""
    mask: str = ""
    """extension of the member that is the image's mask, such as `mask.png`; a sample may lack it"""
    shard_in_key: bool = False
    """put the shard's full name before each key, as `make_key` writes it: for shards whose keys all count from 0"""


@dataclass(frozen=True, slots=True)
class ShardListing:
    """The samples in shards, sorted by key, each key once."""

    shards: list[ShardFile]
    """named as they were found; only those with samples"""
    listing: Listing
    places: dict[str, Place]
    """key → where its image is stored"""


def list_shards(paths: FoundShards, keys: SampleKeys) -> ShardListing:
    """List the samples of the shards at `paths`. Reads headers, labels and metadata, no image.

    A shard without samples is a bad sample, and so are the unusable `paths`. Raises RequestError if `keys.split`
    contains other values than the four splits; DataError if no shard can be used at all.
    """
    found = _Collector(keys, list(paths.bad), list(paths.notes))
    # Reports name a shard by its path below the common folder of all shards.
    files = [os.path.abspath(path) for path in paths.paths]
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    names = [os.path.relpath(file, root) for file in files]
    tops = {name.partition(os.sep)[0] for name in names}
    if holds_splits(tops) and not keys.split:
        found.notes.append(
            f"the folders {', '.join(sorted(tops))} were not read as splits; set split_key=… to the key of .json "
            "that contains the split"
        )
    for path, name in zip(paths.paths, names, strict=True):
        found.add_shard(path, name)
    shards = {*names, *(sample.path for sample in paths.bad)}
    if not found.candidates and all(sample.path in shards for sample in found.bad):
        log_bad(found.bad)
        raise DataError(
            f"none of the {len(found.bad)} samples can be used; the first, '{found.bad[0].path}': "
            f"{found.bad[0].reason}; no shard is left, so nothing is written"
        )
    if keys.split:
        _check_splits(found.candidates, keys.split)
    found.candidates.sort(key=lambda candidate: candidate.key)
    listing = Listing(found.candidates, found.bad, found.num_ignored, notes=found.notes)
    return ShardListing(found.shards, listing, found.places)


@dataclass(slots=True)
class _Collector:
    """Collects the samples of shards, one shard at a time."""

    keys: SampleKeys
    bad: list[BadSample]
    notes: list[str]
    shards: list[ShardFile] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    paths: dict[str, str] = field(default_factory=dict)
    """key → how reports name its image"""
    num_ignored: int = 0

    def add_shard(self, path: Path, name: str) -> None:
        """Add the samples of the shard at `path`; name: in reports."""
        num_bad, num_samples = len(self.bad), len(self.candidates)
        try:
            with open(path, "rb", buffering=0) as file:
                size_bytes = os.fstat(file.fileno()).st_size
                self._add_samples(file.fileno(), path, name)
        except OSError as error:
            self.bad.append(BadSample(name, f"cannot be read: {error.strerror}"))
        if len(self.candidates) > num_samples:
            self.shards.append(ShardFile(str(path), size_bytes))
        elif len(self.bad) == num_bad:
            self.bad.append(BadSample(name, "contains no sample: none of its members is named KEY.EXTENSION"))

    def _add_samples(self, descriptor: int, path: Path, name: str) -> None:
        extensions_of: dict[str, set[str]] = {}
        # Without a hash only for names that end in .tar, so that `a` and `a.TAR` differ from `a.tar`.
        prefix = make_key(name, with_hash=not name.endswith(".tar")) + "/" if self.keys.shard_in_key else ""
        for key, members in _group(descriptor, name, self.bad, self.notes):
            if not key:
                self.num_ignored += 1
                continue
            known = extensions_of.setdefault(key, set())
            is_apart, is_repeated = bool(known) and known.isdisjoint(members), bool(known)
            repeated = [extension for extension in members if extension in known]
            known.update(members)
            if is_apart:
                reason = f"its members are not adjacent: {', '.join(members)} after those of other samples"
                self.bad.append(
                    BadSample(f"{name}:{key}", f"{reason} (write the shard again, sorted by name)")
                )
                continue
            sample = _read_sample(descriptor, path, name, len(self.shards), key, members, self.keys, prefix)
            if isinstance(sample, BadSample):
                if repeated:
                    sample = BadSample(
                        sample.path, f"duplicate part: its {', '.join(repeated)} was in the shard before"
                    )
                self.bad.append(sample)
                continue
            candidate, place = sample
            if candidate.key in self.places:
                reason = f"duplicate key '{candidate.key}', taken by {self.paths[candidate.key]}"
                if not is_repeated and not prefix:
                    reason += " (shard_in_key=True keeps shards with equal keys apart)"
                self.bad.append(BadSample(candidate.path, reason))
                continue
            self.paths[candidate.key] = candidate.path
            self.candidates.append(candidate)
            self.places[candidate.key] = place


def _group(
    descriptor: int, shard: str, bad: list[BadSample], notes: list[str]
) -> Iterator[tuple[str, dict[str, Member]]]:
    """(key, extension → member) of each run of members with one key; an empty key for members of no sample."""
    key, members, num_archives = "", dict[str, Member](), 1
    for member in list_members(descriptor, shard):
        if isinstance(member, BadSample):
            bad.append(member)
            continue
        if isinstance(member, NextArchive):
            num_archives += 1
            continue
        name = member.name.removeprefix("./")
        # WebDataset's rule: the key ends at the first dot of the last part; `__x__` belongs to no sample.
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
    if num_archives > 1:
        notes.append(
            f"'{shard}' is {num_archives} tar files joined in one; the samples of all of them were read"
        )


def _read_sample(
    descriptor: int,
    path: Path,
    name: str,
    shard: int,
    key: str,
    members: dict[str, Member],
    keys: SampleKeys,
    prefix: str,
) -> tuple[Candidate, Place] | BadSample:
    """The sample in a run of members. name: the shard's in reports; shard: its number; prefix:
    of the key in the catalogue."""
    where = f"{name}:{key}"
    mask = members.pop(keys.mask, None) if keys.mask else None
    image = _choose_image(members, keys.image_extensions)
    if isinstance(image, str):
        return BadSample(where, image)
    try:
        values = _read_json(descriptor, members)
        candidate = Candidate(
            file=str(path),
            path=f"{name}:{image.name}",
            key=prefix + key,
            label=_read_label(descriptor, members, values, keys.label),
            group=_as_text(values, keys.group),
            unit=_as_text(values, keys.unit),
            split=_as_text(values, keys.split),
            mask=str(path) if mask is not None else "",
            mask_path=f"{name}:{mask.name}" if mask is not None else "",
        )
    except _ValueError as error:
        return BadSample(f"{name}:{image.name}", str(error))
    if mask is None:
        return candidate, Place(shard, image.offset, image.size)
    return candidate, Place(shard, image.offset, image.size, mask.offset, mask.size)


class _ValueError(Exception):
    """A label or another value of a sample cannot be used."""


def _choose_image(members: dict[str, Member], extensions: tuple[str, ...]) -> Member | str:
    """The image among a sample's members, or the reason why there is none."""
    if extensions:
        for extension in extensions:
            if extension in members:
                return members[extension]
        return f"has no member {' or '.join(extensions)}; it has {', '.join(members)}"
    found = [ext for ext in members if "." + ext.rsplit(".", 1)[-1] in IMAGE_SUFFIXES]
    plain = [ext for ext in found if "." not in ext]  # `jpg` before `mask.png`
    chosen = plain or found
    if len(chosen) > 1:
        return f"has several images, {', '.join(chosen)}; select one with image_extensions=…"
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
        try:
            label = read_value(text)
        except ValueError as error:
            raise _ValueError(f"its .cls {error}") from None
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
    """The name in a value; empty if there is none."""
    try:
        return read_value(values.get(key) if key else None)
    except ValueError as error:
        raise _ValueError(f"'{key}' in .json {error}") from None


def _check_splits(candidates: list[Candidate], key: str) -> None:
    seen = sorted({candidate.split for candidate in candidates})
    if not set(seen) <= set(SPLITS):
        raise RequestError(
            f"split_key={key} must contain {', '.join(SPLITS)} in every .json; it contains "
            f"{', '.join(repr(value) for value in seen[:8])}{' …' if len(seen) > 8 else ''}"
        )
