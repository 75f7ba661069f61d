"""Build an index: vectors, labels and ids are published as a version.

`build` does it in one process, from arrays in memory. `Staging` does it in steps, for workers that write shards
concurrently: one process creates it, each worker opens it by path and writes its shards, one process publishes.
`index.writing.job` runs the same steps for data that does not fit in memory, and resumes after a kill.
"""

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import kinds, publishing, versions
from index.base import files, object_cache
from index.base.errors import RequestError, VersionError
from index.base.files import Owner
from index.base.pieces import WorkFolder
from index.base.settings import dump, validate
from index.config import IndexConfig
from index.runtime import faiss
from index.vectors import check_column, check_directions, check_order, check_vectors, sort_rows, unit_vectors

_TOKEN = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
# The mean is summed in blocks of this many rows, so that it does not depend on the number of rows in memory.
SUM_ROWS = 1024
_SAMPLE_SEED = 0
# Settings of the machine that builds, not of the index.
_OF_A_PLACE = ("memory_mb", "device")


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
    order = sort_rows(labels, ids)
    labels, ids = labels[order], ids[order]
    kinds.check(config, vectors.shape[1], len(vectors))
    staging = Staging.create(out, f"build-{files.new_token()}", owner)
    try:
        for shard in range(config.shards):
            start, stop = (len(order) * r // config.shards for r in (shard, shard + 1))
            staging.write_shard(shard, vectors[order[start:stop]], config.metric, order[start:stop])
        return staging.publish(labels, ids, config, source or {})
    except BaseException:
        files.remove_folder(staging.folder)
        raise


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """The recorded facts of a finished file of vectors."""

    crc32: int
    """CRC-32 of the bytes that were written."""

    num_vectors: int
    """Rows of the file."""

    dim: int
    """Numbers in each of them."""

    total: tuple[float, ...]
    """Their sum [dim] in float64."""


@dataclass(frozen=True, slots=True)
class Staging(WorkFolder):
    """A version in progress. Other processes open it by path and token, or get it pickled."""

    @property
    def out(self) -> Path:
        """Folder of the index."""
        return self.folder.parent.parent

    @property
    def version_folder(self) -> Path:
        """The files of the version; publishing renames this folder."""
        return self.folder / "version"

    @classmethod
    def at(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """The attempt `token` (letters, digits, '.', '_', '-') to write the index `out`, whether or not it was started.

        owner: claim that every write checks; None does not fence. Raises RequestError for another token.
        """
        if not _TOKEN.match(token):
            raise RequestError(f"staging token '{token}' must be made of letters, digits, '.', '_' and '-'")
        return cls(object_cache.working_folder(out) / versions.STAGING / token, owner)

    @classmethod
    def create(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """Start an attempt with an empty folder; remains of an earlier attempt with this token are removed."""
        staging = cls.at(out, token, owner)
        staging._prepare()
        files.create_folder(staging.folder)
        staging.version_folder.mkdir()
        return staging

    @classmethod
    def resume(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """Resume an attempt, or start it; intact finished files are kept."""
        staging = cls.at(out, token, owner)
        staging._prepare()
        object_cache.bring(staging.folder)
        staging.version_folder.mkdir(parents=True, exist_ok=True)
        staging.recover()
        return staging

    @classmethod
    def open(cls, out: Path, token: str, owner: Owner | None = None) -> "Staging":
        """Open an attempt that another process created. Raises VersionError if it does not exist."""
        staging = cls.at(out, token, owner)
        if object_cache.place_of(staging.out) is None and not staging.folder.is_dir():
            raise VersionError(f"{staging.folder} is not there; it was published, removed or never created")
        return staging

    def path_of(self, name: str) -> Path:
        """Path of a file of this attempt: in the version's folder if it will be published,
        otherwise next to that folder."""
        return (self.version_folder if versions.is_file_name(name) else self.folder) / name

    def write_shard(
        self, shard: int, vectors: np.ndarray, metric: str = "l2", rows: np.ndarray | None = None
    ) -> None:
        """Write shard number `shard`, from 0: float32 [rows, dim], the shard-th range of the sorted rows.

        Rows may be none. Writing a shard again replaces it. metric=cosine refuses vectors of zeros. Its sum
        and checksum are noted, so that publishing reads no vector again. `rows` as for `check_vectors`.
        """
        name = f"shard {shard}" if rows is None else "vectors"
        check_vectors(vectors, name, rows=rows)
        if metric == "cosine":
            check_directions(vectors, name, rows)
        self.write_vectors(versions.shard_name(shard), vectors.shape, [vectors])

    def write_vectors(
        self,
        name: str,
        shape: tuple[int, ...],
        blocks: Iterable[np.ndarray],
        more: Mapping[str, object] | None = None,
    ) -> None:
        """Write a float32 file of `shape` = [rows, dim] from blocks of its rows, which must be checked already.

        Every block but the last has a multiple of SUM_ROWS rows. more: JSON values to record with the file.
        """
        total = np.zeros(shape[1])

        def summed() -> Iterable[np.ndarray]:
            for block in blocks:
                for start in range(0, len(block), SUM_ROWS):
                    np.add(total, block[start : start + SUM_ROWS].sum(axis=0, dtype=np.float64), out=total)
                yield block

        self.check_owner()
        num, dim = shape
        crc32 = files.write_vectors(self.path_of(name), (num, dim), summed())
        facts = Facts(crc32=crc32, num_vectors=num, dim=dim, total=tuple(total.tolist()))
        self.finish(name, {**dump(facts), **(more or {})}, crc32=crc32)

    def train(self, config: IndexConfig) -> None:
        """Train the part that the shards share, for kinds that have one,
        on a sample that depends only on the number of shards."""
        if not kinds.is_trained(config.kind) or self.has(versions.QUANTIZER):
            return
        facts = self._facts_of_shards()
        counts = [f.num_vectors for f in facts]
        num_vectors = sum(counts)
        size = kinds.sample_size(config, facts[0].dim, num_vectors)
        drawn = np.sort(np.random.default_rng(_SAMPLE_SEED).choice(num_vectors, size, replace=False))
        parts, start = [], 0
        for shard, count in enumerate(counts):
            first, last = np.searchsorted(drawn, [start, start + count])
            vectors = files.open_array(self.path_of(versions.shard_name(shard)))
            drawn_here = vectors[drawn[first:last] - start]
            parts.append(unit_vectors(drawn_here) if config.metric == "cosine" else drawn_here)
            start += count
        trained = kinds.train(np.concatenate(parts), num_vectors, config)
        self.check_owner()
        files.write_atomic(self.path_of(versions.QUANTIZER), trained)
        self.finish(versions.QUANTIZER)

    def add(self, shard: int, config: IndexConfig) -> None:
        """Create the FAISS index of a written shard after training, for kinds that have one."""
        name = versions.faiss_name(shard)
        if not kinds.needs_files(config) or self.has(name):
            return
        quantizer = self.path_of(versions.QUANTIZER)
        trained = quantizer.read_bytes() if kinds.is_trained(config.kind) else b""
        vectors = files.open_array(self.path_of(versions.shard_name(shard)))
        filled = kinds.fill(trained, vectors, config)
        self.check_owner()
        with files.replacing(self.path_of(name)) as file:
            try:
                # By the path: as bytes the index would be in memory twice more.
                faiss.write_index(filled, file.name)
            except RuntimeError as error:
                raise OSError(None, f"FAISS could not write it: {error}") from None
        self.finish(name)

    def publish(
        self,
        labels: np.ndarray,
        ids: np.ndarray,
        config: IndexConfig,
        source: Mapping[str, str],
        owner: Owner | None = None,
        *,
        fingerprint: str = "",
        verify: bool = False,
        switch: Callable[[Path, int], None] = publishing.make_current,
    ) -> Path:
        """Publish the shards written so far as the next version, in one step (`switch`); return its folder.

        labels, ids: int64 [num_vectors] of the rows of all shards in order, sorted by (label, id). The number of
        shards is that of the written ones, whatever config.shards is. Missing training and adding steps are run here.
        `verify` reads every file once more first. Raises VersionError if a shard is missing or damaged, RequestError
        if labels or ids are invalid, StaleOwnerError if another process has taken over.
        """
        object_cache.bring(self.folder)  # files that other machines wrote
        facts = self._facts_of_shards()
        dims = {f.dim for f in facts}
        if len(dims) > 1:
            raise RequestError(f"shards of {self.folder} have different dims: {sorted(dims)}")
        counts = np.array([f.num_vectors for f in facts])
        num_vectors = int(counts.sum())
        if num_vectors == 0:
            raise RequestError(f"no shard of {self.folder} contains a vector; an index needs at least one")
        check_column(labels, "labels", num_vectors)
        check_column(ids, "ids", num_vectors)
        check_order(labels, ids)
        self.train(config)
        for shard in range(len(facts)):
            self.add(shard, config)
        self._write_column(versions.LABELS, labels)
        is_range = bool((ids == ids[0] + np.arange(num_vectors)).all())
        if not is_range:
            self._write_column(versions.IDS, ids)
        mean = np.sum([f.total for f in facts], axis=0) / num_vectors
        dim = dims.pop()
        manifest = versions.Manifest(
            format=versions.FORMAT,
            version=0,
            kind=config.kind,
            factory=kinds.factory_of(config, dim, num_vectors),
            parameters=kinds.parameters_of(config, dim, num_vectors),
            metric=config.metric,
            dim=dim,
            num_vectors=num_vectors,
            mean=tuple(mean.tolist()) if config.metric == "l2" else None,
            shard_starts=tuple((np.cumsum(counts) - counts).tolist()),
            ids_offset=int(ids[0]) if is_range else None,
            files=self._record_files(),
            source=dict(source),
            fingerprint=fingerprint,
            settings={name: value for name, value in dump(config).items() if name not in _OF_A_PLACE},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )
        if verify:
            self._verify(manifest)
        for claim in (self.owner, owner):
            if claim is not None:
                claim.check()
        final = publishing.publish_version(
            self.out, self.version_folder, manifest, config.keep_versions, switch
        )
        files.remove_folder(self.folder)
        return final

    def _prepare(self) -> None:
        self.check_owner()
        files.remove_stale_staging(self.folder.parent, keep=(self.folder.name,))

    def _facts_of_shards(self) -> list[Facts]:
        """Facts of all written shards; raises VersionError if there is a gap between them."""
        names = [name for name in self.list_finished() if versions.is_shard_name(name)]
        facts = []
        for shard in range(len(names)):
            found = self.facts_of(versions.shard_name(shard))
            if found is None:
                raise VersionError(
                    f"shard {shard} was not written to {self.folder}; write it before publishing"
                )
            facts.append(validate(Facts, found, str(self.path_of(versions.shard_name(shard)))))
        return facts

    def _write_column(self, name: str, column: np.ndarray) -> None:
        files.write_array(self.path_of(name), column)
        self.finish(name)

    def _record_files(self) -> dict[str, versions.FileRecord]:
        """Size and checksum of every file to publish; half-written files of a killed process are removed."""
        finished = {name: self.facts_of(name) for name in self.list_finished() if versions.is_file_name(name)}
        written = {path.name for path in self.version_folder.iterdir()}
        for name in written.union(files.list_folder(self.version_folder)):
            if name not in finished:
                files.remove_file(self.version_folder / name)
        return {
            name: versions.FileRecord(size_bytes=self.path_of(name).stat().st_size, crc32=facts["crc32"])
            for name, facts in finished.items()
            if facts is not None
        }

    def _verify(self, manifest: versions.Manifest) -> None:
        for name in manifest.files:
            if not self.is_sound(name):
                self.forget(name)
                raise VersionError(
                    f"{self.path_of(name)} differs from what was written; is the disk faulty? "
                    "The same command writes it again"
                )
