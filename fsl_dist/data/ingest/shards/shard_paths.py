"""Find the tar files of a folder or a pattern, and the files that look like shards but are skipped."""

import difflib
import glob
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fsl_dist.data.write_report import BadSample
from fsl_dist.errors import DataError, RequestError

# Compressed shards are included here; the error from their content gives advice (`tar_members`).
_SHARD = re.compile(
    r"(.+)\.(tar(?:\.(?:gz|bgz|z|bz2?|xz|zstd?|lz4?|lzma|lzip|zip|7z|rar))?|tgz|taz|tbz2?|txz|tzst|tlz4?)",
    re.IGNORECASE,
)
# Left by downloads and copies: .tar.part, .tar.crdownload, .tar.1, .tar.bak, .tar?token=…
_UNFINISHED = re.compile(
    r".+\.(tar|tgz)(\.gz|\.zst)?([.~_-]?(part(ial)?|tmp|temp|crdownload|download|incomplete|aria2|filepart|bak|old|\d+|~)|\?.*)",
    re.IGNORECASE,
)
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?|([A-Za-z])\.\.([A-Za-z])")


@dataclass(slots=True)
class FoundShards:
    """The shards of a folder or a pattern."""

    paths: list[Path] = field(default_factory=list)
    """in order, each once"""
    bad: list[BadSample] = field(default_factory=list)
    """files that look like shards but cannot be opened"""
    notes: list[str] = field(default_factory=list)
    """other files that were skipped"""


def find_shards(pattern: str) -> FoundShards:
    """Find shards in a folder (at any depth), or those of a pattern with `*`, `?`, `[…]`, `{a,b}` or `{000..012}`.

    An existing path is used literally, and so is the longest existing prefix of a pattern. Compressed shards are
    included, so that they are reported. Raises RequestError if there are none, or if an explicitly named one is
    missing; DataError if none can be opened.
    """
    found = FoundShards()
    place, rest = _divide(pattern)
    for name in _expand_braces(rest):
        # A wildcard matches folders by chance; a folder without wildcards is intended.
        matches = [path for path in _match(place, name) if not (glob.has_magic(name) and os.path.isdir(path))]
        if not any(os.path.isfile(path) or os.path.isdir(path) for path in matches):
            missing = os.path.join(place, name) if name else place
            what = _name_fault(missing) if os.path.islink(missing) else "names no file"
            raise RequestError(
                f"shards '{pattern}': '{missing}' {what}{_nearest(place, name)}; give a folder of "
                ".tar files, or a pattern such as 'shards/part-{000..012}.tar' or 'shards/*.tar'"
            )
        for path in matches:
            if os.path.isdir(path):
                _walk(path, found)
            elif os.path.isfile(path):
                found.paths.append(Path(path))
            else:
                found.bad.append(BadSample(path, _name_fault(path)))
    found.paths = list(dict.fromkeys(found.paths))
    if not found.paths:
        if found.bad:
            raise DataError(
                f"shards '{pattern}': the folder has no .tar files; {found.bad[0].path} {found.bad[0].reason}; "
                f"{len(found.bad)} in all, and no shard is left, so nothing is written"
            )
        raise RequestError(f"shards '{pattern}': the folder has no .tar files")
    return found


