"""Searching an index: what to ask each shard, and what to make of the answers.

A label filter is a list of ranges of positions, never a mask over vectors: rows are sorted by label, so a class
is one range and all other classes are two.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from index import versions
from index.build import check_column, check_vectors
from index.config import Metric
from index.errors import RequestError
from index.merge import merge_top_k
from index.shard import Request, Shard, Task
from index.versions import Manifest

Filter = Literal["same_class", "other_class"]

# Searching "all other classes": consecutive classes form blocks of about this many rows. One block's queries
# search the two ranges outside it as they are, and the block itself masked. Fewer rows make more calls, more
# rows make a larger masked part, which costs about 1.4 times as much a pair.
_BLOCK_ROWS = 2048
# A block waits for this many queries, too: a handful would read the whole gallery for little.
_BLOCK_QUERIES = 256
_QUERIES_AT_ONCE = 32768


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Neighbours of n queries."""

    ids: np.ndarray
    """int64 [n, k], best first; -1 where there are fewer than k."""

    distances: np.ndarray
    """float32 [n, k]: squared distances (l2) or products (inner_product); +inf or -inf where the id is -1."""

    num_missing: int
    """How many ids are -1, over all queries."""

    missing_shards: tuple[int, ...] = ()
    """Shards that did not answer, where partial answers were allowed: their vectors are not among the ids."""


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What mining asks for: neighbours of the query's own class and of all others; -1 where there are fewer."""

    same_ids: np.ndarray
    """int64 [n, num_same], best first."""

    same_distances: np.ndarray
    """float32 [n, num_same], as in SearchResult."""

    other_ids: np.ndarray
    """int64 [n, num_other], best first."""

    other_distances: np.ndarray
    """float32 [n, num_other], as in SearchResult."""

    missing_shards: tuple[int, ...] = ()
    """As in SearchResult, of either search."""


