"""A reader that follows an index when it is changed, a new version is published,
or an older one is made current again."""

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
    """Opens the current version of the index at `path` with its changes,
    and switches to the next one once it is current.

    Thread-safe. Call `latest()` once per request and use its result for the whole request: a returned index never
    changes. `open_version` opens a version's folder; by default it opens it in this process and compares checksums.
    Raises VersionError if nothing is published yet.
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
        """Return the current version. If nothing has changed, this reads a file of 7 bytes and checks for another one.

        One thread opens a new version; other threads get the previous one meanwhile. If a version cannot be opened, one
        warning is logged and the previous version stays in use.
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
        except VersionError:  # removed or damaged: readers that have a version open keep it
            current = own
        return current, self._index.changes.number if current == own else 0
