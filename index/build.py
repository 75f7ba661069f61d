"""Building an index: vectors, labels and ids in, a published version out.

`build` does it in one process. `Staging` is the same in steps, for workers that write shards side by side: one
process creates it, each worker opens it by path and writes its shards, one publishes.
"""

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index import kinds, storage, versions
from index.config import IndexConfig
from index.errors import RequestError, VersionError
from index.storage import Owner

# Squares of larger norms leave float32's range, and the search would lose such rows without a word.
MAX_NORM = 1e18
_FACTS = ".facts.json"
_TOKEN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")


def check_vectors(vectors: np.ndarray, name: str, dim: int | None = None) -> None:
    """Refuse what is not a finite float32 [n, dim] array; `name` is named in errors (RequestError)."""
    if vectors.ndim != 2 or vectors.shape[1] < 1:
        raise RequestError(f"{name} has shape {list(vectors.shape)}; it must be [n, dim]")
    if dim is not None and vectors.shape[1] != dim:
        raise RequestError(f"{name} has dim={vectors.shape[1]}; the index holds vectors of dim={dim}")
    if vectors.dtype != np.float32:
        raise RequestError(
            f"{name} has dtype {vectors.dtype}; it must be float32 (convert it with .astype('float32'))"
        )
    rows_at_once = max(1, (1 << 22) // vectors.shape[1])
    limit = MAX_NORM / np.sqrt(vectors.shape[1])
    for start in range(0, len(vectors), rows_at_once):
        # max() of absolute values is NaN or inf where any of them is, and both fail the comparison.
        largest = np.abs(vectors[start : start + rows_at_once]).max(axis=1)
        if not (largest <= limit).all():
            row = start + int(np.argmin(largest <= limit))
            what = (
                "a norm near 1e18 or above" if np.isfinite(vectors[row]).all() else "a NaN or infinite number"
            )
            raise RequestError(f"{name} row {row} holds {what}; every vector must be finite")


def unit_vectors(vectors: np.ndarray, name: str) -> np.ndarray:
    """float32 [n, dim] divided by their lengths; a vector of zeros has no direction (RequestError, naming the row)."""
    units = np.empty(vectors.shape, dtype=np.float32)
    rows_at_once = max(1, (1 << 20) // vectors.shape[1])
    for start in range(0, len(vectors), rows_at_once):
        part = vectors[start : start + rows_at_once].astype(np.float64)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        if not norms.all():
            row = start + int(np.argmin(norms))
            raise RequestError(
                f"{name} row {row} is all zeros and has no direction; metric=cosine needs one (metric=l2)"
            )
        units[start : start + rows_at_once] = part / norms
    return units


def check_column(column: np.ndarray, name: str, length: int) -> None:
    """Refuse what is not an int64 [length] array (RequestError)."""
    if column.shape != (length,):
        raise RequestError(
            f"{name} has shape {list(column.shape)}; it must be [{length}], one for each vector"
        )
    if column.dtype != np.int64:
        raise RequestError(
            f"{name} has dtype {column.dtype}; it must be int64 (convert it with .astype('int64'))"
        )


def build(
    out: Path,
    vectors: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray | None = None,
    config: IndexConfig | None = None,
    source: Mapping[str, str] | None = None,
    owner: Owner | None = None,
) -> Path:
    """Build an index at `out` and publish it as its next version; returns the version's folder.

    vectors: float32 [n, dim], an array or memory map, in any order; labels: int64 [n], at least 0;
    ids: int64 [n], unique and at least 0 (default: row numbers). `source` names where the vectors came from;
    a stale `owner` is refused before anything is published. Raises RequestError for input that does not fit.
    """
    config = config or IndexConfig()
    check_vectors(vectors, "vectors")
    check_column(labels, "labels", len(vectors))
    if ids is None:
        ids = np.arange(len(vectors), dtype=np.int64)
    check_column(ids, "ids", len(vectors))
    if len(vectors) == 0:
        raise RequestError("vectors has no rows; an index needs at least one")
    if config.metric == "cosine":
        vectors = unit_vectors(vectors, "vectors")
    order = np.lexsort((ids, labels))
    labels, ids = labels[order], ids[order]
    _check_order(labels, ids)
    staging = Staging.create(out, f"build-{storage.new_token()}", owner)
    try:
        for shard in range(config.shards):
            start, stop = (len(order) * r // config.shards for r in (shard, shard + 1))
            staging.write_shard(shard, vectors[order[start:stop]])
        return staging.publish(labels, ids, config, source or {})
    except BaseException:
        storage.remove_folder(staging.folder)
        raise


@dataclass(frozen=True, slots=True)
class Staging:
    """A version being written, re-openable by path and token from other processes (or pickled to them)."""

    out: Path
    """Folder of the index."""

    token: str
    """Name of this attempt: letters, digits, '.', '_', '-'."""

    owner: Owner | None = None
    """Claim that every write checks; None does not fence."""

    @property
    def folder(self) -> Path:
        """Where the files lie until they are published."""
        return self.out / versions.STAGING / self.token

    @classmethod
    def create(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """Start an attempt with an empty folder; what an earlier attempt of this token left is removed."""
        if not _TOKEN.match(token):
            raise RequestError(f"staging token '{token}' must be made of letters, digits, '.', '_' and '-'")
        staging = cls(out, token, owner)
        staging._check_owner()
        storage.remove_stale_staging(out / versions.STAGING, keep=(token,))
        storage.create_folder(staging.folder)
        return staging

    @classmethod
    def open(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """Open an attempt that another process created. Raises VersionError where there is none."""
        staging = cls(out, token, owner)
        if not staging.folder.is_dir():
            raise VersionError(f"{staging.folder} is not there; it was published, removed or never created")
        return staging

    def write_shard(self, shard: int, vectors: np.ndarray) -> None:
        """Write shard number `shard`, from 0: float32 [rows, dim], the shard-th range of the sorted rows.

        Rows may be none. Writing a shard again replaces it. Its sum and checksum are written beside it, so that
        publishing reads no vector again.
        """
        check_vectors(vectors, f"shard {shard}")
        self._check_owner()
        path = self.folder / versions.shard_name(shard)
        storage.write_array(path, np.ascontiguousarray(vectors))
        facts = {
            "num_vectors": len(vectors),
            "dim": vectors.shape[1],
            "total": vectors.sum(axis=0, dtype=np.float64).tolist(),
            "crc32": storage.crc32_of_file(path),
        }
        self._check_owner()
        storage.write_atomic(self._facts_path(shard), json.dumps(facts).encode())

    def publish(
        self,
        labels: np.ndarray,
        ids: np.ndarray,
        config: IndexConfig,
        source: Mapping[str, str],
        owner: Owner | None = None,
    ) -> Path:
        """Publish the shards written so far as the next version, in one step; returns its folder.

        labels, ids: int64 [num_vectors] of the rows of all shards in order, sorted by (label, id). There are as
        many shards as were written, whatever config.shards says. Raises VersionError when a shard is missing,
        RequestError when labels or ids do not fit, StaleOwnerError when another process has taken over.
        """
        numbers = self._list_shards()
        facts = [self._read_facts(shard) for shard in numbers]
        dims = {int(f["dim"]) for f in facts}
        if len(dims) > 1:
            raise RequestError(f"shards of {self.folder} have different dims: {sorted(dims)}")
        counts = np.array([int(f["num_vectors"]) for f in facts])
        num_vectors = int(counts.sum())
        if num_vectors == 0:
            raise RequestError(f"no shard of {self.folder} holds a vector; an index needs at least one")
        check_column(labels, "labels", num_vectors)
        check_column(ids, "ids", num_vectors)
        _check_order(labels, ids)
        storage.write_array(self.folder / versions.LABELS, labels)
        names = [versions.shard_name(r) for r in numbers]
        crcs = {name: int(f["crc32"]) for name, f in zip(names, facts, strict=True)}
        crcs[versions.LABELS] = storage.crc32_of_file(self.folder / versions.LABELS)
        is_range = bool((ids == ids[0] + np.arange(num_vectors)).all())
        if not is_range:
            storage.write_array(self.folder / versions.IDS, ids)
            crcs[versions.IDS] = storage.crc32_of_file(self.folder / versions.IDS)
        if config.kind != "flat":
            crcs |= self._write_faiss(numbers, num_vectors, config)
        mean = np.sum([f["total"] for f in facts], axis=0) / num_vectors
        manifest = versions.Manifest(
            format=versions.FORMAT,
            version=0,
            kind=config.kind,
            factory=kinds.factory_of(config, next(iter(dims)), num_vectors),
            parameters=kinds.parameters_of(config, next(iter(dims)), num_vectors),
            metric=config.metric,
            dim=dims.pop(),
            num_vectors=num_vectors,
            mean=tuple(mean.tolist()) if config.metric == "l2" else None,
            shard_starts=tuple((np.cumsum(counts) - counts).tolist()),
            ids_offset=int(ids[0]) if is_range else None,
            files={name: self._record(name, crc) for name, crc in crcs.items()},
            source=dict(source),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        for claim in (self.owner, owner):
            if claim is not None:
                claim.check()
        for shard in numbers:
            self._facts_path(shard).unlink()
        return versions.publish_version(self.out, self.folder, manifest, config.keep_versions)

    def _write_faiss(self, shards: range, num_vectors: int, config: IndexConfig) -> dict[str, int]:
        """Train and fill the FAISS index of every shard; names and checksums of the files."""
        arrays = [storage.open_array(self.folder / versions.shard_name(r)) for r in shards]
        dim = arrays[0].shape[1]
        kinds.check(config, dim, num_vectors)
        size = kinds.sample_size(config, dim, num_vectors)
        drawn = np.sort(np.random.default_rng(0).choice(num_vectors, size, replace=False))
        starts = np.cumsum([0, *(len(a) for a in arrays)])
        sample = np.concatenate(
            [a[drawn[(drawn >= s) & (drawn < s + len(a))] - s] for a, s in zip(arrays, starts, strict=False)]
        )
        trained = kinds.train(sample, num_vectors, config)
        written = {versions.QUANTIZER: trained} if trained else {}
        crcs = {}
        for name, make in [
            *((name, lambda: trained) for name in written),
            *((versions.faiss_name(r), lambda r=r: kinds.add(trained, arrays[r], config)) for r in shards),
        ]:
            storage.write_atomic(self.folder / name, make())
            crcs[name] = storage.crc32_of_file(self.folder / name)
        return crcs

    def _facts_path(self, shard: int) -> Path:
        return self.folder / f"{versions.shard_name(shard)}{_FACTS}"

    def _list_shards(self) -> range:
        names = [name for name in storage.list_folder(self.folder) if name.endswith(_FACTS)]
        for shard, name in enumerate(names):
            if name != self._facts_path(shard).name:
                raise VersionError(
                    f"shard {shard} was not written to {self.folder}; write it before publishing"
                )
        return range(len(names))

    def _read_facts(self, shard: int) -> dict[str, Any]:
        return json.loads(storage.read_text(self._facts_path(shard)))

    def _record(self, name: str, crc32: int) -> versions.FileRecord:
        return versions.FileRecord(size_bytes=(self.folder / name).stat().st_size, crc32=crc32)

    def _check_owner(self) -> None:
        if self.owner is not None:
            self.owner.check()


def _check_order(labels: np.ndarray, ids: np.ndarray) -> None:
    if len(labels) and (labels[0] < 0 or ids.min() < 0):
        raise RequestError("labels and ids must be at least 0 (-1 marks a missing neighbour)")
    rises = (labels[1:] > labels[:-1]) | ((labels[1:] == labels[:-1]) & (ids[1:] > ids[:-1]))
    ordered = np.sort(ids)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(repeated):
        raise RequestError(f"id {repeated[0]} is given to more than one vector; ids must be unique")
    if not rises.all():
        raise RequestError(
            f"row {int(np.argmin(rises)) + 1} breaks the order: rows must be sorted by (label, id)"
        )
