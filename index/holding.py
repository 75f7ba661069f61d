"""Keep the versions that are open in this process."""

import fcntl
import os
import weakref
from pathlib import Path

from index.base.errors import VersionError
from index.versions import WAY_OUT


class Hold:
    """Keeps publishers on this machine from removing a version while this object exists.

    Raises VersionError if the version is just being removed. On a file system without locks, no lock is held: mapped
    files stay readable anyway.
    """

    def __init__(self, folder: Path) -> None:
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            raise VersionError(f"{folder} is missing; {WAY_OUT}") from None
        weakref.finalize(self, os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise VersionError(f"{folder} is just being removed; open the index again") from None
        except OSError:
            return
        if not folder.exists():  # removed between opening and locking
            raise VersionError(f"{folder} is missing; {WAY_OUT}")
