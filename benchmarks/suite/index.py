"""`python -m benchmarks.suite index`: the index next to FAISS used directly, hnswlib and usearch, on the same vectors.

Each index is built in a process of its own, which reports its time and memory. The smallest effort (nprobe, ef) that
reaches a recall is found on half of the queries; the recall reported is that of the other half, which is also timed.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.suite.interleave import Measured, interleave, status_mb
from benchmarks.suite.peers_index import FAISS, OURS, WAYS, Opened, Way, built
from benchmarks.suite.report import BenchOptions, Report, Table, Target
from benchmarks.vectors import VectorSet, describe, open_vectors
from index.base.errors import RequestError
from index.base.files import remove_folder
from index.runtime import faiss, matrix_product_from

K = 10
RECALLS = (0.90, 0.95, 0.99)
BATCHES = (1, 32, 1000)
SELECTIVITIES = (0.5, 0.05, 0.005)
SIZES = {"omniglot": 100_000, "photographs": 20_000, "gaussian": 20_000}
SMOKE_SIZES = {"clusters": 20_000}
_FILTER_RECALL = 0.95
# A round of one way takes about this long; slow ones get fewer queries.
_ROUND_S, _SMOKE_ROUND_S = 0.25, 0.1
_LEAST = {1: 1.43, 32: 1.05, 1000: 1.05}
"""most that a query may take as a multiple of FAISS's: 1 / 0.7 and 1 / 0.95"""