def _walk(folder: str, found: FoundShards) -> None:
    """Add the shards at any depth below `folder`; names that start with a dot are skipped."""
    others: Counter[str] = Counter()

    def refuse(path: str, reason: str) -> None:
        found.bad.append(BadSample(os.path.relpath(path, folder), reason))

    def report_unread(error: OSError) -> None:
        refuse(str(error.filename), f"cannot be read: {error.strerror}")

    paths = []
    for inside, folders, names in os.walk(folder, onerror=report_unread):
        for name in [name for name in folders if os.path.islink(os.path.join(inside, name))]:
            refuse(os.path.join(inside, name), "is a link to a folder, which is not followed")
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        present = set(names)
        for name in names:
            path, shard = os.path.join(inside, name), _SHARD.fullmatch(name)
            if name.startswith("."):
                continue
            if shard and not os.path.isfile(path):
                refuse(path, "is a link to a missing file" if os.path.islink(path) else "is not a file")
            elif shard and (name.lower().endswith(".tar") or f"{shard[1]}.tar" not in present):
                paths.append(path)
            elif not shard and _UNFINISHED.fullmatch(name):
                refuse(path, "is skipped: its name does not end in .tar, as that of an unfinished download")
            else:
                others[os.path.splitext(name)[1] or "no ending"] += 1
    found.paths += map(Path, sorted(paths))
    if others:
        kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        found.notes.append(
            f"'{folder}': {others.total()} files that are not named like shards were skipped ({kinds}"
            f"{', …' if len(others) > 5 else ''})"
        )


def _name_fault(path: str) -> str:
    """Why the existing `path` is neither a file nor a folder."""
    return "is a link to a missing file" if os.path.islink(path) else "is not a file"


def _divide(pattern: str) -> tuple[str, str]:
    """(the longest leading part of `pattern` that exists as it is written, what follows it)."""
    if os.path.lexists(pattern):
        return pattern, ""
    place = os.path.dirname(pattern)
    while place and not os.path.isdir(place):
        place = os.path.dirname(place)
    return place, pattern[len(place) :].lstrip("/")


def _expand_braces(pattern: str) -> Iterator[str]:
    """`{a,b}`, `{000..012}`, `{0..10..2}` and `{a..c}`, also one in another, as bash expands them."""
    for start in [at for at, letter in enumerate(pattern) if letter == "{"]:
        depth, commas = 0, [start]
        for at in range(start, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[at], 0)
            if depth == 1 and pattern[at] == ",":
                commas.append(at)
            if not depth:
                break
        else:
            continue  # never closed
        parts = _parts_of(pattern[start + 1 : at], [comma - start for comma in commas])
        if parts is not None:
            for part in parts:
                yield from _expand_braces(pattern[:start] + part + pattern[at + 1 :])
            return
    yield pattern


def _parts_of(text: str, commas: list[int]) -> Iterator[str] | list[str] | None:
    """The alternatives between a pair of braces, separated at `commas`; None if there are none."""
    if len(commas) > 1:
        return [text[first : last - 1] for first, last in itertools.pairwise([*commas, len(text) + 1])]
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    if found[4]:
        first, last = ord(found[4]), ord(found[5])
        return map(chr, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    first, last, step = int(found[1]), int(found[2]), abs(int(found[3] or 1)) or 1
    ends = found[1].lstrip("-"), found[2].lstrip("-")
    is_padded = any(len(end) > 1 and end.startswith("0") for end in ends)
    width = max(len(found[1]), len(found[2])) if is_padded else 0
    numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
    return (f"{number:0{width}d}" for number in numbers)


def _match(place: str, name: str) -> Iterator[str]:
    """Paths below `place` that match `name`, sorted; parts that exist literally come first."""
    if not name:
        yield place
        return
    part, _, rest = name.partition("/")
    path = os.path.join(place, part)
    if os.path.lexists(path):
        yield from _match(path, rest)
    elif part == "**":
        yield from sorted(glob.iglob(os.path.join(glob.escape(place), name), recursive=True))
    elif glob.has_magic(part):
        for found in sorted(glob.iglob(os.path.join(glob.escape(place), part))):
            if not rest or os.path.isdir(found):
                yield from _match(found, rest)


def _nearest(place: str, name: str) -> str:
    """The existing name that is most like `name` below `place`, as words for an error; empty where none is like it."""
    for part in name.split("/") if name else []:
        if os.path.isdir(os.path.join(place, part)):
            place = os.path.join(place, part)
            continue
        names = [entry for entry in sorted(os.listdir(place or ".")) if not entry.startswith(".")]
        near = difflib.get_close_matches(part, names, n=1, cutoff=0.4)
        return f" (did you mean '{os.path.join(place, near[0])}'?)" if near else ""
    return ""
