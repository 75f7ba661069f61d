"""A reader that goes along when the version is changed, another one is published, or an older one is made current again."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from index import versions
from index.base.errors import VersionError
from index.search import ShardedIndex, open_index

logger = logging.getLogger(__name__)

_Opened = TypeVar("_Opened", bound=ShardedIndex)


class FollowingIndex(Generic[_Opened]):
    """Opens the current version of the index at `path` with its changes, and the next one once that is current.

    Threads may share it. Each asks `latest()` and takes what it gets for everything that belongs together: it never
    changes under a search. `open_version` opens a version's folder, by default in this process with its
    checksums compared. Raises VersionError where nothing is published yet.
    """

    def __init__(
        self,
        path: Path,
        open_version: Callable[[Path], _Opened] = open_index,  # type: ignore[assignment]
    ) -> None:
        self.path = Path(path)
        self._open_version = open_version
        self._changing = threading.Lock()
        self._refused = (0, 0)
        self._index = versions.open_current(self.path, self._open_version)

    def latest(self) -> _Opened:
        """The current version. It costs reading a file of 7 bytes, and looking for another, where nothing has changed.

        One thread opens a new version; others get the one before until that is done. A version that cannot be opened
        is said in the log once, and the one before stays.
        """
        if self._is_behind() and self._changing.acquire(blocking=False):
            try:
                self._go_along()
            finally:
                self._changing.release()
        return self._index

    def _go_along(self) -> None:
        if not self._is_behind():
            return
        newest = self._newest()
        try:
            if newest[0] == self._index.manifest.version:
                self._index = self._index.caught_up()
            else:
                self._index = versions.open_current(self.path, self._open_version)
        except VersionError as error:
            self._refused = newest
            logger.warning("%s stays at version %d: %s", self.path, self._index.manifest.version, error)

    def _is_behind(self) -> bool:
        newest = self._newest()
        if newest == self._refused:
            return False
        return newest[0] != self._index.manifest.version or self._index.has_more

    def _newest(self) -> tuple[int, int]:
        """Version to open, and the change to begin after."""
        own = self._index.manifest.version
        try:
            current = versions.current_version(self.path)
        except VersionError:  # gone or damaged: who has a version open keeps it
            current = own
        return current, self._index.changes.number if current == own else 0
