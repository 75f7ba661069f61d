"""Local copies of the versions of an index at an object store: checked, shared by processes, limited in size.

CACHE/fsl-dist-objects/…/INDEX/versions/000001/…     the files of a version (`index.base.object_cache`)
CACHE/fsl-dist-tags/…/INDEX/versions/.lock           held by the process that fetches a version or removes one
"""

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

from index import versions
from index.base import files
from index.base.errors import RequestError
from index.base.object_cache import place_of
from index.base.object_copies import forget_folder, remove_unfinished, tag_path
from index.versions import Manifest

_GIB = 1 << 30


def bring_version(folder: Path, manifest: Manifest, *, verify: bool, cache_gb: float | None = None) -> None:
    """Fetch a version and compare its files with the manifest (`versions.check_files`); on a disk, only compare them.

    One process fetches at a time; another one that wants the same version waits, and finds it. What a killed process
    left half fetched is removed. Other versions are removed, the oldest first, until this one fits; those that a
    process on this machine has open are kept.

    Args:
        folder: the version's folder: for an object store, its working folder.
        manifest: its manifest.
        verify: compare the checksums of copies that were fetched earlier as well.
        cache_gb: most GiB of all copies of the index's versions; None: as much as the disk has.

    Raises:
        RequestError: the version does not fit.
        VersionError: a file is missing or damaged, after three fetches.
        StorageError: the store does not answer, or the disk is full.
    """
    if place_of(folder) is None:
        versions.check_files(folder, manifest, verify=verify)
        return
    with files.hold_lock(tag_path(folder.parent) / ".lock", waits=True):
        remove_unfinished(folder.parent)
        _make_room(folder, manifest, cache_gb)
        versions.check_files(folder, manifest, verify=verify)


def _make_room(folder: Path, manifest: Manifest, cache_gb: float | None) -> None:
    size = sum(record.size_bytes for record in manifest.files.values())
    others = []
    if folder.parent.name == versions.VERSIONS:  # not next to a version that is kept without its index
        others = sorted(path for path in folder.parent.iterdir() if path.is_dir() and path != folder)
    missing = size - min(_size_of(folder), size)
    while True:
        kept = sum(_size_of(path) for path in others)
        is_within = cache_gb is None or size + kept <= cache_gb * _GIB
        free = shutil.disk_usage(folder.parent).free
        if is_within and missing <= free:
            return
        if not any(_remove_unless_open(path) for path in others):
            break
        others = [path for path in others if path.exists()]
    whose = f"version {manifest.version} has {size / _GIB:.3g} GiB"
    if kept:
        whose += f", and versions that are open here have {kept / _GIB:.3g} GiB"
    if not is_within:
        raise RequestError(
            f"{folder} does not fit into cache_gb={cache_gb:g}: {whose} (raise it; a service has two versions open while "
            "it changes from one to the next)"
        )
    raise RequestError(
        f"{folder} does not fit on the disk of {folder.parent}: {missing / _GIB:.3g} GiB are missing, and {free / _GIB:.3g} "
        "GiB are free (free some space, or use a cache_dir on a larger disk)"
    )


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


def _remove_unless_open(folder: Path) -> bool:
    """Remove the copies of a version, unless a process on this machine has it open (`versions.Hold`)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        forget_folder(folder)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
