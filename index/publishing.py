"""Publish a version of an index: one atomic step makes it current; older versions are kept or removed."""

import contextlib
import dataclasses
import fcntl
import logging
import os
from collections.abc import Callable
from pathlib import Path

from index.base import files, object_cache
from index.base.errors import RequestError
from index.versions import (
    CHANGES,
    CURRENT,
    MANIFEST,
    STAGING,
    VERSIONS,
    Manifest,
    check_files,
    current_version,
    encode_current,
    encode_manifest,
    list_versions,
    read_manifest,
    version_name,
)

logger = logging.getLogger(__name__)


def make_current(out: Path, version: int, *, has_changes: bool = False) -> None:
    """Make this version current in one step. For a version that was current before, use `changes.make_current`.

    has_changes: the version includes the changes of the previous one; otherwise those stay with the previous version,
    and the log reports it.
    """
    before = current_version(out) if files.exists(out / CURRENT) else version
    is_left = before != version and not has_changes
    if is_left and files.list_folder(out / VERSIONS / version_name(before) / CHANGES):
        logger.warning(
            "%s: version %d was changed after it was published; version %d has none of that (go back with "
            "roll_back(INDEX))",
            *(out, before, version),
        )
    files.write_atomic(out / CURRENT, encode_current(version))


def publish_version(
    out: Path,
    staging: Path,
    manifest: Manifest,
    keep_versions: int,
    switch: Callable[[Path, int], None] = make_current,
) -> Path:
    """Give the staged folder the next number, make it current (by `switch`),
    and remove versions beyond `keep_versions`.

    If the process is killed before the last step, the old version stays current. `manifest.version` is set here.
    Versions that a reader on this machine has open are kept until a later publication.
    """
    version = max(list_versions(out), default=0) + 1
    final = out / VERSIONS / version_name(version)
    files.write_atomic(staging / MANIFEST, encode_manifest(dataclasses.replace(manifest, version=version)))
    files.publish_folder(staging, final)
    switch(out, version)
    # A version above the new one can only be another process's; it is not ours to remove.
    own = [v for v in list_versions(out) if v <= version]
    for old in own[:-keep_versions]:
        with contextlib.suppress(FileNotFoundError):  # another process removed it just now
            _remove_version(out, old)
    return final


def check_older(out: Path, to: int | None = None) -> Manifest:
    """The version to roll back to, with all bytes checked: `to`, by default the newest before the current one.

    Raises RequestError if the version does not exist, VersionError if it is damaged.
    """
    if files.exists(out / MANIFEST):
        raise RequestError(f"{out} is one version; name the folder of its index")
    current, present = current_version(out), list_versions(out)
    listed = ", ".join(map(str, present))
    if to is None:
        older = [version for version in present if version < current]
        if not older:
            raise RequestError(f"{out} has no version before the current {current} (it has {listed})")
        to = older[-1]
    if to not in present:
        raise RequestError(f"{out} has no version {to}; it has {listed}")
    folder = out / VERSIONS / version_name(to)
    manifest = read_manifest(folder)
    check_files(folder, manifest, verify=True)
    return manifest


def _remove_version(out: Path, version: int) -> None:
    """Remove a version's folder, unless a reader on this machine has it open;
    a half-removed folder is never visible."""
    folder = out / VERSIONS / version_name(version)
    if object_cache.place_of(folder) is not None:
        files.remove_folder(folder)  # who has it open maps files of a working folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(
            OSError
        ):  # a file system without locks: readers keep the files that they have mapped
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s is in use by a reader and is kept", folder)
                return
        removed = out / STAGING / f"removed-{files.new_token()}"
        removed.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(removed)
        files.remove_folder(removed)
    finally:
        os.close(descriptor)
