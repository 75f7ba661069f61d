"""Changes of a published version: vectors added, removed and replaced, until they are merged into the next version.

VERSION/changes/00000001.npz …   one batch each, written once and never changed; they apply in numerical order
    removed     int64 [r]        ids that are removed, including those whose vectors this batch replaces
    ids, labels int64 [a]        rows that are added
    vectors     float32 [a, dim] their vectors
    successor   int64 []         -1: a batch. A version's number: all batches before are merged into that version, and
                                 no batch follows. 0: the version was made current again, and batches follow
    place       int64 [2]        version and number of the batch: a file that was moved here from elsewhere is refused
"""

import copy
import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import publishing, versions
from index.base import files
from index.base.errors import RequestError, VersionError
from index.plan import Planner, is_among
from index.vectors import sort_rows
from index.versions import Manifest

_REOPENED = 0
_NO_IDS = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One file of changes; its removals apply before its additions."""

    removed: np.ndarray = dataclasses.field(default_factory=lambda: _NO_IDS)
    """int64 [r], ids."""

    ids: np.ndarray = dataclasses.field(default_factory=lambda: _NO_IDS)
    """int64 [a]."""

    labels: np.ndarray = dataclasses.field(default_factory=lambda: _NO_IDS)
    """int64 [a]."""

    vectors: np.ndarray
    """float32 [a, dim]; [a, 0] if they were not read."""

    successor: int = -1
    """-1 for changes, otherwise a mark without changes (see the module's docstring)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Changes:
    """The combined result of all batches up to a number."""

    number: int
    """Number of the last batch; 0 if there is none."""

    hidden: np.ndarray
    """int64 [h], ascending: positions of the version whose vectors were removed."""

    ids: np.ndarray
    """int64 [a] of the rows added that are still there, sorted by (label, id)."""

    labels: np.ndarray
    """int64 [a]."""

    vectors: np.ndarray
    """float32 [a, dim]; [a, 0] if they were not read."""

    largest_id: int
    """Largest id that any batch added; -1 if there is none."""

    successor: int
    """Version that all of this is merged into; 0 where batches may follow."""

    @classmethod
    def none(cls, width: int) -> "Changes":
        """No changes; vectors have `width` columns."""
        nothing = np.empty((0, width), dtype=np.float32)
        return cls(
            number=0,
            hidden=_NO_IDS,
            ids=_NO_IDS,
            labels=_NO_IDS,
            vectors=nothing,
            largest_id=-1,
            successor=_REOPENED,
        )

    def followed_by(
        self, batches: Sequence[Batch], positions_of: Callable[[np.ndarray], np.ndarray]
    ) -> "Changes":
        """These changes followed by `batches`; positions_of maps ids to positions in the version, -1 for others."""
        lengths = [len(self.ids), *(len(batch.ids) for batch in batches)]
        ids = np.concatenate([self.ids, *(batch.ids for batch in batches)])
        labels = np.concatenate([self.labels, *(batch.labels for batch in batches)])
        vectors = np.concatenate([self.vectors, *(batch.vectors for batch in batches)])
        came = np.repeat(np.arange(len(lengths)), lengths)
        removed = np.concatenate([_NO_IDS, *(batch.removed for batch in batches)])
        went = np.repeat(np.arange(1, len(lengths)), [len(batch.removed) for batch in batches])
        # A row still exists unless a later batch removed its id.
        order = np.lexsort((went, removed))
        last = np.searchsorted(removed, ids, side="right", sorter=order) - 1
        is_gone = np.zeros(len(ids), dtype=bool)
        if len(removed):
            place = order[last.clip(min=0)]
            is_gone = (last >= 0) & (removed[place] == ids) & (went[place] > came)
        kept = np.flatnonzero(~is_gone)
        kept = kept[sort_rows(labels[kept], ids[kept])]
        positions = positions_of(removed)
        marks = [batch.successor for batch in batches if batch.successor >= 0]
        return Changes(
            number=self.number + len(batches),
            hidden=np.union1d(self.hidden, positions[positions >= 0]),
            ids=ids[kept],
            labels=labels[kept],
            vectors=vectors[kept],
            largest_id=max([self.largest_id, *(int(batch.ids.max()) for batch in batches if len(batch.ids))]),
            successor=marks[-1] if marks else self.successor,
        )


class Contents:
    """The ids and labels of a version with the changes made so far; an opened object never changes.

    Raises VersionError if a batch is missing or damaged.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        *,
        changes: bool = True,
        vectors: bool = True,
        up_to: int | None = None,
    ) -> None:
        """changes: whether to read them, or only `up_to` a number; vectors:
        whether to keep the added vectors in memory."""
        self.folder = folder
        self.manifest = manifest
        self.labels = versions.read_labels(folder, manifest)
        self.ids = versions.read_ids(folder, manifest)
        self.planner = Planner(self.labels, self.ids, manifest.ids_offset)
        self._width = manifest.dim if vectors else 0
        self._follows = changes and up_to is None
        self._last = up_to
        self._set(Changes.none(self._width))
        if changes:
            self._check_numbers()
            self._set(self._read_on())

    def _set(self, changes: Changes) -> None:
        self.changes = changes
        self.added = Planner(changes.labels, changes.ids, None) if len(changes.ids) else None
        planner = self.planner
        gone = np.bincount(planner.class_numbers_of(changes.hidden), minlength=len(planner.classes))
        # Labels that have a vector, ascending.
        self.classes = np.union1d(planner.classes[planner.class_sizes > gone], changes.labels)

    @property
    def num_vectors(self) -> int:
        """Number of vectors that a search can find."""
        return self.manifest.num_vectors - len(self.changes.hidden) + len(self.changes.ids)

    @property
    def has_more(self) -> bool:
        """Whether there are newer changes; costs one check for a file."""
        return self._follows and files.exists(batch_path(self.folder, self.changes.number + 1))

    def caught_up(self) -> "Contents":
        """The same with all changes made until now."""
        newer = copy.copy(self)
        newer._set(self._read_on())
        return newer

    def find(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Where ids are: positions in the version and rows among those added, int64 as `ids`, each -1 elsewhere."""
        positions = self.planner.positions_of(ids)
        hidden = self.changes.hidden
        if len(hidden):
            positions = np.where(is_among(positions, hidden), -1, positions)
        rows = np.full_like(positions, -1) if self.added is None else self.added.positions_of(ids)
        return positions, rows

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """Return the labels of ids of any shape, int64; -1 stays -1. Raises RequestError for an unknown id."""
        positions, rows = self.find(ids)
        unknown = (positions < 0) & (rows < 0) & (ids != -1)
        if unknown.any():
            raise RequestError(f"id {ids[unknown].flat[0]} is not in the index {self.folder}")
        labels = np.where(positions < 0, -1, self.labels[positions])
        return labels if self.added is None else np.where(rows < 0, labels, self.changes.labels[rows])

    def check_classes(self, query_labels: np.ndarray) -> None:
        """Refuse labels that no vector has (RequestError)."""
        unknown = ~np.isin(query_labels, self.classes)
        if unknown.any():
            row = int(np.argmax(unknown))
            raise RequestError(
                f"query {row} has label {query_labels[row]}, which no vector of {self.folder} has; "
                "same_class needs classes of the index"
            )

    def _read_on(self) -> Changes:
        batches: list[Batch] = []
        for number in itertools.count(self.changes.number + 1):
            path = batch_path(self.folder, number)
            if number - 1 == self._last or not files.exists(path):
                break
            batches.append(read_batch(self.folder, number, self.manifest, vectors=self._width > 0))
        return self.changes.followed_by(batches, self.planner.positions_of) if batches else self.changes

    def _check_numbers(self) -> None:
        # Files that are still being written end in .tmp.
        names = files.list_folder(self.folder / versions.CHANGES)
        for number, name in enumerate((name for name in names if name.endswith(".npz")), start=1):
            if name != batch_path(self.folder, number).name:
                raise VersionError(
                    f"{batch_path(self.folder, number)} is missing; {name} was written after it "
                    "(build the index again, or go back with roll_back(INDEX))"
                )


def batch_path(folder: Path, number: int) -> Path:
    """File of a batch of the version in `folder`."""
    return folder / versions.CHANGES / f"{number:08d}.npz"


def read_batch(folder: Path, number: int, manifest: Manifest, *, vectors: bool = True) -> Batch:
    """Read batch `number` of the version in `folder`; its bytes' checksums are compared. Raises VersionError."""
    path = batch_path(folder, number)
    way_out = "build the index again, or go back to a version that is whole with roll_back(INDEX)"
    try:
        arrays = files.unpack_arrays(path)
    except VersionError as error:
        raise VersionError(f"{error}; {way_out}") from None
    known = {"removed", "ids", "labels", "vectors", "successor"}
    if set(arrays) - {"place"} != known:
        raise VersionError(f"{path} is damaged: it contains {sorted(arrays)}, not {sorted(known)}; {way_out}")
    place = arrays.get("place")  # earlier versions did not write it
    if place is not None and place.tolist() != [manifest.version, number]:
        raise VersionError(
            f"{path} is a batch of another version ({place.tolist()}): it was swapped; {way_out}"
        )
    added, integers = arrays["vectors"], [arrays[name] for name in ("removed", "ids", "labels", "successor")]
    shapes = [column.shape for column in integers]
    fits = shapes == [(shapes[0] or (0,))[:1], *2 * [added.shape[:1]], ()]
    fits &= added.shape[1:] == (manifest.dim,) and added.dtype == np.float32
    if not fits or any(column.dtype != np.int64 for column in integers):
        raise VersionError(
            f"{path} is damaged: its arrays do not fit an index of dim={manifest.dim}; {way_out}"
        )
    removed, ids, labels, successor = integers
    return Batch(
        removed=removed,
        ids=ids,
        labels=labels,
        vectors=added if vectors else np.empty((len(ids), 0), dtype=np.float32),
        successor=int(successor),
    )


def write_batch(folder: Path, number: int, batch: Batch) -> None:
    """Write batch `number` of the version in `folder`, forced to the disk; FileExistsError where another was first."""
    packed = files.pack_arrays(
        removed=batch.removed,
        ids=batch.ids,
        labels=batch.labels,
        vectors=batch.vectors,
        successor=np.array(batch.successor, dtype=np.int64),
        place=np.array([int(folder.name), number], dtype=np.int64),
    )
    files.write_new(batch_path(folder, number), packed)


def mark(successor: int, dim: int) -> Batch:
    """A batch without changes, in an index of `dim`, that records what became of the batches before it."""
    return Batch(vectors=np.empty((0, dim), dtype=np.float32), successor=successor)


def make_current(out: Path, version: int) -> None:
    """Make this version current, with its changes, and allow further changes of it.

    The changes of the previous version are kept with it, and apply again if it is made current again.
    """
    folder = out / versions.VERSIONS / versions.version_name(version)
    while True:
        contents = Contents(folder, versions.read_manifest(folder), vectors=False)
        if not contents.changes.successor:
            break
        try:
            write_batch(folder, contents.changes.number + 1, mark(_REOPENED, contents.manifest.dim))
        except FileExistsError:  # another process did, just now
            continue
    publishing.make_current(out, version)


def roll_back(out: Path, to: int | None = None) -> Manifest:
    """Make an older version current: version `to`, by default the newest before the current one; return its manifest.

    All its bytes are checked first, and its changes apply again. The version that was current is kept until it is
    beyond `keep_versions`. Raises RequestError if the version does not exist, VersionError if it is damaged.
    """
    manifest = publishing.check_older(out, to)
    make_current(out, manifest.version)
    return manifest
