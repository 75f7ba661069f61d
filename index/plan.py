"""Search plans: filters become tasks over ranges of positions, never masks over vectors.

Rows are sorted by (label, id), so a class is one range of positions, and all other classes are two. A range of ids is a
range of positions if the ids are contiguous; inside one class it always is; otherwise it becomes a list of positions.
"""

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np

from index.base.errors import RequestError

Filter = Literal["same_class", "other_class"]

# For a search of "all other classes", consecutive classes form blocks of about this many rows. The queries of a block
# search the two ranges outside the block without a mask, and the block itself with one. Fewer rows make more calls;
# more rows make a larger masked part, which costs about 1.4 times as much per pair.
_BLOCK_ROWS = 2048
# A block waits for this many queries, too: a handful would read the whole gallery for little.
_BLOCK_QUERIES = 256
# A table from ids to positions may have this many entries a vector, 8 bytes each.
_TABLE_ENTRIES = 4
# Positions in more runs than this are copied together and searched as one list, instead of one search per run.
_MAX_RUNS = 32


@dataclass(frozen=True, slots=True)
class Task:
    """One rectangle to search: some queries against a range of positions."""

    query_start: int
    """First query of the request."""

    query_stop: int
    """One past the last query."""

    start: int
    """First position."""

    stop: int
    """One past the last position."""

    is_masked: bool = False
    """Exclude pairs of the same label. The request's labels must ascend over these queries."""

    is_class: bool = False
    """All positions belong to one class, which is searched exactly by every kind of index."""

    positions: np.ndarray | None = None
    """int64 [m], ascending: only these positions; None means the whole range."""


class Planner:
    """The positions of a version's classes and ids, and the tasks that a filter creates."""

    def __init__(self, labels: np.ndarray, ids: np.ndarray, ids_offset: int | None) -> None:
        """labels, ids: int64 [n] by position; ids_offset: ids are ids_offset + position, or None."""
        changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
        # class c of the gallery: label classes[c], class_sizes[c] rows, positions [starts[c], starts[c + 1])
        self._starts = np.concatenate([[0], changes, [len(labels)]])
        self.classes = np.asarray(labels[self._starts[:-1]])
        self.class_sizes = np.diff(self._starts)
        self._ids = ids
        self._offset = ids_offset
        self._by_id = None if ids_offset is not None else np.argsort(ids)

    def positions_of(self, ids: np.ndarray) -> np.ndarray:
        """Positions of ids, -1 for those that the index lacks; O(1) an id, O(log N) where ids are spread far apart."""
        num = len(self._ids)
        if self._by_id is None:
            positions = ids - (self._offset or 0)
            return np.where((ids >= 0) & (positions >= 0) & (positions < num), positions, -1)
        if self._table is not None:
            is_inside = (ids >= 0) & (ids < len(self._table))
            return np.where(is_inside, self._table[np.where(is_inside, ids, 0)], -1)
        places = np.searchsorted(self._ids, ids, sorter=self._by_id).clip(max=num - 1)
        positions = self._by_id[places]
        return np.where(self._ids[positions] == ids, positions, -1)

    @functools.cached_property
    def _table(self) -> np.ndarray | None:
        """Position by id, made at the first question; None where ids are too far apart for that."""
        assert self._by_id is not None
        largest = int(self._ids[self._by_id[-1]])
        if largest >= _TABLE_ENTRIES * len(self._ids):
            return None
        table = np.full(largest + 1, -1, dtype=np.int64)
        table[self._ids] = np.arange(len(self._ids))
        return table

    def class_numbers_of(self, positions: np.ndarray) -> np.ndarray:
        """Which class each position has, as a place in `classes`: int64."""
        return np.searchsorted(self._starts, positions, side="right") - 1

    def plan(
        self, filter: Filter | None, labels: np.ndarray, spans: np.ndarray | None, *, is_flat: bool = True
    ) -> tuple[Task, ...]:
        """Tasks for queries with these labels, int64 [n], and allowed ids, int64 [n, 4] (`id_spans`) or None for all.

        Queries are in the order of `order_queries`. A query without any allowed vector has no task. Masked tasks
        require a comparison with all vectors; without `is_flat` there are none.
        """
        num_queries = len(labels)
        if filter is None and spans is None:
            return (Task(0, num_queries, 0, len(self._ids)),)
        if filter == "other_class" and spans is None and is_flat:
            return self._plan_blocks(labels)
        if not num_queries:
            return ()
        keys = labels[:, None] if spans is None else np.column_stack([labels, spans])
        firsts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(axis=1)])
        tasks: list[Task] = []
        for first, last in zip(firsts, [*firsts[1:], num_queries], strict=True):
            ranges = self._ranges_of(filter, labels[first])
            is_class = filter == "same_class"
            if spans is None:
                tasks += [Task(int(first), int(last), *span, is_class=is_class) for span in ranges]
            else:
                tasks += self._within_ids(int(first), int(last), ranges, spans[first], is_class=is_class)
        return tuple(tasks)

    def _ranges_of(self, filter: Filter | None, label: np.int64) -> list[tuple[int, int]]:
        """Positions that the class filter leaves to a query of this label, as ranges."""
        num = len(self._ids)
        if filter is None:
            return [(0, num)]
        place = int(np.searchsorted(self.classes, label))
        if place == len(self.classes) or self.classes[place] != label:
            return [] if filter == "same_class" else [(0, num)]
        start, stop = int(self._starts[place]), int(self._starts[place + 1])
        ranges = [(start, stop)] if filter == "same_class" else [(0, start), (stop, num)]
        return [span for span in ranges if span[0] < span[1]]

    def _within_ids(
        self, first: int, last: int, ranges: list[tuple[int, int]], spans: np.ndarray, *, is_class: bool
    ) -> list[Task]:
        """Tasks for these ranges cut down to ids in spans [a, b) and [c, d): int64 [4]."""
        pairs = [(int(low), int(high)) for low, high in spans.reshape(2, 2) if low < high]
        cut: list[tuple[int, int]] = []
        if self._offset is not None or is_class:
            # Ids ascend over each of these ranges.
            for start, stop in ranges:
                ids = self._ids[start:stop]
                bounds = [start + np.searchsorted(ids, pair) for pair in pairs]
                cut += [(int(low), int(high)) for low, high in bounds if low < high]
            return [Task(first, last, *span, is_class=is_class) for span in cut]
        if self._by_id is None or not pairs or not ranges:
            return []
        bounds = [np.searchsorted(self._ids, pair, sorter=self._by_id) for pair in pairs]
        positions = np.sort(np.concatenate([self._by_id[low:high] for low, high in bounds]))
        positions = np.concatenate([positions[slice(*np.searchsorted(positions, span))] for span in ranges])
        if not len(positions):
            return []
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        if len(breaks) >= _MAX_RUNS:
            return [Task(first, last, int(positions[0]), int(positions[-1]) + 1, positions=positions)]
        runs = np.split(positions, breaks)
        return [Task(first, last, int(run[0]), int(run[-1]) + 1) for run in runs]

    def _plan_blocks(self, labels: np.ndarray) -> tuple[Task, ...]:
        """Tasks of "all other classes" for queries with these ascending labels."""
        # queries of gallery class c: [firsts[c], lasts[c])
        firsts = np.searchsorted(labels, self.classes, side="left")
        lasts = np.searchsorted(labels, self.classes, side="right")
        tasks: list[Task] = []
        done = 0
        for first, last in self._blocks(lasts - firsts):
            start, stop = int(self._starts[first]), int(self._starts[last])
            # A query between the labels of two gallery classes has no class here; masking lets all through.
            end = int(lasts[last - 1]) if last < len(self.classes) else len(labels)
            has_only_own = last - first == 1 and firsts[first] == done and lasts[first] == end
            if end > done:
                tasks += [Task(done, end, 0, start), Task(done, end, stop, len(self._ids))]
                if not has_only_own:
                    tasks.append(Task(done, end, start, stop, is_masked=True))
            done = end
        return tuple(tasks)

    def _blocks(self, queries_of_class: np.ndarray) -> list[tuple[int, int]]:
        """Divide the gallery's classes into blocks [first, last) with enough rows and queries each."""
        blocks, first, rows, queries = [], 0, 0, 0
        sizes = self.class_sizes
        for c, size in enumerate(sizes):
            # A large class forms a block alone, without a masked part, unless the block before it is too small.
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


