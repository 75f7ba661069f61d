"""Scratch folders in the system's temporary folder;
they are removed with their process, or at the next start after a kill.

TMPDIR/fsl-ray-x8k2/lock      locked by the process that created the folder, as long as it runs
TMPDIR/fsl-ray-x8k2/…         the process's files
"""

import atexit
import contextlib
import fcntl
import functools
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

_OURS = "fsl-"
_LOCK = "lock"
_UNLOCKED_S = 60.0
"""A folder without a lock is still being created, unless it is older than this (seconds)."""


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yield a new folder that only its user can read; it is removed at the end of the block.

    Folders of any command (`fsl-…`) whose processes were killed are removed first. Folders of other users and of
    running processes are kept: the system releases a lock only when its process ends.

    Args:
        prefix: begins with `fsl-`; otherwise another command would not find the folder of a killed process.
    """
    assert prefix.startswith(_OURS)
    sweep_scratch(_OURS)
    folder, descriptor = _make(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _make(prefix: str) -> tuple[Path, int]:
    """Create a folder; return it with the descriptor of its lock, which is held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            # Another process may have removed the folder as abandoned before the lock was acquired.
            if os.path.samestat(os.stat(folder / _LOCK), os.fstat(descriptor)):
                return folder, descriptor
        os.close(descriptor)


def sweep_scratch(prefix: str) -> list[Path]:
    """Remove this user's scratch folders of processes that were killed; returns them."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            if _is_abandoned(folder):
                removed.append(folder)
    return removed


def _is_abandoned(folder: Path) -> bool:
    """Whether no process uses `folder`; if so, the folder was removed."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        if time.time() - folder.stat().st_mtime > _UNLOCKED_S:
            folder.rmdir()  # OSError if it contains anything: then it is not one of ours
            return True
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether the process that created a scratch folder lives; False for a folder that was removed."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)


def is_writable(folder: Path) -> bool:
    """Whether files can be created in `folder`, or in its nearest existing parent."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def unkept_folder(folder: Path) -> Path:
    """A temporary folder, until this process ends, for results that cannot be written to `folder`;
    the first call warns."""
    if not _of_process.cache_info().currsize:
        logger.warning("%s is not writable: results that are computed here are not kept", folder)
    path = _of_process() / folder.absolute().relative_to(folder.absolute().anchor)
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _of_process() -> Path:
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("fsl-unkept-"))
    atexit.register(stack.close)
    return folder
