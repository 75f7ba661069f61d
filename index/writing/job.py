"""Build an index in stages of pieces (`index.base.pieces`), so that a killed build resumes.

plan     rows sorted by (label, id) and cut into shards; the fingerprint of everything that decides the result names the
         attempt's folder, so that the same command finds a killed attempt
embed    ranges of positions, cut at fixed batch boundaries, become pieces (only where vectors are computed)
write    shards: vectors by position, from the pieces or the user's file
train    the part that all shards share, on a sample (for kinds that train)
add      each shard's FAISS index (kinds that have one)
publish  every file is read once more, then renamed in one step

No process keeps more than `memory_mb` of vectors in memory, except for the FAISS index of one shard.
"""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from index import changes, kinds, versions
from index.base import files, object_cache
from index.base.errors import FslDistError, RequestError, VersionError
from index.base.files import Owner
from index.base.pieces import Progress, Spread, do_here, fingerprint_of
from index.base.settings import dump
from index.config import IndexConfig
from index.vectors import check_directions, check_vectors, sort_rows
from index.writing.build import SUM_ROWS, Staging

logger = logging.getLogger(__name__)

Work = Callable[[int], None]
"""Does the piece of a stage with this number."""

PLAN_FILE = "plan.json"
_ROWS = "rows.npy"  # int64 [n]: the source's number of the vector at each position
# Batches per piece: few enough that a kill loses little, many enough that starting a piece costs little.
_BATCHES_A_PIECE = 32
_PIECE_BYTES = 1 << 26
_MISSING = "missing"  # in a piece's note: positions in it without their own vector
_NUM_NAMED = 5  # ids that a warning names
_FORMAT = 1  # increased when the same plan would give other bytes
# Settings that change when and where work is done and what is kept afterwards, but not the result.
_NOT_DECISIVE = ("keep_versions", "memory_mb", "device")


class Embed(Protocol):
    """Computes vectors; pickled to the processes that do it."""

    batch_size: int
    """Vectors are computed in batches cut every so many positions."""

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """float32 [n, dim] of ids int64 [n]; n is a multiple of batch_size, but at the end."""
        ...

    def are_missing(self, ids: np.ndarray) -> np.ndarray:
        """bool [n]: which of ids int64 [n], computed before, have no vector; they are left out of the index."""
        ...


