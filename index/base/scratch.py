"""Scratch folders in the system's temporary folder that end with their process, and with the next start after a kill.

TMPDIR/fsl-ray-x8k2/lock      locked by the process that made the folder, for as long as it lives
TMPDIR/fsl-ray-x8k2/…         what it keeps there
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
"""a folder without a lock is one that is being made, unless it is older"""


@contextlib.contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A new folder, readable by its user alone, that is removed at the block's end.

    Folders of any command (`fsl-…`) whose processes were killed are removed first. Those of other users and of processes
    that live stay: the system drops a lock when its process ends, and not before.

    Args:
        prefix: begins with `fsl-`, or a start of another command would not find the folder of a killed process.
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
    """A new folder, and the descriptor of its lock, which is held."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            # Another process may have taken the folder for an abandoned one before the lock was held.
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
    """Whether nobody works in `folder`; then it is gone."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR)
    except FileNotFoundError:
        if time.time() - folder.stat().st_mtime > _UNLOCKED_S:
            folder.rmdir()  # OSError where it holds anything: then it is none of ours
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


def is_writable(folder: Path) -> bool:
    """Whether files may be made in `folder`, or in the nearest folder above it that there is."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)


def unkept_folder(folder: Path) -> Path:
    """Where to keep, as long as this process lives, what cannot be written to `folder`; the first call says so."""
    if not _of_process.cache_info().currsize:
        logger.warning("%s cannot be written to: nothing that is computed here is kept", folder)
    path = _of_process() / folder.absolute().relative_to(folder.absolute().anchor)
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def _of_process() -> Path:
    stack = contextlib.ExitStack()
    folder = stack.enter_context(scratch_folder("fsl-unkept-"))
    atexit.register(stack.close)
    return folder
