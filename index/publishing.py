"""Publishing a version of an index: one atomic step makes it current, older versions are kept or removed."""

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
    """Let readers open this version from now on; one step. For one that was current before: `changes.make_current`.

    `has_changes`: it has those of the version before; otherwise they stay with that one, and the log says so.
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
    """Give the staged folder the next number, make it current (by `switch`), remove versions beyond `keep_versions`.

    A process killed before the last step leaves the old version current. `manifest.version` is set here. Versions that
    a reader of this machine has open stay until a later publication.
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
    """The version to go back to, all its bytes checked: the newest before the current one unless `to` names one.

    Raises RequestError where there is no such version, VersionError where it is damaged.
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
    """Remove a version's folder, unless a reader of this machine has it open; nobody sees it half removed."""
    folder = out / VERSIONS / version_name(version)
    if object_cache.place_of(folder) is not None:
        files.remove_folder(folder)  # who has it open maps files of a working folder
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: who has mapped its files keeps them
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("%s is open elsewhere and stays", folder)
                return
        removed = out / STAGING / f"removed-{files.new_token()}"
        removed.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(removed)
        files.remove_folder(removed)
    finally:
        os.close(descriptor)
