"""Local copies of objects in working folders: how they are fetched, tagged, and forgotten."""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from index.base.object_store import Bucket, Entry, Tag

OBJECTS = "fsl-dist-objects"
TAGS = "fsl-dist-tags"
_FETCHES = 3
"""Times that an object is fetched before its bytes are called damaged."""
_SETTLED_S = 5.0
"""A temporary file is unlocked only until its lock is taken, or while a few kilobytes are written (seconds)."""


def fetch_object(bucket: Bucket, path: Path, entry: Entry, is_intact: Callable[[Path], bool] | None) -> bool:
    """Fetch an object; return False if its bytes were never intact."""
    temporary = temporary_of(path)
    try:
        with temporary.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # as long as this process lives: `remove_unfinished` keeps it
            for _ in range(_FETCHES if is_intact else 1):
                tag = bucket.fetch(entry.key, temporary)
                if tag is None:  # deleted after the listing
                    return True
                if is_intact is None or is_intact(temporary):
                    if is_intact is not None:
                        os.fsync(file.fileno())
                    temporary.replace(path)
                    write_tag(path, tag)
                    return True
        return False
    finally:
        temporary.unlink(missing_ok=True)


def forget_file(path: Path) -> None:
    """Remove the local copy of an object; the object stays."""
    path.unlink(missing_ok=True)
    tag_path(path).unlink(missing_ok=True)


def forget_folder(folder: Path) -> None:
    """Remove the local copies of all objects below a working folder; the objects stay."""
    assert OBJECTS in folder.parts
    # The tags first: a file without one is fetched again.
    shutil.rmtree(tag_path(folder), ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove files that killed processes left half fetched at or below a working folder; those of others are locked."""
    for path in folder.rglob(".*.tmp"):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - os.fstat(file.fileno()).st_mtime > _SETTLED_S:
                path.unlink()


def read_tag(path: Path) -> Tag | None:
    """Return the version at which the file at `path` was downloaded or uploaded; None if it was neither."""
    try:
        return Tag(**json.loads(tag_path(path).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def write_tag(path: Path, tag: Tag) -> None:
    _replace(tag_path(path), json.dumps(asdict(tag)).encode())


def write_copy(path: Path, data: bytes, tag: Tag) -> None:
    """Replace the local copy of a small object in one step."""
    _replace(path, data)
    write_tag(path, tag)


def _replace(path: Path, data: bytes) -> None:
    temporary = temporary_of(path)
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # of a full disk


def is_current(path: Path, entry: Entry) -> bool:
    tag = read_tag(path)
    try:
        return tag is not None and tag.e_tag == entry.e_tag and path.stat().st_size == entry.size_bytes
    except FileNotFoundError:
        return False


def has_bytes(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def temporary_of(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def tag_path(path: Path) -> Path:
    parts = path.parts
    start = parts.index(OBJECTS)
    return Path(*parts[:start], TAGS, *parts[start + 1 :])
