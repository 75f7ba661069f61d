"""One shard: the nearest vectors of a contiguous range of positions.

Float32 arithmetic, or the shard's FAISS index, only proposes candidates, at least k + 10. Their costs in float64
(`exact.costs`) decide. If all rows were compared, a bound on float32's rounding (`exact.rounding`) proves that no
other row can be nearer; queries without that proof get more candidates, then a second pass (`exact.second_look`). A
*cost* is smaller for nearer vectors, so that one code path serves every metric.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index import kinds, versions
from index.base.errors import VersionError
from index.candidates import Candidates
from index.config import Device, Metric
from index.exact.costs import Vectors, linear
from index.exact.narrowing import is_worth_it, narrow
from index.exact.second_look import SecondLook
from index.faiss_contents import check_contents
from index.flat import FlatRows, keep_best
from index.gpu import choose_gpu
from index.merge import order_top_k
from index.plan import Task, is_among
from index.vectors import unit_vectors
from index.versions import Manifest

# Candidates beyond k that are ranked in float64. Usually the last of them is further away than the k-th by more than
# float32's rounding, which is the proof.
MARGIN = 10
# Candidates more where positions are hidden.
_SPARE = 10
# If at most one in _FEW queries lacks the proof, these queries first get this many more candidates: a second pass
# reads all vectors in float64, which is expensive for a few queries.
_WIDER_MARGIN = 120
_FEW = 8
_QUERIES_AT_ONCE = 4096


NONE_HIDDEN = np.empty(0, dtype=np.int64)
_NO_DOUBTS = np.empty(0, dtype=np.int64)
_NO_LENGTHS = np.empty(0)

_Part = slice | np.ndarray
"""some queries of a request: a range, or places int64 [n]"""


@dataclass(frozen=True, slots=True)
class Request:
    """The request that every shard gets; plain arrays, so that it is sent to actors without copies."""

    queries: np.ndarray
    """float32 [n, dim]"""

    labels: np.ndarray
    """int64 [n]; read only by masked tasks."""

    skip: np.ndarray | None
    """int64 [n]: the position that is left out of a query's answer, -1 for none; None where no query has one."""

    k: int
    """Answers a query."""

    tasks: tuple[Task, ...]
    """Tasks of the same queries are adjacent; their ranges are disjoint and ascend, masked ones separately."""

    parameters: Mapping[str, int] = field(default_factory=dict)
    """nprobe, ef_search, k_factor instead of the version's own. A value above the number of clusters means all."""

    is_exact: bool = False
    """Ignore the FAISS index, for any kind."""

    hidden: np.ndarray = field(default_factory=lambda: NONE_HIDDEN)
    """int64 [h], ascending: positions whose vectors were removed since the version was published."""

    change: int = 0
    """Number of the last change; requests of one version with the same number have the same hidden positions."""


