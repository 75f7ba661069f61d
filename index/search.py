"""Search of an index: check the request, plan it, and merge the answers of all shards.

The subclass knows where the shards are (`_answers`); `plan` computes which positions a filter allows.
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
from index.holding import Hold
from index.merge import merge_top_k
from index.plan import Filter, id_spans, order_queries
from index.results import Neighbours, SearchResult, make_result
from index.shard import NONE_HIDDEN, Request, Shard
from index.vectors import check_column, check_directions, check_vectors, unit_vectors
from index.versions import Manifest

# A higher number of neighbours per query is refused: answers of 16,384 already need 256 KiB per query.
MAX_K = 16384
_QUERIES_AT_ONCE = 32768
_ANSWERS_AT_ONCE = 1 << 26  # times 16 bytes for each shard: ids and costs


Labels = np.ndarray | Sequence[int] | Sequence[str] | int | str
"""a label or class name for each query, or one for all of them"""


class ShardedIndex(abc.ABC):
    """A published version with the changes made to it until it was opened;
    where its shards live is the subclass's business."""

    labels: np.ndarray
    """int64 [manifest.num_vectors], by position, ascending: of the version, without its changes."""

    ids: np.ndarray
    """int64 [manifest.num_vectors], by position: of the version, without its changes."""

    class_names: Sequence[str] = ()
    """name of each label, where the index was built from a data set in this process"""

    def __init__(self, path: Path, manifest: Manifest, *, changes: bool = True) -> None:
        self.path = path
        self.manifest = manifest
        self._hold = Hold(path)
        self._set_contents(Contents(path, manifest, changes=changes))
        self.labels, self.ids = self._contents.labels, self._contents.ids

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}('{with_addresses(str(self.path))}', {self.num_vectors} vectors of {self.dim} "
            f"numbers, kind={self.manifest.kind}, metric={self.metric})"
        )

    def _set_contents(self, contents: Contents) -> None:
        """Set the version's contents, and create a shard of the vectors that were added."""
        self._contents = contents
        manifest, changes = self.manifest, contents.changes
        mean = None if manifest.mean is None else np.array(manifest.mean)
        self._added = Shard(0, changes.vectors, changes.ids, changes.labels, manifest.metric, mean)

    @property
    def has_more(self) -> bool:
        """Whether the version was changed since it was opened; costs one check for a file."""
        return self._contents.has_more

    def caught_up(self) -> Self:
        """Return this index with all changes made so far; `self` if there are none. Shards stay open."""
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
        """The vectors that were added to and removed from the version."""
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
        """The default search parameters, as built or tuned: nprobe, ef_search, k_factor."""
        return dict(self.manifest.parameters)

    @abc.abstractmethod
    def _answers(self, request: Request) -> Sequence[tuple[np.ndarray, np.ndarray] | None]:
        """Return every shard's (ids [n, k], costs [n, k]); None for a shard that did not answer, if that is allowed.

        Raises PartialSearchError if it is not allowed, or if no shard answered.
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
        """Return the k nearest vectors of each query by `exact.costs`; ties are ordered by id, and distances are exact.

        The result is exact for a flat index, with `exact`, with `same_class`, and for ivf_flat with nprobe of all
        clusters. Otherwise some neighbours may be missed, but filters always apply, and k vectors are returned if
        that many exist. Queries with the same range of ids are searched together; each different range costs a
        separate pass.

        Args:
            queries: float32 [n, dim].
            k: neighbours per query, at most 16,384.
            same_class: search only vectors of this class: int64 [n] labels of the queries, class names if the index has
                `class_names`, or one label or name for all queries.
            other_class: search only vectors of other classes than this; same form. Not together with `same_class`.
            query_ids: int64 [n], an id to exclude from each query's answer (its own id if the queries are in the
                index); -1 or an unknown id excludes nothing.
            include_ids: int64 [n, 2], half-open ranges of ids [from, to); only these are searched.
            exclude_ids: int64 [n, 2], half-open ranges of ids that are not searched.
            parameters: nprobe, ef_search, k_factor for this search.
            exact: compare with every vector, for any kind of index.

        Returns:
            ids and distances, [n, k].

        Raises:
            RequestError: queries or filters are invalid, or a class of `same_class` has no vector.
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
        skip = skip_added = None
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

        found: list[tuple[np.ndarray, np.ndarray]] = []
        missing: set[int] = set()
        order = order_queries(filter, query_labels, spans)
        is_flat = exact or self.manifest.kind == "flat"
        at_once = max(1, min(_QUERIES_AT_ONCE, _ANSWERS_AT_ONCE // k))
        for start in range(0, num_queries, at_once):
            rows = slice(start, start + at_once) if order is None else order[start : start + at_once]
            labels = query_labels[rows]
            span = None if spans is None else spans[rows]
            part = Request(
                np.ascontiguousarray(queries[rows]),
                labels,
                None if skip is None else skip[rows],
                int(k),
                contents.planner.plan(filter, labels, span, is_flat=is_flat),
                chosen,
                exact,
                contents.changes.hidden,
                contents.changes.number,
            )
            asked = list(self._answers(part))
            if contents.added is not None:
                tasks = contents.added.plan(filter, labels, span)
                left_out = None if skip_added is None else skip_added[rows]
                of_added = dataclasses.replace(part, tasks=tasks, skip=left_out, hidden=NONE_HIDDEN)
                asked.append(self._added.answer(of_added))
            missing.update(shard for shard, answer in enumerate(asked) if answer is None)
            found.append(merge_top_k([answer for answer in asked if answer is not None], int(k)))
        if not found:
            found.append((np.empty((0, k), dtype=np.int64), np.empty((0, k))))
        ids, costs = found[0] if len(found) == 1 else map(np.concatenate, zip(*found, strict=True))
        if order is not None:
            places = np.empty_like(order)
            places[order] = np.arange(num_queries)
            ids, costs = ids[places], costs[places]
        if not ids.flags.writeable:  # another process answered, in memory that it shares
            ids, costs = ids.copy(), costs.copy()
        distances = linear(costs if self.metric == "l2" else -costs, self.metric)
        return make_result(ids, distances, tuple(sorted(missing)))

    def _choose_filter(
        self, same_class: Labels | None, other_class: Labels | None, num_queries: int
    ) -> tuple[Filter | None, np.ndarray]:
        """(the requested filter, int64 [num_queries]: the queries' labels, zeros if there are none)."""
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
                    f"{name} has '{unknown[0]}', which is not a class of the index {self.path}{hint}"
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
        """Return the num_same nearest of the query's class, excluding the query,
        and the num_other nearest of all others.

        Arguments and errors are those of `search`; a count of 0 gives arrays [n, 0].
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
        """Return the labels of ids of any shape, int64; -1 stays -1. Raises RequestError for an unknown id."""
        return self._contents.labels_of(ids)

    def vectors(self, start: int, stop: int, *, as_given: bool = False) -> np.ndarray:
        """Return the vectors at positions [start, stop), float32 [stop - start, dim]; memory-mapped if possible.

        For cosine they have length 1; with `as_given` they are the original vectors, which alone have exactly
        themselves as nearest neighbours. Positions are those of the version: RequestError if it was changed since it
        was opened.
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
                takes = f"has {', '.join(own)}" if own else "has none"
                raise RequestError(
                    f"parameters has the unknown {name}; the index {self.path} (kind={self.manifest.kind}) {takes}"
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
        """Whether a search without a filter compares every vector of some shard,
        because its FAISS index would visit as many."""
        return any(shard.compares_all(parameters) for shard in self._shards)


def open_index(
    path: str | Path, *, verify: bool = True, device: Device = "auto", gpu: int = 0, changes: bool = True
) -> LocalIndex:
    """Open an index, its current version or one version's folder, in this process.

    Args:
        path: folder of the index or of a version, or its address at s3:// or gs://.
        verify: compare checksums, once per process; file sizes are always checked.
        device: where vectors are searched.
        gpu: with device=gpu, the number of the GPU among those visible to this process.
        changes: include the vectors added and removed since the version was published.

    Returns:
        The opened index.

    Raises:
        VersionError: something is missing or damaged.
        RequestError: device=gpu, but FAISS sees no such GPU.
    """

    def open_version(folder: Path) -> LocalIndex:
        manifest = versions.read_manifest(folder)
        versions.check_files(folder, manifest, verify=verify)
        return LocalIndex(folder, manifest, device, gpu, changes=changes)

    return versions.open_current(working_folder(path), open_version)
