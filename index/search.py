"""Searching an index: what is asked, checked and planned, and one answer out of those of all shards.

Where the shards are is the subclass's business (`_answers`); which positions a filter leaves is `plan`'s.
"""

import abc
import copy
import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from index import versions
from index.base.errors import RequestError
from index.base.object_cache import with_addresses, working_folder
from index.changes import Changes, Contents
from index.config import Device, Metric
from index.exact.costs import linear
from index.merge import merge_top_k
from index.plan import Filter, id_spans, order_queries
from index.results import Neighbours, SearchResult, make_result
from index.shard import NONE_HIDDEN, Request, Shard
from index.vectors import check_column, check_directions, check_vectors, unit_vectors
from index.versions import Manifest

# More neighbours a query than this are refused: answers of 16,384 already take 256 KiB a query.
MAX_K = 16384
_QUERIES_AT_ONCE = 32768
_ANSWERS_AT_ONCE = 1 << 26  # times 16 bytes for each shard: ids and costs


Labels = np.ndarray | Sequence[int] | Sequence[str] | int | str
"""a label or class name for each query, or one for all of them"""


class ShardedIndex(abc.ABC):
    """A published version with the changes made to it until it was opened; where its shards live is the subclass's business."""

    labels: np.ndarray
    """int64 [manifest.num_vectors], by position, ascending: of the version, without its changes."""

    ids: np.ndarray
    """int64 [manifest.num_vectors], by position: of the version, without its changes."""

    class_names: Sequence[str] = ()
    """name of each label, where the index was built from a data set in this process"""

    def __init__(self, path: Path, manifest: Manifest, *, changes: bool = True) -> None:
        self.path = path
        self.manifest = manifest
        self._hold = versions.Hold(path)
        self._set_contents(Contents(path, manifest, changes=changes))
        self.labels, self.ids = self._contents.labels, self._contents.ids

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}('{with_addresses(str(self.path))}', {self.num_vectors} vectors of {self.dim} numbers, "
            f"kind={self.manifest.kind}, metric={self.metric})"
        )

    def _set_contents(self, contents: Contents) -> None:
        """Take the version's contents, and make a shard of the vectors that were added."""
        self._contents = contents
        manifest, changes = self.manifest, contents.changes
        mean = None if manifest.mean is None else np.array(manifest.mean)
        self._added = Shard(0, changes.vectors, changes.ids, changes.labels, manifest.metric, mean)

    @property
    def has_more(self) -> bool:
        """Whether the version was changed since; costs one look for a file."""
        return self._contents.has_more

    def caught_up(self) -> Self:
        """This index with all changes made to its version until now; itself where there are none. Shards stay open."""
        if not self.has_more:
            return self
        newer = copy.copy(self)
        newer._set_contents(self._contents.caught_up())
        return newer

    @property
    def num_vectors(self) -> int:
        """Vectors in the index, with its changes."""
        return self._contents.num_vectors

    @property
    def changes(self) -> Changes:
        """What was added to the version and removed from it."""
        return self._contents.changes

    @property
    def dim(self) -> int:
        """Numbers in a vector."""
        return self.manifest.dim

    @property
    def metric(self) -> Metric:
        """l2, inner_product or cosine."""
        return self.manifest.metric

    @property
    def parameters(self) -> dict[str, int]:
        """What a search takes where it is told nothing else: nprobe, ef_search, k_factor, as built or tuned."""
        return dict(self.manifest.parameters)

    @abc.abstractmethod
    def _answers(self, request: Request) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
        """Every shard's (ids [n, k], costs [n, k]); None for one that did not answer, where that is allowed.

        Raises PartialSearchError where it is not, or where none answered.
        """

    def search(
        self,
        queries: np.ndarray,
        k: int = 10,
        *,
        same_class: Labels | None = None,
        other_class: Labels | None = None,
        query_ids: np.ndarray | Sequence[int] | None = None,
        include_ids: np.ndarray | Sequence[Sequence[int]] | None = None,
        exclude_ids: np.ndarray | Sequence[Sequence[int]] | None = None,
        parameters: Mapping[str, int] | None = None,
        exact: bool = False,
    ) -> SearchResult:
        """The k nearest vectors of each query by `exact.costs`; ties go to the smaller id, and distances are exact on every kind.

        A flat index finds the true neighbours, and so does every kind with `exact`, with `same_class`, and ivf_flat with
        nprobe of all clusters; elsewhere some may be missed, never a filter broken, never fewer answered than there are.
        Queries that search the same ids are searched together; each different range of ids costs a pass of its own.

        Args:
            queries: float32 [n, dim].
            k: neighbours of each query, at most 16,384.
            same_class: search only vectors of this class: int64 [n] labels of the queries, class names where the index has
                `class_names`, or one label or name for all queries.
            other_class: search only vectors of other classes than this, given alike. Not together with `same_class`.
            query_ids: int64 [n], an id that is left out of each query's answer (itself, where the queries are in the index);
                -1 or an id that the index lacks leaves nothing out.
            include_ids: int64 [n, 2], half-open ranges of ids [from, to) that alone are searched.
            exclude_ids: int64 [n, 2], ranges of ids that are not searched.
            parameters: nprobe, ef_search, k_factor for this search.
            exact: compare with every vector, whatever the kind.

        Returns:
            ids and distances, [n, k].

        Raises:
            RequestError: queries or filters do not fit, or a class of `same_class` has no vector.
        """
        queries = np.asarray(queries)
        check_vectors(queries, "queries", self.dim)
        if self.metric == "cosine":
            check_directions(queries, "queries")
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise RequestError(f"k={k} must be a whole number from 1 to {MAX_K}")
        num_queries = len(queries)
        contents = self._contents
        filter, query_labels = self._choose_filter(same_class, other_class, num_queries)
        skip = skip_added = np.full(num_queries, -1, dtype=np.int64)
        if query_ids is not None:
            query_ids = np.asarray(query_ids)
            check_column(query_ids, "query_ids", num_queries)
            skip, skip_added = contents.find(query_ids)
        if filter == "same_class":
            contents.check_classes(query_labels)
        included, excluded = (
            None if ranges is None else np.asarray(ranges) for ranges in (include_ids, exclude_ids)
        )
        spans = id_spans(included, excluded, num_queries)
        chosen = self._choose_parameters(parameters or {})

        ids = np.full((num_queries, k), -1, dtype=np.int64)
        distances = np.empty((num_queries, k))
        missing: set[int] = set()
        sign = 1.0 if self.metric == "l2" else -1.0
        order = order_queries(filter, query_labels, spans)
        at_once = max(1, min(_QUERIES_AT_ONCE, _ANSWERS_AT_ONCE // k))
        for start in range(0, num_queries, at_once):
            rows = order[start : start + at_once]
            part = Request(
                np.ascontiguousarray(queries[rows]),
                query_labels[rows],
                skip[rows],
                int(k),
                (),
                chosen,
                exact,
                contents.changes.hidden,
                contents.changes.number,
            )
            span = None if spans is None else spans[rows]
            is_flat = exact or self.manifest.kind == "flat"
            tasks = contents.planner.plan(filter, part.labels, span, is_flat=is_flat)
            asked = list(self._answers(dataclasses.replace(part, tasks=tasks)))
            if contents.added is not None:
                tasks = contents.added.plan(filter, part.labels, span)
                of_added = dataclasses.replace(part, tasks=tasks, skip=skip_added[rows], hidden=NONE_HIDDEN)
                asked.append(self._added.answer(of_added))
            missing.update(shard for shard, answer in enumerate(asked) if answer is None)
            answers = [answer for answer in asked if answer is not None]
            ids[rows], distances[rows] = merge_top_k(
                [a[0] for a in answers], [sign * a[1] for a in answers], int(k), self.metric
            )
        return make_result(ids, linear(distances, self.metric), tuple(sorted(missing)))

    def _choose_filter(
        self, same_class: Labels | None, other_class: Labels | None, num_queries: int
    ) -> tuple[Filter | None, np.ndarray]:
        """(the filter that is asked for, int64 [num_queries]: the queries' labels, zeros without one)."""
        if same_class is not None and other_class is not None:
            raise RequestError(
                "same_class and other_class exclude each other; search twice, or use neighbours()"
            )
        name: Filter = "other_class" if same_class is None else "same_class"
        given = other_class if same_class is None else same_class
        if given is None:
            return None, np.zeros(num_queries, dtype=np.int64)
        labels = np.asarray(given)
        if labels.dtype.kind == "U":
            known = {class_name: label for label, class_name in enumerate(self.class_names)}
            unknown = sorted(set(labels.ravel().tolist()) - set(known))
            if unknown:
                near = difflib.get_close_matches(unknown[0], known, n=1)
                hint = (
                    f"; did you mean '{near[0]}'?"
                    if near
                    else ""
                    if known
                    else "; this index knows labels, no names"
                )
                raise RequestError(
                    f"{name} has '{unknown[0]}', which is no class of the index {self.path}{hint}"
                )
            labels = np.array([known[text] for text in labels.ravel().tolist()], np.int64).reshape(
                labels.shape
            )
        if labels.ndim == 0:
            labels = np.full(num_queries, labels)
        check_column(labels, name, num_queries)
        return name, labels

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
            own = query_labels if name == "same_class" else None
            others = query_labels if name == "other_class" else None
            result = self.search(queries, count, same_class=own, other_class=others, query_ids=query_ids)
            found += [result.ids, result.distances]
            missing.update(result.missing_shards)
        return Neighbours(found[0], found[1], found[2], found[3], tuple(sorted(missing)))

    def labels_of(self, ids: np.ndarray) -> np.ndarray:
        """Labels of ids of any shape, int64; -1 stays -1. Raises RequestError for an id the index lacks."""
        return self._contents.labels_of(ids)

    def vectors(self, start: int, stop: int, *, as_given: bool = False) -> np.ndarray:
        """The vectors (of length 1 for cosine) at positions [start, stop), float32 [stop - start, dim]; off the disk where it can be.

        `as_given` gives them for cosine too as they were given; they alone are their own neighbours to the last digit.
        Positions are the version's: RequestError where it was changed since.
        """
        if self.changes.number:
            raise RequestError(
                f"{self.path} was changed since it was published, and vectors added have no position; merge them first "
                "with merge(INDEX)"
            )
        parts = [
            versions.read_shard(self.path, self.manifest, shard)[max(start - first, 0) : max(stop - first, 0)]
            for shard, first in enumerate(self.manifest.shard_starts)
        ]
        parts = [part for part in parts if len(part)]
        if not parts:
            return np.empty((0, self.dim), dtype=np.float32)
        vectors = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return unit_vectors(vectors) if self.metric == "cosine" and not as_given else vectors

    def _choose_parameters(self, wanted: Mapping[str, int]) -> dict[str, int]:
        """The index's own parameters with these in their place; RequestError for one that it does not have."""
        own = self.parameters
        for name, value in wanted.items():
            if name not in own:
                takes = f"takes {', '.join(own)}" if own else "takes none"
                raise RequestError(
                    f"parameters has {name}; the index {self.path} (kind={self.manifest.kind}) {takes}"
                )
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise RequestError(f"parameters has {name}={value}; it must be a whole number of at least 1")
        return {**own, **{name: int(value) for name, value in wanted.items()}}


class LocalIndex(ShardedIndex):
    """An index whose shards are in this process."""

    def __init__(
        self, path: Path, manifest: Manifest, device: Device = "auto", gpu: int = 0, *, changes: bool = True
    ) -> None:
        super().__init__(path, manifest, changes=changes)
        shards = range(len(manifest.shard_starts))
        self._shards = [Shard.open(path, manifest, shard, device, gpu) for shard in shards]

    def _answers(self, request: Request) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
        return [shard.answer(request) for shard in self._shards]

    @property
    def num_clusters(self) -> int:
        """Clusters that nprobe chooses from, 0 for an index without."""
        return max(shard.num_clusters for shard in self._shards)

    def compares_all(self, parameters: Mapping[str, int]) -> bool:
        """Whether a search without a filter compares every vector of some shard: where its FAISS index would look at as many."""
        return any(shard.compares_all(parameters) for shard in self._shards)


def open_index(
    path: str | Path, *, verify: bool = True, device: Device = "auto", gpu: int = 0, changes: bool = True
) -> LocalIndex:
    """Open an index, its current version or one version's folder, in this process.

    Args:
        path: folder of the index or of a version, or its address at s3:// or gs://.
        verify: compare checksums, once in a process; file sizes are always checked.
        device: where vectors are searched.
        gpu: with device=gpu, the number of the GPU among those that this process sees.
        changes: with what was added and removed since it was published.

    Returns:
        The index, to be searched.

    Raises:
        VersionError: something is missing or damaged.
        RequestError: device=gpu where FAISS sees no such GPU.
    """

    def open_version(folder: Path) -> LocalIndex:
        manifest = versions.read_manifest(folder)
        versions.check_files(folder, manifest, verify=verify)
        return LocalIndex(folder, manifest, device, gpu, changes=changes)

    return versions.open_current(working_folder(path), open_version)