class Shard:
    """The vectors of positions [start, start + rows), raw on disk, and the index that proposes candidates among them.

    vectors: float32 [rows, dim]; ids, labels: int64 [rows]; mean: float [dim], for l2 only; candidates: the shard's
    FAISS index, None for flat; parameters: its search parameters. Memory: flat keeps one float32 copy of the shard
    for l2 and cosine, none for inner products; other kinds keep what FAISS keeps.
    """

    def __init__(
        self,
        start: int,
        vectors: np.ndarray,
        ids: np.ndarray,
        labels: np.ndarray,
        metric: Metric,
        mean: np.ndarray | None,
        *,
        candidates: Candidates | None = None,
        parameters: Mapping[str, int] | None = None,
        gpu: int | None = None,
    ) -> None:
        self.start = start
        self.stop = start + len(vectors)
        self._ids = np.asarray(ids)  # a memory map takes longer for each access
        self._vectors = Vectors(vectors, metric)
        self._candidates = candidates
        self._parameters = parameters or {}
        self._second_look = SecondLook(self._vectors, labels, ids)
        self._flat = FlatRows(
            self._vectors,
            labels,
            None if mean is None else mean.astype(np.float32),
            keep_copy=candidates is None,
            gpu=gpu,
        )

    @classmethod
    def open(
        cls, folder: Path, manifest: Manifest, shard: int, device: Device = "auto", gpu: int = 0
    ) -> "Shard":
        """Open a shard of a version from disk. Raises VersionError, and RequestError for a GPU that is not there."""
        start, stop = manifest.shard_range(shard)
        chosen = choose_gpu(device, gpu)
        candidates = None
        if manifest.kind != "flat":
            path = folder / versions.faiss_name(shard)
            index = kinds.from_bytes(versions.read_faiss(path), str(path))
            versions.check_faiss(path, index.ntotal, index.d, stop - start, manifest.dim)
            try:
                expected = kinds.empty_of(manifest.factory, manifest.kind, manifest.metric, manifest.dim)
            except RuntimeError:
                raise VersionError(f"{folder} is damaged: no FAISS index is a '{manifest.factory}'") from None
            check_contents(index, expected, stop - start, str(path))
            if set(manifest.parameters) != kinds.parameter_names(index):
                raise VersionError(
                    f"{folder} is damaged: its manifest has parameters={manifest.parameters}, its index needs "
                    f"{sorted(kinds.parameter_names(index))}"
                )
            candidates = Candidates(index, chosen)
        return cls(
            start,
            versions.read_shard(folder, manifest, shard),
            versions.read_ids(folder, manifest)[start:stop],
            versions.read_labels(folder, manifest)[start:stop],
            manifest.metric,
            None if manifest.mean is None else np.array(manifest.mean),
            candidates=candidates,
            parameters=manifest.parameters,
            gpu=chosen,
        )

    def prepare(self) -> None:
        """Create the centred copy, and the rows on a GPU, which otherwise the first search creates."""
        self._flat.prepare()

    @property
    def num_looked_at_again(self) -> int:
        """Number of queries so far that needed a second pass; for reports."""
        return self._second_look.num_queries

    @property
    def num_clusters(self) -> int:
        """Number of clusters of the FAISS index; 0 if it has none."""
        return 0 if self._candidates is None else self._candidates.num_clusters

    def compares_all(self, parameters: Mapping[str, int]) -> bool:
        """Whether a search among all rows compares each of them, because the FAISS index would visit as many."""
        chosen = {**self._parameters, **parameters}
        return self._candidates is None or self.stop - self.start <= self._candidates.visits(chosen)

    def answer(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """This shard's k best for each query: ids int64 [n, k] and costs float64 [n, k], best first.

        Costs are those of `exact.costs`; -1 and +inf fill up.
        """
        num_queries = len(request.queries)
        parts: list[tuple[slice, np.ndarray, np.ndarray]] = []
        for (first, last), group in itertools.groupby(request.tasks, key=_queries_of):
            tasks = [task for task in map(self._cut, group) if task.start < task.stop]
            for start in range(first, last if tasks else first, _QUERIES_AT_ONCE):
                part = slice(start, min(start + _QUERIES_AT_ONCE, last))
                parts.append((part, *self._answer_part(request, part, tasks)))
        if len(parts) == 1 and len(parts[0][1]) == num_queries:
            return parts[0][1], parts[0][2]
        ids = np.full((num_queries, request.k), -1, dtype=np.int64)
        costs = np.full((num_queries, request.k), np.inf)
        for part, ids_of_part, costs_of_part in parts:
            ids[part], costs[part] = ids_of_part, costs_of_part
        return ids, costs

    def _answer_part(self, request: Request, part: slice, tasks: list[Task]) -> tuple[np.ndarray, np.ndarray]:
        """`answer` for some queries that search the same rows: ids and costs [queries, k]."""
        found = self._propose(request, part, tasks)
        ids, costs, doubts = self._decide(request, part, found)
        if 0 < _FEW * len(doubts) <= max(len(ids), _FEW):
            some = part.start + doubts
            found = self._propose_all(request, some, tasks, _WIDER_MARGIN)
            ids[doubts], costs[doubts], left = self._decide(request, some, found)
            doubts = doubts[left]
        if len(doubts):
            some = part.start + doubts
            ids[doubts], costs[doubts] = self._look_again(request, some, tasks, costs[doubts, -1])
        return ids, costs

    def _cut(self, task: Task) -> Task:
        """The task's part in this shard, in rows of the shard."""
        if self.start == 0 and task.stop <= self.stop and task.positions is None:
            return task
        start, stop = max(task.start, self.start) - self.start, min(task.stop, self.stop) - self.start
        positions = task.positions
        if positions is not None:
            first, last = np.searchsorted(positions, (self.start, self.stop))
            positions = positions[first:last] - self.start
            start, stop = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
        return Task(task.query_start, task.query_stop, start, stop, task.is_masked, task.is_class, positions)

    def _propose(self, request: Request, part: slice, tasks: list[Task]) -> "_Found":
        """Rows of this shard that may be among the k best of these queries of the request."""
        num_rows = sum(_num_rows(task) for task in tasks)
        index = self._candidates
        is_exact = request.is_exact or any(task.is_class or task.is_masked for task in tasks)
        parameters = {**self._parameters, **request.parameters}
        if index is None or is_exact or num_rows <= index.visits(parameters):
            return self._propose_all(request, part, tasks, MARGIN)
        hidden = self._hidden_among(request, tasks)
        width = parameters["k_factor"] * request.k + MARGIN + 1
        # As many again, so that queries with hidden rows among the nearest still get k others.
        width = min(width + min(len(hidden), width), num_rows)
        allowed = [(t.start, t.stop) for t in tasks] if tasks[0].positions is None else tasks[0].positions
        queries = request.queries[part]
        if self._vectors.metric == "cosine":
            queries = unit_vectors(queries)
        rows = index.propose(queries, width, allowed, parameters)
        _leave_out(rows, hidden)
        found = _Found(rows, is_full=not len(rows) or rows.min() >= 0)
        # One more than k for the excluded position. Queries with too few candidates are searched in the vectors.
        wanted = min(request.k + 1, num_rows - len(hidden))
        if width >= wanted and found.is_full:
            return found
        short = np.flatnonzero((rows >= 0).sum(axis=1) < wanted)
        if len(short):
            compared = self._propose_all(request, part.start + short, tasks, MARGIN)
            found = found.with_answers(short, compared)
        return found

    def _propose_all(self, request: Request, part: _Part, tasks: list[Task], margin: int) -> "_Found":
        """As `_propose`, by comparing these queries with every row of the tasks:
        k + `margin` candidates and some for hidden rows."""
        queries = self._flat.hold(request.queries[part])
        hidden = self._hidden_among(request, tasks)
        asked = request.k + margin + 1 + min(_SPARE, len(hidden))  # one more for the excluded position
        found = []
        for task in tasks:
            count = min(asked, _num_rows(task))
            if task.positions is not None:
                found.append(self._flat.nearest_among(queries, task.positions, count))
            elif task.is_masked:
                labels = request.labels[part]
                found.append(
                    self._flat.nearest_of_other_labels(queries, labels, task.start, task.stop, count)
                )
            else:
                found.append(
                    self._flat.nearest(queries, task.start, task.stop, count, is_class=task.is_class)
                )
        best = keep_best(found, asked)
        if sum(map(_num_rows, tasks)) <= asked:
            worst = np.full(len(best.rows), np.inf)  # nothing was left out
        else:
            worst = best.costs.max(axis=1).astype(np.float64)
        worst[np.isinf(best.lengths)] = -np.inf
        _leave_out(best.rows, hidden)
        return _Found(best.rows, worst, best.lengths)

    def _hidden_among(self, request: Request, tasks: list[Task]) -> np.ndarray:
        """Hidden rows of this shard that the tasks would search: int64, ascending."""
        if not len(request.hidden):
            return NONE_HIDDEN
        hidden = request.hidden - self.start
        parts = []
        for task in tasks:
            first, last = np.searchsorted(hidden, (task.start, task.stop))
            part = hidden[first:last]
            parts.append(part if task.positions is None else np.intersect1d(part, task.positions))
        # Masked tasks follow the others, with separate ranges.
        return np.sort(np.concatenate(parts))

    def _decide(
        self, request: Request, part: _Part, found: "_Found"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Order candidates by their exact costs: ids [queries, k], costs [queries, k], and the queries without proof,
        int64 places in `part`."""
        queries, rows = request.queries[part], found.rows
        if found.worst is None and is_worth_it(self._vectors, rows, request.k + 1):
            return *self._decide_narrowed(request, part, rows), _NO_DOUBTS
        costs = self._vectors.costs_in_threads(queries, rows)
        ids, costs = self._order(request, part, rows, costs, is_full=found.is_full)
        if found.worst is None:
            return ids, costs, _NO_DOUBTS
        is_whole = np.isposinf(found.worst)
        is_proven = is_whole | self._flat.is_proven(found.worst, found.lengths, costs[:, -1])
        return ids, costs, np.flatnonzero(~is_proven)

    def _decide_narrowed(
        self, request: Request, part: _Part, rows: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `_decide` for many candidates of the FAISS index: exact costs of the few that float32 leaves."""
        queries = request.queries[part]
        # One more than k for the excluded position.
        kept, limits = narrow(self._vectors, queries, rows, request.k + 1)
        ids, costs = self._order(request, part, kept, self._vectors.costs_in_threads(queries, kept))
        left = np.flatnonzero(linear(costs[:, -1], self._vectors.metric) >= limits)
        if len(left):
            some = part.start + left if isinstance(part, slice) else part[left]
            of_all = self._vectors.costs_in_threads(queries[left], rows[left])
            ids[left], costs[left] = self._order(request, some, rows[left], of_all)
        return ids, costs

    def _look_again(
        self, request: Request, part: _Part, tasks: list[Task], limits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exact ids [queries, k] and costs [queries, k] of queries whose k-th best costs no more than `limits`."""
        is_allowed = np.zeros(self.stop - self.start, dtype=bool)
        for task in tasks:
            is_allowed[slice(task.start, task.stop) if task.positions is None else task.positions] = True
        is_allowed[self._hidden_among(request, tasks)] = False
        rows, costs = self._second_look.nearest(
            request.queries[part],
            request.labels[part],
            limits,
            request.k + 1,  # one more for the excluded position
            is_allowed,
            is_masked=any(task.is_masked for task in tasks),
        )
        return self._order(request, part, rows, costs)

    def _order(
        self, request: Request, part: _Part, rows: np.ndarray, costs: np.ndarray, *, is_full: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best of the ranked candidates [queries, any] without the excluded position:
        ids and costs [queries, k]."""
        ids = self._ids.take(rows)
        if request.skip is not None or not is_full:
            left_out = rows < 0
            if request.skip is not None:
                left_out |= rows + self.start == request.skip[part, None]
            ids[left_out] = -1
            costs[left_out] = np.inf
        return order_top_k(ids, costs, request.k)


@dataclass(frozen=True, slots=True)
class _Found:
    """Candidates of n queries."""

    rows: np.ndarray
    """int64 [n, any], −1 for none"""

    worst: np.ndarray | None = None
    """float64 [n]: no row that was compared and is not among them costs less, up to rounding; +inf where none was
    left out; None where the FAISS index answered, which promises nothing"""

    lengths: np.ndarray = field(default_factory=lambda: _NO_LENGTHS)
    """float64 [n]: as in `flat.Proposal`; empty where `worst` is None"""

    is_full: bool = False
    """whether every row is known to be one, none −1"""

    def with_answers(self, places: np.ndarray, found: "_Found") -> "_Found":
        """These candidates of the FAISS index with those of `found` for the queries at `places`, int64 [m]."""
        width = max(self.rows.shape[1], found.rows.shape[1])
        rows = np.full((len(self.rows), width), -1, dtype=np.int64)
        rows[:, : self.rows.shape[1]] = self.rows
        rows[places] = -1
        rows[places, : found.rows.shape[1]] = found.rows
        worst, lengths = np.full(len(rows), np.inf), np.zeros(len(rows))
        worst[places], lengths[places] = found.worst, found.lengths
        return _Found(rows, worst, lengths)


def _leave_out(rows: np.ndarray, hidden: np.ndarray) -> None:
    """Set -1 where `rows` contains one of `hidden`, ascending."""
    if len(hidden):
        rows[is_among(rows, hidden)] = -1


def _queries_of(task: Task) -> tuple[int, int]:
    return task.query_start, task.query_stop


def _num_rows(task: Task) -> int:
    return task.stop - task.start if task.positions is None else len(task.positions)
