"""One trial of an index sweep: built, measured with every combination of the search parameters, and removed again.

The true neighbours are the same for all builds of a sweep: the first trial finds them, and they are stored in its
folder.
"""

import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import kinds, versions
from index.base.errors import ConfigError, FslDistError, RequestError, StaleOwnerError, VersionError
from index.base.files import Owner, pack_arrays, remove_folder, unpack_arrays, write_array, write_atomic
from index.base.settings import validate
from index.config import IndexConfig
from index.search import LocalIndex, open_index
from index.tune import Measurer, Truth, find_truth
from index.writing.vector_files import ParquetVectors, build_from_files, check_file, identify, is_parquet
from tune.index_sweeps.config import FileIndexConfig, IndexSweepConfig
from tune.records import Cell, Result, Trial, read_evaluation, write_evaluation
from tune.space import Point

ERROR_FILE = "error.txt"
TRUTH_FILE = "true-neighbours.npz"
LABELS_FILE = "labels.npy"
_STARTS_FILE = "starts"
_MOST_STARTS = 3
"""maximum number of starts of a trial that kills the process"""
_LEAST_S = 0.2
"""seconds that searches with one setting are repeated for"""
_LEAST_A_CLUSTER = 39
"""vectors; with fewer FAISS calls a clustering badly founded"""


@dataclass(frozen=True, slots=True)
class SearchCell:
    """The measurements of one build with one setting of its search parameters."""

    parameters: dict[str, int]
    recall: float
    """share of the true neighbours found, 0 to 1"""
    ms: float
    """milliseconds a query"""
    bytes: float
    """bytes per vector that searches keep in memory"""


def shape_of(index: FileIndexConfig) -> tuple[int, int]:
    """(vectors, numbers in each) of an index's file. Raises RequestError for one that cannot be read."""
    path = Path(index.vectors)
    if not path.is_file():
        raise RequestError(f"index.vectors={index.vectors} is not a file (embed(out=FILE) writes one)")
    if is_parquet(path):
        table = ParquetVectors.open(path)
        return table.num_vectors, table.dim
    return check_file(path)


def check_point(config: IndexSweepConfig, point: Point, folder: Path) -> IndexConfig:
    """The index of a point; RequestError (ConfigError) where its settings or the vectors refuse it. Builds nothing."""
    settings = config.trial_config(point)
    num, dim = shape_of(config.index)
    kinds.check(settings, dim, num)
    if settings.nlist * _LEAST_A_CLUSTER > num:
        raise ConfigError(
            f"index.nlist={settings.nlist} makes clusters of fewer than {_LEAST_A_CLUSTER} of {num} vectors, too "
            f"few to find their centres (at most {max(1, num // _LEAST_A_CLUSTER)}, or 0 for the rule)"
        )
    return settings


def run_trial(config: IndexSweepConfig, trial: Trial, owner: Owner) -> Result:
    """Build a trial's index, or resume building it, and measure it;
    return the result, also for an error of the trial itself.

    Raises RequestError for vectors that no index accepts, StaleOwnerError if another process drives the sweep.
    """
    started = time.perf_counter()
    out, built_s = trial.folder / "index", 0.0
    if _count_start(trial.folder) > _MOST_STARTS:
        (trial.folder / _STARTS_FILE).unlink()  # retry_failed=True starts counting again
        return Result(
            state="failed", error=f"cut off {_MOST_STARTS} times before its end: was the memory enough?"
        )
    try:
        truth = read_truth(config, owner.folder)
        settings = config.trial_config(trial.point)
        labels = config.index.labels or str(owner.folder / LABELS_FILE)
        build_from_files(out, Path(config.index.vectors), labels, None, settings)
        built_s = time.perf_counter() - started
        index = open_index(out, verify=False, device=settings.device)
        truth = truth or _search_truth(config, index, owner)
        began = time.perf_counter()
        cells = measure(config, index, truth)
        measured_s = time.perf_counter() - began
    except ConfigError as error:
        # What only building shows, such as too few vectors for the codes.
        result = Result(state="pruned", error=_one_line(str(error)))
    except (RequestError, StaleOwnerError):
        raise
    except Exception as error:
        (trial.folder / ERROR_FILE).write_text(traceback.format_exc(), encoding="utf-8")
        words = str(error) if isinstance(error, FslDistError) else f"{type(error).__name__}: {error}"
        seconds = built_s or time.perf_counter() - started
        result = Result(state="failed", train_s=seconds, error=_one_line(words))
    else:
        best = best_cell(config, cells)
        value = None if best is None else float(getattr(best, config.metric))
        result = Result(state="finished", value=value, train_s=built_s, evaluate_s=measured_s)
        write_cells(trial.folder, cells)
    owner.check()
    remove_folder(out)  # with its raw vectors it is as large as the file it was made of
    return result