@dataclass(frozen=True, slots=True)
class _Built:
    """An index of one way, opened, and what building it took."""

    way: Way
    opened: Opened
    seconds: float
    memory_mb: float
    size_mb: float


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The smallest effort that reaches a recall."""

    effort: int
    recall: float
    """on other queries than it was chosen on"""


def measure(options: BenchOptions) -> Report:
    """The whole benchmark; `vectors` names sets and sizes, by default `SIZES`."""
    wanted = dict(options.vectors) or (SMOKE_SIZES if options.is_smoke else SIZES)
    ways = [way for way in WAYS.values() if way.is_installed]
    missing = [way for way in WAYS.values() if not way.is_installed]
    notes = [f"{way.name} was left out: {way.module} is not installed." for way in missing]
    tables: list[Table] = []
    targets: list[Target] = []
    shapes = []
    for name, num in wanted.items():
        try:
            vectors = open_vectors(name, num)
        except RequestError as error:
            notes.append(f"{name} was left out: {error}.")
            continue
        shape = describe(vectors)
        title = f"{name}, {num:,} × {vectors.vectors.shape[1]}"
        shapes.append((title, shape.two_nn, shape.mle, f"{shape.own_cluster:.0%}", f"{shape.examined:.2%}"))
        indexes = _build_all(vectors, ways, options.folder / name)
        of_set = _OfSet(title, vectors, indexes, options)
        for table, some in (of_set.builds(), of_set.searches(), of_set.filters()):
            tables += table
            targets += some
        remove_folder(options.folder / name)  # the next set takes as much again
    tables.insert(0, Table("Vectors", ("", "intrinsic dimension, 2 nearest", "20 nearest", "nearest in own cluster",
                                       "vectors in the clusters with 95 % of the nearest"), tuple(shapes)))  # fmt: skip
    return Report(
        benchmark="index",
        title=(
            f"Search for the {K} nearest by this project, FAISS used directly, hnswlib and usearch: builds, queries per "
            "second at a recall, and searches among a range of ids."
        ),
        config={"vectors": ", ".join(f"{name} {num}" for name, num in wanted.items()), "k": K,
                "threads": faiss.omp_get_max_threads(), "rounds": options.rounds},
        tables=tables,
        targets=targets,
        notes=[*notes, "Memory of a build is the growth of its process above the mapped vectors. hnswlib has no filter "
               "but a Python function per vector, so it finds more neighbours and keeps those in the range."],
        is_smoke=options.is_smoke,
    )  # fmt: skip


def _build_all(vectors: VectorSet, ways: list[Way], folder: Path) -> list[_Built]:
    folder.mkdir()
    files = folder / "vectors.npy", folder / "labels.npy"
    np.save(files[0], vectors.vectors)
    np.save(files[1], np.sort(vectors.labels))
    done = []
    for way in ways:
        place = folder / way.name.replace(" ", "-")
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            seconds, memory_mb, size = pool.submit(_build_one, way.name, *files, place).result()
        opened = way.open(place, vectors.vectors)
        done.append(_Built(way, opened, seconds, memory_mb, size / 1e6))
    return done


def _build_one(name: str, vectors_file: Path, labels_file: Path, place: Path) -> tuple[float, float, int]:
    """Build in this process: seconds, growth of its memory in 10⁶ bytes, bytes written."""
    vectors, labels = np.load(vectors_file), np.load(labels_file)
    built(name, vectors[:1000], labels[:1000], place)  # loads the libraries
    before = status_mb(os.getpid(), "VmRSS")
    start = time.perf_counter()
    size = built(name, vectors, labels, place)
    seconds = time.perf_counter() - start
    return seconds, status_mb(os.getpid(), "VmHWM") - before, size


class _OfSet:
    """What is measured on one set of vectors."""

    def __init__(self, title: str, vectors: VectorSet, indexes: list[_Built], options: BenchOptions) -> None:
        self._title, self._indexes, self._options = title, indexes, options
        self._vectors = np.asarray(vectors.vectors)
        half = len(vectors.queries) // 2
        # Half of the queries chooses the effort, the other half measures it.
        self._tuning, self._queries = vectors.queries[:half], vectors.queries[half:]
        self._round_s = _SMOKE_ROUND_S if options.is_smoke else _ROUND_S

    def builds(self) -> tuple[list[Table], list[Target]]:
        """Seconds, memory and bytes."""
        rows = [(one.way.name, one.seconds, one.memory_mb, one.size_mb) for one in self._indexes]
        by_name = {one.way.name: one.seconds for one in self._indexes}
        ratio = by_name[f"{OURS} hnsw"] / by_name[f"{FAISS} hnsw"]
        target = Target(
            f"index: {self._title}: build of hnsw ÷ FAISS's", [ratio], at_most=1.1, is_guarded=False,
            remark="one thread here, so that the same input gives the same graph; all threads there",
        )  # fmt: skip
        return [Table(f"{self._title}: builds", ("", "s", "memory MB", "files MB"), tuple(rows))], [target]

    def searches(self) -> tuple[list[Table], list[Target]]:
        """Queries per second of every way, at each recall and batch."""
        tables, targets = [], []
        true = [_exact(self._vectors, part) for part in (self._tuning, self._queries)]
        for recall in RECALLS[1:2] if self._options.is_smoke else RECALLS:
            chosen = {
                one.way.name: found
                for one in self._indexes
                if (found := _choose(one.opened.efforts, one.opened.search, recall,
                                     (self._tuning, self._queries), (true[0], true[1])))
            }  # fmt: skip
            table, some = self._rates(recall, chosen)
            tables.append(table)
            targets += some
        return tables, targets

    def _rates(self, recall: float, chosen: Mapping[str, _Chosen]) -> tuple[Table, list[Target]]:
        by_name = {one.way.name: one for one in self._indexes}
        columns: dict[str, list[float]] = {name: [] for name in chosen}
        targets = []
        for batch in BATCHES:
            works = {
                name: _work(
                    lambda part, name=name: by_name[name].opened.search(part, K, chosen[name].effort),  # type: ignore[misc]
                    self._queries,
                    batch,
                    self._round_s,
                )
                for name in chosen
            }
            measured = interleave(works, unit="query", rounds=self._options.rounds)
            for name in chosen:
                columns[name].append(1000 / measured.median_ms(name))
            targets.append(
                self._ratio(
                    f"recall {recall:.2f}, batch {batch}: query ÷ FAISS's", measured, at_most=_LEAST[batch]
                )
            )
        rows: list[tuple[str | float, ...]] = [
            (name, _described(by_name[name].way, found), found.recall, *columns[name])
            for name, found in chosen.items()
        ]
        heads = ("", "effort", f"recall@{K}", *(f"queries/s, batch {batch}" for batch in BATCHES))
        return Table(f"{self._title}: recall {recall:.2f}", heads, tuple(rows)), targets

    def filters(self) -> tuple[list[Table], list[Target]]:
        """Searches among a range of ids, with the recall held."""
        rows, targets = [], []
        batch = 100
        queries = (self._tuning[:200], self._queries[:batch])
        for share in SELECTIVITIES[1:2] if self._options.is_smoke else SELECTIVITIES:
            num = max(K, round(share * len(self._vectors)))
            start = (len(self._vectors) - num) // 3
            stop = start + num
            true = [_exact(self._vectors[start:stop], part) + start for part in queries]
            works, found = {}, {}
            for one in self._indexes:
                filtered = one.opened.filtered
                if filtered is None:
                    continue
                efforts = one.opened.efforts
                if one.way.library == "hnswlib":  # it has to find as many as the filter leaves out
                    efforts = tuple(min(int(effort / share), len(self._vectors)) for effort in efforts[:10])

                def search(part: np.ndarray, k: int, effort: int, filtered=filtered, start=start, stop=stop):  # type: ignore[no-untyped-def]
                    return filtered(part, k, effort, start, stop)

                choice = _choose(efforts, search, _FILTER_RECALL, queries, (true[0], true[1]))
                if choice is not None:
                    found[one.way.name] = choice
                    works[one.way.name] = _work(
                        lambda part, search=search, choice=choice: search(part, K, choice.effort),  # type: ignore[misc]
                        queries[1],
                        batch,
                        self._round_s,
                    )
            measured = interleave(works, unit="query", rounds=self._options.rounds)
            rows += [
                (f"{share:.1%}", name, _described(WAYS[name], found[name]), found[name].recall, 1000 / measured.median_ms(name))
                for name in works
            ]  # fmt: skip
            targets.append(
                self._ratio(
                    f"ids of {share:.1%}, batch {batch}: query ÷ best peer's",
                    measured,
                    at_most=0.5,
                    peers=None,
                )
            )
        heads = ("ids allowed", "", "effort", f"recall@{K}", f"queries/s, batch {batch}")
        return [Table(f"{self._title}: a range of ids, recall {_FILTER_RECALL}", heads, tuple(rows))], targets

    def _ratio(self, what: str, measured: Measured, *, at_most: float, peers: str | None = FAISS) -> Target:
        """The fastest of ours next to the fastest of `peers` (None: of all others)."""
        ours = [name for name in measured.rounds if WAYS[name].library == OURS]
        others = [name for name in measured.rounds if WAYS[name].library == peers] if peers else [
            name for name in measured.rounds if name not in ours
        ]  # fmt: skip
        one, other = (min(names, key=measured.median_ms) for names in (ours, others))
        return Target(
            f"index: {self._title}: {what}", measured.ratios(one, other), at_most=at_most, is_guarded=self._options.is_smoke,
            remark=f"{one} next to {other}",
        )  # fmt: skip


def _exact(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The K nearest: int64 [n, K]."""
    with matrix_product_from(1, len(queries)):
        return np.asarray(faiss.knn(np.ascontiguousarray(queries), np.ascontiguousarray(vectors), K)[1])


