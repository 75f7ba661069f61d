"""One shard: the nearest of a contiguous range of positions.

Float32 arithmetic, or the shard's FAISS index, only proposes: at least k + 10 candidates. Direct differences in float64 on the
raw vectors decide. Squared distances and products are both held as a *cost*, the smaller the better, so that one path
serves every metric.
"""

import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index import kinds, versions
from index.candidates import Candidates
from index.config import Device, Metric
from index.flat import FlatRows, keep_best
from index.gpu import choose_gpu
from index.merge import order_top_k
from index.plan import Task, is_among
from index.runtime import faiss
from index.versions import Manifest

# Candidates beyond k that float64 decides about. With none, 27% of rows had a wrong neighbour set on embeddings
# of norm 16 and spread 0.01; with 10, no row had.
MARGIN = 10
# Candidates more where positions are hidden, at first; queries that hidden ones crowd ask again for eight times as many.
_SPARE = 10
_QUERIES_AT_ONCE = 4096
# float64 numbers held at once while candidates are judged: 256 KiB stay in the cache. 2,048 queries with 16 candidates of
# dim 256 took 36 ms with it, and about 100 ms with 16 MiB.
_RERANK_NUMBERS = 1 << 15
_RERANK_QUERIES = 512  # for fewer queries a thread, threads cost more than they bring


NONE_HIDDEN = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Request:
    """What every shard is asked; plain arrays, so that it travels to actors without copies."""

    queries: np.ndarray
    """float32 [n, dim]; of length 1 for cosine."""

    labels: np.ndarray
    """int64 [n]; read only by masked tasks."""

    skip: np.ndarray
    """int64 [n]: the position that is left out of a query's answer, -1 for none."""

    k: int
    """Answers a query."""

    tasks: tuple[Task, ...]
    """Tasks of the same queries stand side by side; their ranges are disjoint and ascend, masked ones apart."""

    parameters: Mapping[str, int] = field(default_factory=dict)
    """nprobe, ef_search, k_factor in place of the version's own. More clusters than there are is all of them."""

    is_exact: bool = False
    """Leave the FAISS index aside, whatever the kind."""

    hidden: np.ndarray = field(default_factory=lambda: NONE_HIDDEN)
    """int64 [h], ascending: positions whose vectors were removed since the version was published."""

    change: int = 0
    """Number of the last change; requests of one version with the same number have the same hidden positions."""