def measure(config: IndexSweepConfig, index: LocalIndex, truth: Truth) -> list[SearchCell]:
    """Every combination of the search parameters on one index, in the order of the grid."""
    measurer = Measurer(index, truth, at_once=config.at_once, least_s=_LEAST_S)
    return [
        SearchCell(
            found.parameters, found.recall, 1e3 * found.seconds, bytes_a_vector(index, found.parameters)
        )
        for found in map(
            measurer, config.search_settings(index.parameters, index.manifest.kind, index.num_clusters)
        )
    ]


def bytes_a_vector(index: LocalIndex, parameters: dict[str, int]) -> float:
    """Bytes that searches with these parameters read per vector: FAISS's index, and the vectors if all are compared.

    Otherwise the raw vectors on disk, which rank the candidates, are additional: 4 · dim bytes for every kind.
    """
    manifest = index.manifest
    names = [versions.faiss_name(shard) for shard in range(len(manifest.shard_starts))]
    held = sum(manifest.files[name].size_bytes for name in names if name in manifest.files)
    return held / manifest.num_vectors + (4.0 * manifest.dim if index.compares_all(parameters) else 0.0)


def best_cell(config: IndexSweepConfig, cells: Sequence[SearchCell]) -> SearchCell | None:
    """The search parameters that a build is compared by:
    among those that count, the best by the metric, then the fastest."""
    counting = [cell for cell in cells if config.is_enough(cell.recall, cell.ms)]
    sign = -1.0 if config.mode == "max" else 1.0
    return min(counting, key=lambda cell: (sign * getattr(cell, config.metric), cell.ms), default=None)


def read_cells(folder: Path) -> list[SearchCell]:
    """The measurements of a trial; empty if there are none."""
    try:
        return [
            validate(SearchCell, {"parameters": cell.settings, **cell.metrics}, str(folder))
            for cell in read_evaluation(folder)
        ]
    except ConfigError as error:
        raise VersionError(f"the scores of {folder} are damaged: {error}") from None


def write_cells(folder: Path, cells: list[SearchCell]) -> None:
    """Write the measurements of a trial, in the form of scores."""
    scored = [
        Cell(dict(cell.parameters), {"recall": cell.recall, "ms": cell.ms, "bytes": cell.bytes})
        for cell in cells
    ]
    write_evaluation(folder, "", scored)


def write_labels(config: IndexSweepConfig, folder: Path) -> None:
    """If no labels are set, write a file of one class for all: builds, and the command that repeats them, need one."""
    if not config.index.labels and not (folder / LABELS_FILE).is_file():
        num, _ = shape_of(config.index)
        write_array(folder / LABELS_FILE, np.zeros(num, dtype=np.int64))


def read_truth(config: IndexSweepConfig, folder: Path) -> Truth | None:
    """The true neighbours in a sweep's folder; None if none were searched yet.

    Raises RequestError if the vectors or their labels were changed since: their neighbours may differ.
    """
    path, identity = folder / TRUTH_FILE, _identity_of(config)
    if not path.is_file():
        return None
    held = unpack_arrays(path)
    if set(held) != {"identity", "positions", "k", "last", "num_true"}:
        raise VersionError(
            f"{path} is damaged: it contains {sorted(held)} (remove it to search for them again)"
        )
    if str(held["identity"]) != identity:
        raise RequestError(
            f"index.vectors={config.index.vectors} or its labels were changed since the sweep started: now {identity}, "
            f"then {held['identity']} (a sweep in a new dir measures the new vectors)"
        )
    return Truth(held["positions"], int(held["k"]), held["last"], int(held["num_true"]))


def _search_truth(config: IndexSweepConfig, index: LocalIndex, owner: Owner) -> Truth:
    """Search for the true neighbours, for all trials to come."""
    truth = find_truth(index, config.k, config.sample, config.seed)
    packed = pack_arrays(
        identity=np.array(_identity_of(config)),
        positions=truth.positions,
        k=np.array(truth.k),
        last=truth.last,
        num_true=np.array(truth.num_true),
    )
    owner.check()
    write_atomic(owner.folder / TRUTH_FILE, packed)
    return truth


def _identity_of(config: IndexSweepConfig) -> str:
    """The identity of the sweep's vectors and labels, by which a change is detected."""
    files = [Path(name) for name in (config.index.vectors, config.index.labels) if Path(name).is_file()]
    return "; ".join(map(identify, files))


def _count_start(folder: Path) -> int:
    """Count a start of a trial; return the number of starts, including this one."""
    path = folder / _STARTS_FILE
    number = 1 + (len(path.read_bytes()) if path.is_file() else 0)
    write_atomic(path, b"." * number)
    return number


def _one_line(text: str) -> str:
    return " ".join(text.split())