def _recall(found: np.ndarray, true: np.ndarray) -> float:
    return float((found[:, :, None] == true[:, None, :]).any(axis=1).mean())


def _choose(
    efforts: tuple[int, ...],
    search: Callable[[np.ndarray, int, int], np.ndarray],
    recall: float,
    queries: tuple[np.ndarray, np.ndarray],
    true: tuple[np.ndarray, np.ndarray],
) -> _Chosen | None:
    """The smallest effort that reaches the recall on the first queries, and its recall on the others; None if none."""
    low, high = 0, len(efforts)
    while low < high:
        middle = (low + high) // 2
        if _recall(search(queries[0], K, efforts[middle]), true[0]) >= recall:
            high = middle
        else:
            low = middle + 1
    if high == len(efforts):
        return None
    return _Chosen(efforts[high], _recall(search(queries[1], K, efforts[high]), true[1]))


def _work(
    search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, batch: int, seconds: float
) -> Callable[[], float]:
    """A contender: as many batches of the queries as take about so many seconds."""
    parts = [queries[start : start + batch] for start in range(0, len(queries) - batch + 1, batch)]
    start = time.perf_counter()
    search(parts[0])
    wanted = seconds / max(time.perf_counter() - start, 1e-6)
    times = max(1, min(int(wanted), 2000))

    def run() -> float:
        for number in range(times):
            search(parts[number % len(parts)])
        return float(times * batch)

    return run


def _described(way: Way, chosen: _Chosen) -> str:
    return f"{way.parameter} {chosen.effort}" if way.parameter else ""