class ShardedIndex(abc.ABC):
    """A published version, open for search; where its shards live is the subclass's business."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.labels = versions.read_labels(path, manifest)
        self.ids = versions.read_ids(path, manifest)
        changes = np.flatnonzero(self.labels[1:] != self.labels[:-1]) + 1
        # class c of the gallery: label classes[c], positions [starts[c], starts[c + 1])
        self._starts = np.concatenate([[0], changes, [len(self.labels)]])
        self._classes = np.asarray(self.labels[self._starts[:-1]])
        self._by_id = None if manifest.ids_offset is not None else np.argsort(self.ids)

    @property
    def num_vectors(self) -> int:
        """Vectors in the index."""
        return self.manifest.num_vectors

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.manifest.dim

    @property
    def metric(self) -> Metric:
        """l2 or inner_product."""
        return self.manifest.metric

    @abc.abstractmethod
    def _answers(self, request: Request) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
        """Every shard's (ids [n, k], costs [n, k]); None for one that did not answer, where that is allowed.

        Raises PartialSearchError where it is not, or where none answered.
        """

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        filter: Filter | None = None,
        query_labels: np.ndarray | None = None,
        query_ids: np.ndarray | None = None,
    ) -> SearchResult:
        """The k nearest of each query; exact, ties go to the smaller id.

        queries: float32 [n, dim]. `same_class` and `other_class` take only vectors of the query's label, or of
        any other label: query_labels int64 [n]. query_ids int64 [n]: this id is left out of the query's answer
        (itself, when the queries are in the index); -1 or an id that the index lacks leaves nothing out.
        Raises RequestError for queries that do not fit and for a label without a vector under `same_class`.
        """
        check_vectors(queries, "queries", self.dim)
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise RequestError(f"k={k} must be a whole number of at least 1")
        if filter not in (None, "same_class", "other_class"):
            raise RequestError(f"filter={filter} is none of same_class, other_class")
        num_queries = len(queries)
        if query_labels is None:
            if filter is not None:
                raise RequestError(f"filter={filter} needs query_labels, one label for each query")
            query_labels = np.zeros(num_queries, dtype=np.int64)
        check_column(query_labels, "query_labels", num_queries)
        skip = np.full(num_queries, -1, dtype=np.int64)
        if query_ids is not None:
            check_column(query_ids, "query_ids", num_queries)
            skip = self._positions_of(query_ids)
        if filter == "same_class":
            self._check_classes(query_labels)

        ids = np.full((num_queries, k), -1, dtype=np.int64)
        distances = np.empty((num_queries, k), dtype=np.float32)
        missing: set[int] = set()
        # Sorted by label, the queries of a class are one slice, and so are those of a block of classes.
        order = np.argsort(query_labels, kind="stable") if filter else np.arange(num_queries)
        for start in range(0, num_queries, _QUERIES_AT_ONCE):
            rows = order[start : start + _QUERIES_AT_ONCE]
            labels = query_labels[rows]
            request = Request(
                np.ascontiguousarray(queries[rows]), labels, skip[rows], int(k), self._plan(filter, labels)
            )
            asked = self._answers(request)
            missing.update(shard for shard, answer in enumerate(asked) if answer is None)
            answers = [answer for answer in asked if answer is not None]
            sign = 1.0 if self.metric == "l2" else -1.0
            ids[rows], distances[rows] = merge_top_k(
                [a[0] for a in answers], [sign * a[1] for a in answers], int(k), self.metric
            )
        return SearchResult(ids, distances, int((ids < 0).sum()), tuple(sorted(missing)))

    def neighbours(
        self,
        queries: np.ndarray,
        query_labels: np.ndarray,
        query_ids: np.ndarray | None,
        num_same: int,
        num_other: int,
    ) -> Neighbours:
        """The num_same nearest of the query's class without itself, and the num_other nearest of all others.

        Arguments and errors as for `search`; a count of 0 gives arrays [n, 0].
        """
        wanted: tuple[tuple[int, Filter], ...] = ((num_same, "same_class"), (num_other, "other_class"))
        found: list[np.ndarray] = []
        missing: set[int] = set()
        for count, name in wanted:
            if count == 0:
                found += [np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)]
                continue
            result = self.search(queries, count, filter=name, query_labels=query_labels, query_ids=query_ids)
            found += [result.ids, result.distances]
            missing.update(result.missing_shards)
        return Neighbours(found[0], found[1], found[2], found[3], tuple(sorted(missing)))

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """Labels of ids of any shape, int64; -1 stays -1. Raises RequestError for an id the index lacks."""
        positions = self._positions_of(ids)
        unknown = (positions < 0) & (ids != -1)
        if unknown.any():
            raise RequestError(f"id {ids[unknown].flat[0]} is not in the index {self.path}")
        return np.where(positions < 0, -1, self.labels[positions])

    def _positions_of(self, ids: np.ndarray) -> np.ndarray:
        """Positions of ids, -1 for those that the index lacks; O(1) an id for a range of ids, else O(log N)."""
        if self._by_id is None:
            positions = ids - (self.manifest.ids_offset or 0)
            return np.where((ids >= 0) & (positions >= 0) & (positions < self.num_vectors), positions, -1)
        places = np.searchsorted(self.ids, ids, sorter=self._by_id).clip(max=self.num_vectors - 1)
        positions = self._by_id[places]
        return np.where(self.ids[positions] == ids, positions, -1)

    def _check_classes(self, query_labels: np.ndarray) -> None:
        unknown = ~np.isin(query_labels, self._classes)
        if unknown.any():
            row = int(np.argmax(unknown))
            raise RequestError(
                f"query {row} has label {query_labels[row]}, which no vector of {self.path} has; "
                "filter=same_class needs classes of the index"
            )

    def _plan(self, filter: Filter | None, labels: np.ndarray) -> tuple[Task, ...]:
        """Rectangles to search for queries with these labels, ascending where there is a filter."""
        if filter is None:
            return (Task(0, len(labels), 0, self.num_vectors),)
        # queries of gallery class c: [firsts[c], lasts[c])
        firsts = np.searchsorted(labels, self._classes, side="left")
        lasts = np.searchsorted(labels, self._classes, side="right")
        if filter == "same_class":
            return tuple(
                Task(
                    int(firsts[c]),
                    int(lasts[c]),
                    int(self._starts[c]),
                    int(self._starts[c + 1]),
                    is_class=True,
                )
                for c in np.flatnonzero(lasts > firsts)
            )
        tasks: list[Task] = []
        done = 0
        for first, last in self._blocks(lasts - firsts):
            start, stop = int(self._starts[first]), int(self._starts[last])
            # A query between the labels of two gallery classes has no class here; masking lets all through.
            end = int(lasts[last - 1]) if last < len(self._classes) else len(labels)
            has_only_own = last - first == 1 and firsts[first] == done and lasts[first] == end
            if end > done:
                tasks += [Task(done, end, 0, start), Task(done, end, stop, self.num_vectors)]
                if not has_only_own:
                    tasks.append(Task(done, end, start, stop, is_masked=True))
            done = end
        return tuple(tasks)

    def _blocks(self, queries_of_class: np.ndarray) -> list[tuple[int, int]]:
        """Cut the gallery's classes into blocks [first, last) of enough rows and queries each."""
        blocks, first, rows, queries = [], 0, 0, 0
        sizes = np.diff(self._starts)
        for c, size in enumerate(sizes):
            # A large class stands alone, without a masked part, unless the block before it is too small.
            if queries >= _BLOCK_QUERIES and rows + size > 2 * _BLOCK_ROWS:
                blocks.append((first, c))
                first, rows, queries = c, 0, 0
            rows += int(size)
            queries += int(queries_of_class[c])
            if rows >= _BLOCK_ROWS and queries >= _BLOCK_QUERIES:
                blocks.append((first, c + 1))
                first, rows, queries = c + 1, 0, 0
        if first < len(sizes):
            blocks.append((first, len(sizes)))
        return blocks


class LocalIndex(ShardedIndex):
    """An index whose shards are in this process."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        super().__init__(path, manifest)
        self._shards = [Shard.open(path, manifest, r) for r in range(len(manifest.shard_starts))]

    def _answers(self, request: Request) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
        return [shard.answer(request) for shard in self._shards]

    def vectors(self, start: int, stop: int) -> np.ndarray:
        """The stored vectors at positions [start, stop), float32 [stop - start, dim]; off the disk where it can be."""
        parts = [
            versions.read_shard(self.path, self.manifest, shard)[max(start - first, 0) : max(stop - first, 0)]
            for shard, first in enumerate(self.manifest.shard_starts)
        ]
        parts = [part for part in parts if len(part)]
        if not parts:
            return np.empty((0, self.dim), dtype=np.float32)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def open_index(path: Path, *, verify: bool = False) -> LocalIndex:
    """Open an index (its current version) or a version folder, in this process.

    File sizes are checked always, checksums with `verify`. Raises VersionError for what is missing or damaged.
    """
    folder = versions.find_version(Path(path))
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest, verify=verify)
    return LocalIndex(folder, manifest)