def is_among(numbers: np.ndarray, ascending: np.ndarray) -> np.ndarray:
    """Which of `numbers` are in `ascending`, int64 [at least 1]: bool as `numbers`."""
    places = np.searchsorted(ascending, numbers).clip(max=len(ascending) - 1)
    return np.asarray(ascending[places] == numbers)


def id_spans(include: np.ndarray | None, exclude: np.ndarray | None, num_queries: int) -> np.ndarray | None:
    """The ids that each query may return, as two half-open ranges [a, b) and [c, d): int64 [n, 4]; None allows all.

    include, exclude: int64 [n, 2], half-open. Raises RequestError for anything else.
    """
    for name, ranges in (("include_ids", include), ("exclude_ids", exclude)):
        if ranges is None:
            continue
        if ranges.shape != (num_queries, 2) or ranges.dtype != np.int64:
            raise RequestError(
                f"{name} is {ranges.dtype} {list(ranges.shape)}; it must be int64 {[num_queries, 2]}: ids [from, to) "
                "for each query"
            )
        turned = ranges[:, 0] > ranges[:, 1]
        if turned.any():
            row = int(np.argmax(turned))
            raise RequestError(
                f"{name} row {row} is {ranges[row].tolist()}; it must not end before it starts ([5, 5] is empty)"
            )
    if include is None and exclude is None:
        return None
    low, high = np.zeros(num_queries, np.int64), np.full(num_queries, np.iinfo(np.int64).max)
    if include is not None:
        low, high = np.maximum(include[:, 0], 0), np.maximum(include[:, 1], 0)
    if exclude is None:
        return np.column_stack([low, high, high, high])
    # An empty range excludes nothing, wherever it is: clipped, it would only split the span.
    return np.column_stack([low, np.clip(exclude[:, 0], low, high), np.clip(exclude[:, 1], low, high), high])


def order_queries(filter: Filter | None, labels: np.ndarray, spans: np.ndarray | None) -> np.ndarray | None:
    """An order of the queries in which those that search the same positions are adjacent: int64 [n];
    None if they are."""
    if spans is not None:
        return np.lexsort((*spans.T[::-1], labels))
    return np.argsort(labels, kind="stable") if filter else None