class Shard:
    """The vectors of positions [start, start + rows), raw on disk, and what proposes candidates among them.

    vectors: float32 [rows, dim]; ids, labels: int64 [rows]; mean: float [dim], l2 alone; candidates: the shard's
    FAISS index, None for flat; parameters: what it is asked with. Memory: flat l2 holds one float32 copy of the shard, other flat ones none; other
    kinds hold what FAISS holds.
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
        self._raw = vectors
        self._ids = ids
        self._is_l2 = metric == "l2"
        self._candidates = candidates
        self._parameters = parameters or {}
        self._flat = FlatRows(
            vectors,
            labels,
            metric,
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
        """Make what the first search would make: the centred copy, and the rows on a GPU."""
        self._flat.prepare()

    @property
    def num_clusters(self) -> int:
        """Clusters of the FAISS index, 0 where it has none."""
        return 0 if self._candidates is None else self._candidates.num_clusters

    def compares_all(self, parameters: Mapping[str, int]) -> bool:
        """Whether a search for neighbours among all rows compares each of them, since the FAISS index would look at as many."""
        chosen = {**self._parameters, **parameters}
        return self._candidates is None or self.stop - self.start <= self._candidates.visits(chosen)

    def answer(self, request: Request) -> tuple[np.ndarray, np.ndarray]:
        """This shard's k best for each query: ids int64 [n, k] and costs float64 [n, k], best first.

        A cost is the squared distance (l2) or the negative product (inner_product, cosine); -1 and +inf fill up.
        """
        ids = np.full((len(request.queries), request.k), -1, dtype=np.int64)
        costs = np.full((len(request.queries), request.k), np.inf)
        for (first, last), group in itertools.groupby(
            request.tasks, key=lambda task: (task.query_start, task.query_stop)
        ):
            tasks = [task for task in map(self._cut, group) if task.start < task.stop]
            for start in range(first, last if tasks else first, _QUERIES_AT_ONCE):
                part = slice(start, min(start + _QUERIES_AT_ONCE, last))
                candidates = self._propose(request, part, tasks)
                ids[part], costs[part] = self._decide(request, part, candidates)
        return ids, costs

    def _cut(self, task: Task) -> Task:
        """The task's part in this shard, in rows of the shard."""
        start, stop = max(task.start, self.start) - self.start, min(task.stop, self.stop) - self.start
        positions = task.positions
        if positions is not None:
            first, last = np.searchsorted(positions, (self.start, self.stop))
            positions = positions[first:last] - self.start
            start, stop = (int(positions[0]), int(positions[-1]) + 1) if len(positions) else (0, 0)
        return Task(task.query_start, task.query_stop, start, stop, task.is_masked, task.is_class, positions)

    def _propose(self, request: Request, part: slice, tasks: list[Task]) -> np.ndarray:
        """Rows of this shard that may be among the k best: int64 [queries, any], -1 for none."""
        num_rows = sum(_num_rows(task) for task in tasks)
        index = self._candidates
        is_exact = request.is_exact or any(task.is_class or task.is_masked for task in tasks)
        parameters = {**self._parameters, **request.parameters}
        if index is None or is_exact or num_rows <= index.visits(parameters):
            return self._propose_all(request, part, tasks)
        hidden = self._hidden_among(request, tasks)
        width = parameters["k_factor"] * request.k + MARGIN + 1
        # As many again, and queries that hidden rows crowd still get k of the others.
        width = min(width + min(len(hidden), width), num_rows)
        allowed = [(t.start, t.stop) for t in tasks] if tasks[0].positions is None else tasks[0].positions
        rows = index.propose(request.queries[part], width, allowed, parameters)
        _leave_out(rows, hidden)
        # One more than k for the position that is left out. Who got fewer is answered from the vectors.
        wanted = min(request.k + 1, num_rows - len(hidden))
        short = np.flatnonzero((rows >= 0).sum(axis=1) < wanted)
        if len(short):
            rows = _put_in(rows, short, self._propose_all(request, short + part.start, tasks))
        return rows

    def _propose_all(
        self, request: Request, part: slice | np.ndarray, tasks: list[Task], spare: int | None = None
    ) -> np.ndarray:
        """As `_propose`, by comparing these queries with every row of the tasks.

        At most k + 11 candidates, and up to `spare` more in place of hidden ones among them.
        """
        spare = _SPARE if spare is None else spare
        queries = self._flat.centre(request.queries[part])
        hidden = self._hidden_among(request, tasks)
        width = request.k + MARGIN + 1  # one more for the position that is left out
        asked = width + min(spare, len(hidden))
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
        rows = keep_best(found, asked)[1]
        _leave_out(rows, hidden)
        if spare < len(hidden):
            # Hidden rows took more places than were spare: these queries ask for more.
            wanted = min(width, sum(map(_num_rows, tasks)) - len(hidden))
            short = np.flatnonzero((rows >= 0).sum(axis=1) < wanted)
            if len(short):
                numbers = short + part.start if isinstance(part, slice) else part[short]
                rows = _put_in(rows, short, self._propose_all(request, numbers, tasks, 8 * spare))
        return rows

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
        # Masked tasks stand after others, with ranges apart from theirs.
        return np.sort(np.concatenate(parts))

    def _decide(self, request: Request, part: slice, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Order candidates by float64 costs of the raw vectors: ids [queries, k] and costs [queries, k]."""
        queries, skip = request.queries[part], request.skip[part]
        costs = np.empty(rows.shape)
        num_threads = max(1, min(faiss.omp_get_max_threads(), len(rows) // _RERANK_QUERIES))
        if num_threads == 1:
            self._judge(queries, rows, costs)
        else:
            with ThreadPoolExecutor(num_threads) as pool:
                cuts = (np.array_split(array, num_threads) for array in (queries, rows, costs))
                list(pool.map(self._judge, *cuts))
        ids = self._ids[rows]
        left_out = (rows < 0) | (rows + self.start == skip[:, None])
        ids[left_out] = -1
        costs[left_out] = np.inf
        return order_top_k(ids, costs, request.k)

    def _judge(self, queries: np.ndarray, rows: np.ndarray, costs: np.ndarray) -> None:
        """Write the float64 cost of each candidate: `costs` [queries, candidates] as `rows`."""
        raw = np.asarray(self._raw)
        at_once = max(1, _RERANK_NUMBERS // (rows.shape[1] * raw.shape[1]))
        held = np.empty((min(at_once, len(rows)), rows.shape[1], raw.shape[1]))
        combine = np.subtract if self._is_l2 else np.multiply
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            vectors = raw.take(rows[some], axis=0)
            # [queries, candidates, dim]; float32 to float64 happens inside.
            terms = held[: len(vectors)]
            combine(vectors, queries[some, None, :], out=terms, dtype=np.float64)
            if self._is_l2:
                np.einsum("ncd,ncd->nc", terms, terms, out=costs[some])
            else:
                np.sum(terms, axis=2, out=costs[some])
                np.negative(costs[some], out=costs[some])


def _leave_out(rows: np.ndarray, hidden: np.ndarray) -> None:
    """Put -1 where `rows` has one of `hidden`, ascending."""
    if len(hidden):
        rows[is_among(rows, hidden)] = -1


def _put_in(rows: np.ndarray, places: np.ndarray, found: np.ndarray) -> np.ndarray:
    """`rows` [n, any] with `found` [len(places), any] as the answers at `places`."""
    width = max(rows.shape[1], found.shape[1])
    wider = np.full((len(rows), width), -1, dtype=np.int64)
    wider[:, : rows.shape[1]] = rows
    wider[places] = -1
    wider[places, : found.shape[1]] = found
    return wider


def _num_rows(task: Task) -> int:
    return task.stop - task.start if task.positions is None else len(task.positions)