class Vectors(Protocol):
    """Where finished vectors are read from; pickled to the processes that do it."""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors float32 [stop - start, dim] at these positions, and their numbers for the user, int64."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A build before it starts."""

    out: Path
    labels: np.ndarray
    """int64 [n], of the rows in any order."""
    ids: np.ndarray
    """int64 [n], unique."""
    dim: int
    config: IndexConfig
    source: Mapping[str, str]
    """Origin of the vectors, for the manifest."""
    identity: Mapping[str, str]
    """Everything that decides the vectors and labels, by its user-visible name;
    with the settings it gives the fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the files: equal fingerprints, equal bytes."""
        decisive = {name: value for name, value in dump(self.config).items() if name not in _NOT_DECISIVE}
        return fingerprint_of(
            {
                "format": _FORMAT,
                "config": decisive,
                "source": dict(self.source),
                "identity": dict(self.identity),
            }
        )

    @property
    def token(self) -> str:
        """Name of the attempt's folder."""
        return f"build-{self.fingerprint[:16]}"

    @property
    def rows_at_once(self) -> int:
        """Rows per block of a process; with the copy that is written they need half of memory_mb."""
        fitting = self.config.memory_mb * 1_000_000 // (16 * self.dim)
        return max(1, fitting // SUM_ROWS) * SUM_ROWS


def run(
    plan: Plan,
    *,
    embed: Embed | None = None,
    open_vectors: Callable[[Staging], Vectors] | None = None,
    spread: Spread = do_here,
    progress: Progress | None = None,
    switch: Callable[[Path, int], None] = changes.make_current,
) -> Path:
    """Build an index, or resume building it, and publish it; return the version's folder.

    Vectors are computed by `embed`, or read from the result of `open_vectors`. `switch` makes a version current. A
    build that was already published is made current, if it is not, and is not repeated. Raises StaleOwnerError if
    another builder has taken over, RequestError for invalid vectors (the attempt is removed), FslDistError if the
    disk fails (the attempt is kept).
    """
    kinds.check(plan.config, plan.dim, len(plan.ids))
    plan = dataclasses.replace(plan, out=object_cache.working_folder(plan.out))
    order = sort_rows(plan.labels, plan.ids)
    owner = Owner.claim(plan.out)
    staging = Staging.at(plan.out, plan.token, owner)
    try:
        published = _find_published(plan.out, plan.fingerprint, switch)
        if published is not None:
            files.remove_folder(staging.folder)
            return published
        job = _Job(plan, Staging.resume(plan.out, plan.token, owner), order, spread, progress, switch)
        if embed is not None:
            return job.finish(job.embed(embed))
        assert open_vectors is not None
        files.write_array(staging.path_of(_ROWS), order)
        return job.finish(open_vectors(staging))
    except (FslDistError, OSError) as error:
        # A newer builder works in the same folder: that explains the failure better, and the folder belongs to it.
        owner.check()
        if isinstance(error, RequestError):
            files.remove_folder(staging.folder)
        if not isinstance(error, OSError):
            raise
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise FslDistError(
            f"building {plan.out} stopped: {reason}; the published version is unchanged, and the same command "
            "resumes with the pieces that are finished"
        ) from error


def rows_path(staging: Staging) -> Path:
    """File of int64 [n]: the row of the user's file at each position."""
    return staging.path_of(_ROWS)


def _find_published(out: Path, fingerprint: str, switch: Callable[[Path, int], None]) -> Path | None:
    """Find the published version of this very build and make it current; None if there is no intact one."""
    for version in reversed(versions.list_versions(out)):
        folder = out / versions.VERSIONS / versions.version_name(version)
        try:
            manifest = versions.read_manifest(folder)
            if manifest.fingerprint != fingerprint:
                continue
            versions.check_files(folder, manifest, verify=True)
        except VersionError as error:
            logger.warning("%s", error)
            continue
        logger.info("%s: version %d is already this build", out, version)
        if not files.exists(out / versions.CURRENT) or versions.current_version(out) != version:
            switch(out, version)
        return folder
    return None


class _Job:
    """One build, stage by stage."""

    def __init__(
        self,
        plan: Plan,
        staging: Staging,
        order: np.ndarray,
        spread: Spread,
        progress: Progress | None,
        switch: Callable[[Path, int], None],
    ) -> None:
        self.plan = plan
        self.staging = staging
        self.order = order
        self.spread = spread
        self.progress = progress
        self.switch = switch
        self.is_whole = True
        bounds = np.arange(plan.config.shards + 1) * len(order) // plan.config.shards
        self.bounds: tuple[int, ...] = tuple(bounds.tolist())
        self._write_plan(0)

    def embed(self, embed: Embed) -> Vectors:
        """Compute the vectors, piece by piece."""
        batches = min(_BATCHES_A_PIECE, _PIECE_BYTES // (4 * self.plan.dim * embed.batch_size))
        rows = max(1, batches) * embed.batch_size
        names = [_piece_name(number) for number in range(-(-len(self.order) // rows))]
        self._write_plan(len(names))
        files.write_array(self.staging.path_of(_ROWS), self.plan.ids[self.order])
        # Once every shard is written, the pieces have done their part.
        if not all(map(self.staging.has, self._shard_names())):
            self._do("embed", _EmbedPiece(self.staging, embed, rows, self.plan.dim), names)
        return self._without_missing(PieceVectors(self.staging, rows), names)

    def _without_missing(self, pieces: "PieceVectors", names: Sequence[str]) -> "PieceVectors":
        """The pieces without the rows that have no vector; the plan then leaves these rows out too."""
        missing = [
            number * pieces.rows + position
            for number, name in enumerate(names)
            for position in (self.staging.facts_of(name) or {}).get(_MISSING, ())
        ]
        if not missing:
            return pieces
        kept = np.delete(np.arange(len(self.order)), missing)
        if not len(kept):
            raise FslDistError(f"none of the {len(missing)} vectors of {self.plan.out} could be computed")
        logger.warning(
            "%d of %d rows have no vector and are left out of %s: ids %s%s",
            len(missing),
            len(self.order),
            self.plan.out,
            ", ".join(map(str, self.plan.ids[self.order[missing[:_NUM_NAMED]]])),
            ", …" if len(missing) > _NUM_NAMED else "",
        )
        self.order = self.order[kept]
        self.is_whole = False
        bounds = np.arange(self.plan.config.shards + 1) * len(kept) // self.plan.config.shards
        self.bounds = tuple(bounds.tolist())
        return dataclasses.replace(pieces, kept=kept)

    def finish(self, vectors: Vectors) -> Path:
        """All stages after the vectors are available."""
        plan, staging = self.plan, self.staging
        write = _WriteShard(staging, vectors, self.bounds, plan.dim, plan.rows_at_once, plan.config.metric)
        self._do("write", write, self._shard_names())
        staging.train(plan.config)
        if kinds.needs_files(plan.config):
            names = [versions.faiss_name(shard) for shard in range(plan.config.shards)]
            self._do("add", _AddShard(staging, plan.config), names)
        return staging.publish(
            plan.labels[self.order],
            plan.ids[self.order],
            plan.config,
            plan.source,
            # Without a fingerprint the same command builds again: the missing vectors may have been restored since.
            fingerprint=plan.fingerprint if self.is_whole else "",
            verify=True,
            switch=self.switch,
        )

    def _do(self, stage: str, work: Work, names: Sequence[str]) -> None:
        """Do the pieces of a stage that are missing; their numbers are their positions in `names`."""
        pieces = {name: number for number, name in enumerate(names)}
        self.staging.do_missing(stage, work, pieces, spread=self.spread, progress=self.progress)

    def _shard_names(self) -> list[str]:
        return [versions.shard_name(shard) for shard in range(self.plan.config.shards)]

    def _write_plan(self, num_pieces: int) -> None:
        about = {
            "num_vectors": len(self.order),
            "dim": self.plan.dim,
            "pieces": num_pieces,
            "shards": self.plan.config.shards,
            "kind": self.plan.config.kind,
            "source": dict(self.plan.source),
        }
        self.staging.check_owner()
        files.write_atomic(self.staging.path_of(PLAN_FILE), json.dumps(about).encode())


def _piece_name(number: int) -> str:
    return f"piece-{number:06d}.npy"


@dataclass(frozen=True, slots=True)
class PieceVectors:
    """Vectors in the pieces of an attempt, each `rows` positions long."""

    staging: Staging
    rows: int
    kept: np.ndarray | None = None
    """int64 [n]: the positions that are in the index, ascending; None: all"""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the vectors float32 [stop - start, dim] at these of the kept positions,
        and their original positions."""
        if self.kept is None:
            return self._read_all(start, stop), np.arange(start, stop)
        positions = self.kept[start:stop]
        if not len(positions):
            return self._read_all(0, 1)[:0], positions
        first = int(positions[0])
        return self._read_all(first, int(positions[-1]) + 1)[positions - first], positions

    def _read_all(self, start: int, stop: int) -> np.ndarray:
        parts = []
        for number in range(start // self.rows, -(-stop // self.rows)):
            piece = files.open_array(self.staging.path_of(_piece_name(number)))
            first = number * self.rows
            parts.append(np.array(piece[max(start - first, 0) : stop - first]))
        return np.concatenate(parts)


@dataclass(frozen=True, slots=True)
class _EmbedPiece:
    staging: Staging
    compute: Embed
    rows: int
    dim: int

    def __call__(self, number: int) -> None:
        ids = files.open_array(self.staging.path_of(_ROWS))
        ids = np.array(ids[number * self.rows : (number + 1) * self.rows])
        vectors = self.compute(ids)
        check_vectors(vectors, "embeddings", self.dim, rows=ids)
        missing = np.flatnonzero(self.compute.are_missing(ids)).tolist()
        facts = {_MISSING: missing} if missing else {}
        self.staging.write_vectors(_piece_name(number), vectors.shape, [vectors], facts)


@dataclass(frozen=True, slots=True)
class _WriteShard:
    staging: Staging
    vectors: Vectors
    bounds: tuple[int, ...]
    dim: int
    rows_at_once: int
    metric: str

    def __call__(self, number: int) -> None:
        start, stop = self.bounds[number : number + 2]
        self.staging.write_vectors(
            versions.shard_name(number), (stop - start, self.dim), self._blocks(start, stop)
        )

    def _blocks(self, start: int, stop: int) -> Iterator[np.ndarray]:
        for first in range(start, stop, self.rows_at_once):
            vectors, rows = self.vectors.read(first, min(first + self.rows_at_once, stop))
            if self.metric == "cosine":
                check_directions(vectors, "vectors", rows)
            yield vectors


@dataclass(frozen=True, slots=True)
class _AddShard:
    staging: Staging
    config: IndexConfig

    def __call__(self, number: int) -> None:
        self.staging.add(number, self.config)
