"""Checksums of small files: written into the file, and compared before the content is used.

JSON    a member "checksum" of the outermost object: CRC-32 of the other members, independent of order and white space
JSONL   a checksum of the same kind in each line
YAML    the first line, a comment: CRC-32 of the bytes below it

The checksum of a large data file (vectors, tensors) is in a JSON file; an Arrow catalogue contains its own
(`fsl_dist.data.catalogue_file`). A file without a checksum was written by an earlier version, or its checksum line was
removed on purpose. It is still read, with one log line that explains how to add a checksum.
"""

import json
import logging
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from index.base import files
from index.base.errors import VersionError
from index.base.object_cache import read_again
from index.base.yaml_text import name_of

logger = logging.getLogger(__name__)

KEY = "checksum"
_YAML_LINE = re.compile(r"# checksum ([0-9a-f]{8}) [^\n]*\n")
_YAML_START = "# checksum "
# Folders for which the warning was already logged: a sweep has hundreds of files.
_named: set[Path] = set()


def checksum_of(data: Mapping[str, Any], name: str = "") -> str:
    """CRC-32 (8 hexadecimal digits) of JSON members in any order;
    `name` binds it to one file, so that a swapped file is refused."""
    rest = {key: value for key, value in data.items() if key != KEY}
    text = json.dumps([name, rest], sort_keys=True, separators=(",", ":"))
    return f"{zlib.crc32(text.encode()):08x}"


def encode_json(data: Mapping[str, Any], name: str = "", *, indent: int | None = 2) -> bytes:
    """Encode a JSON object with its checksum, as the bytes of a text file."""
    plain = json.loads(json.dumps(data))  # as it will be read: keys are strings, and sorted as such
    sealed = {**plain, KEY: checksum_of(plain, name)}
    return (json.dumps(sealed, indent=indent, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def decode_json(text: str, place: str, name: str = "") -> tuple[dict[str, Any], bool]:
    """Return the members of a JSON object and whether it had a checksum. Raises VersionError, which names `place`."""
    try:
        data = json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise VersionError(f"{place} is damaged: nested too deeply") from None
    except ValueError as error:
        raise VersionError(f"{place} is damaged: {error}") from None
    if not isinstance(data, dict):
        raise VersionError(f"{place} is damaged: it contains a {name_of(data)}, not a mapping")
    if KEY not in data:
        return data, False
    found = data.pop(KEY)
    if found != checksum_of(data, name):
        raise VersionError(f"{place} is damaged or was edited: its content does not match its checksum")
    return data, True


def read_json(path: Path, *, root: Path | None, name: str = "") -> dict[str, Any]:
    """Return the members of the JSON file `path`, which belongs to the run, data set, index or sweep `root`.

    root: None for a file that `doctor` does not check; then a missing checksum is not logged. Raises VersionError.
    """
    data, is_checked = read_again(path, lambda: decode_json(files.read_text(path), str(path), name))
    if not is_checked and root is not None:
        warn_unchecked(path, root)
    return data


def encode_line(data: Mapping[str, Any]) -> str:
    """A line of a log of JSON lines, with its checksum."""
    return json.dumps({**data, KEY: checksum_of(data)}) + "\n"


def decode_line(line: str, place: str) -> dict[str, Any]:
    """Return the members of a line, with or without a checksum. Raises VersionError, which names `place`."""
    return decode_json(line, place)[0]


def read_lines(path: Path, *, root: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSONL log. Text after the last line feed is ignored: the process ended while writing it.

    Raises VersionError, which names the line.
    """
    return read_again(path, lambda: _read_lines(path, root))


def _read_lines(path: Path, root: Path) -> list[dict[str, Any]]:
    lines, are_checked = [], True
    for number, line in enumerate(files.read_text(path).split("\n")[:-1], start=1):
        if line:
            data, is_checked = decode_json(line, f"{path}, line {number},")
            lines.append(data)
            are_checked &= is_checked
    if not are_checked:
        warn_unchecked(path, root)
    return lines


def encode_yaml(text: str) -> bytes:
    """Encode a YAML document with its checksum in a comment on the first line."""
    body = text.encode()
    head = f"{_YAML_START}{zlib.crc32(body):08x} of the lines below. To edit them, remove this line (docs/explanation/reliability.md).\n"
    return head.encode() + body


def read_yaml_text(path: Path, *, root: Path) -> str:
    """Compare the checksum of a YAML file and return the text below it. Raises VersionError."""
    return read_again(path, lambda: _read_yaml_text(path, root))


def _read_yaml_text(path: Path, root: Path) -> str:
    text = files.read_text(path)
    if not any(line.strip() and not line.startswith("#") for line in text.splitlines()):
        raise VersionError(f"{path} is damaged: it is empty")
    found = _YAML_LINE.match(text)
    if found is None and not text.startswith(_YAML_START):
        warn_unchecked(path, root)
        return text
    body = text[found.end() :] if found else ""
    if found is None or f"{zlib.crc32(body.encode()):08x}" != found[1]:
        raise VersionError(
            f"{path} is damaged or was edited: its lines do not match the checksum in its first line (if you "
            f"edited it, remove that line; doctor({root}, write_checksums=True) writes a new one)"
        )
    return body


def has_yaml_checksum(path: Path) -> bool:
    """Whether a YAML file has a checksum; the checksum is not compared."""
    return files.read_text(path).startswith(_YAML_START)


def warn_unchecked(path: Path, root: Path) -> None:
    """Warn, once per `root`, that one of its files has no checksum."""
    if root not in _named:
        _named.add(root)
        logger.warning(
            "%s has no checksum (written by an earlier version, or edited), so damage to it may not be seen; "
            "doctor(%s, write_checksums=True) adds one",
            *(path, root),
        )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"'{repeated[:40]}' is given twice")
    return data
