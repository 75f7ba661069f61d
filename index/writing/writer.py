"""Changing a published index: vectors are added, removed and replaced,
each batch on the disk before it is acknowledged."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import publishing, versions
from index.base import files, object_cache
from index.base.errors import FslDistError, RequestError
from index.changes import Batch, Contents, write_batch
from index.vectors import check_column, check_directions, check_vectors

_SHOWN = 5  # ids that an error names


@dataclass(frozen=True, slots=True)
class Change:
    """A batch that was taken: it is on the disk, and every index opened from now on has it."""

    version: int
    """Version that was changed."""

    number: int
    """Number of the batch, from 1."""

    ids: np.ndarray
    """int64: ids that were added, removed or replaced, in the order given."""


class IndexWriter:
    """Adds vectors to the index at `path`, removes and replaces them.

    A batch is applied completely or not at all, and is on disk when the call returns. Any number of processes may write
    concurrently: their batches are ordered, and each is checked against those before it. Open readers are not affected
    (`FollowingIndex`, `ShardedIndex.caught_up`). The changes of a version slow down every search a little, until
    `merge` builds the next version. Raises VersionError if nothing is published at `path`.
    """

    def __init__(self, path: Path) -> None:
        self.path = object_cache.working_folder(path)
        if files.exists(self.path / versions.MANIFEST):
            raise RequestError(f"{self.path} is one version; name the folder of its index")
        self._contents = self._open()

    def add(self, vectors: np.ndarray, labels: np.ndarray, ids: np.ndarray | None = None) -> Change:
        """Add vectors under ids that the index does not have; by default the next ones after the largest it ever had.

        vectors: float32 [n, dim]; labels, ids: int64 [n], at least 0. Raises RequestError for what does not fit.
        """
        self._check(vectors)
        _check_numbers(labels, "labels", len(vectors))
        if ids is not None:
            _check_ids(ids, len(vectors))

        def make(contents: Contents) -> Batch:
            new = ids
            if new is None:
                start = 1 + max(int(contents.ids.max()), contents.changes.largest_id)
                new = np.arange(start, start + len(vectors), dtype=np.int64)
            taken = self._there(contents, new)
            if taken.any():
                raise RequestError(
                    f"{_in_words(new[taken])} in the index {contents.folder} already; replace with update()"
                )
            return Batch(ids=new, labels=labels, vectors=vectors)

        return self._write(make)

    def remove(self, ids: np.ndarray) -> Change:
        """Remove vectors by their ids, int64 [n]. Raises RequestError for an unknown id."""
        _check_ids(ids, len(ids))

        def make(contents: Contents) -> Batch:
            self._check_there(contents, ids)
            nothing = np.empty((0, contents.manifest.dim), dtype=np.float32)
            return Batch(removed=ids, vectors=nothing)

        return self._write(make)

    def update(self, ids: np.ndarray, vectors: np.ndarray, labels: np.ndarray | None = None) -> Change:
        """Replace the vectors of existing ids, and their labels if given; arguments as in `add`."""
        self._check(vectors)
        _check_ids(ids, len(vectors))
        if labels is not None:
            _check_numbers(labels, "labels", len(vectors))

        def make(contents: Contents) -> Batch:
            self._check_there(contents, ids)
            new = contents.labels_of(ids) if labels is None else labels
            return Batch(removed=ids, ids=ids, labels=new, vectors=vectors)

        return self._write(make)

    def _open(self) -> Contents:
        folder = versions.find_version(self.path)
        manifest = versions.read_manifest(folder)
        # The existing ids decide what a change may do.
        versions.check_files(folder, manifest, verify=True, only=(versions.LABELS, versions.IDS))
        return Contents(folder, manifest, vectors=False)

    def _write(self, make: Callable[[Contents], Batch]) -> Change:
        """Write the batch that `make` creates from the current contents;
        repeat with newer contents if another writer was first."""
        while True:
            contents = self._latest()
            batch = make(contents)
            number = contents.changes.number + 1
            try:
                write_batch(contents.folder, number, batch)
            except FileExistsError:
                continue
            except OSError as error:
                raise FslDistError(
                    f"the change was not taken, the index is as it was: {error.strerror} ({error.filename})"
                ) from error
            return Change(contents.manifest.version, number, batch.ids if len(batch.ids) else batch.removed)

    def _latest(self) -> Contents:
        """The current version with all its changes; completes a merge that was killed just before its last step."""
        while True:
            if versions.find_version(self.path) != self._contents.folder:
                self._contents = self._open()
            elif self._contents.has_more:
                self._contents = self._contents.caught_up()
            successor = self._contents.changes.successor
            if not successor:
                return self._contents
            if versions.find_version(self.path) == self._contents.folder:
                publishing.make_current(self.path, successor, has_changes=True)

    def _check(self, vectors: np.ndarray) -> None:
        manifest = self._contents.manifest
        check_vectors(vectors, "vectors", manifest.dim)
        if not len(vectors):
            raise RequestError("vectors has no rows; there is nothing to change")
        if manifest.metric == "cosine":
            check_directions(vectors, "vectors")

    @staticmethod
    def _there(contents: Contents, ids: np.ndarray) -> np.ndarray:
        positions, rows = contents.find(ids)
        return (positions >= 0) | (rows >= 0)

    def _check_there(self, contents: Contents, ids: np.ndarray) -> None:
        missing = ~self._there(contents, ids)
        if missing.any():
            raise RequestError(
                f"{_in_words(ids[missing])} not in the index {contents.folder}; nothing was changed"
            )


def _check_numbers(column: np.ndarray, name: str, length: int) -> None:
    check_column(column, name, length)
    if (column < 0).any():
        row = int(np.argmax(column < 0))
        raise RequestError(f"{name} row {row} is {column[row]}; it must be at least 0")


def _check_ids(ids: np.ndarray, length: int) -> None:
    _check_numbers(ids, "ids", length)
    if not len(ids):
        raise RequestError("ids has no rows; there is nothing to change")
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise RequestError(f"ids has {repeated[0]} more than once; each id identifies one vector")


def _in_words(ids: np.ndarray) -> str:
    """ "id 5 is", "ids 5, 7 and 9 more are"."""
    shown = ", ".join(map(str, ids[:_SHOWN]))
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"id {shown} is" if len(ids) == 1 else f"ids {shown}{more} are"
