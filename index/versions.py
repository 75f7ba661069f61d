"""Published versions of an index: folder layout, manifest, opening, pruning.

OUT/current                     name of the version that readers open and its CRC-32, replaced atomically
OUT/versions/000001/manifest.json
                    shard-00000.npy …   float32 [rows, dim], rows sorted by (label, id)
                    labels.npy          int64 [num_vectors], by position
                    ids.npy             int64 [num_vectors], missing if ids are ids_offset + position
                    changes/            vectors added and removed later (index.changes); missing at first
                    shard-00000.faiss … every kind but flat: the shard's FAISS index, ids = its rows
                    quantizer.faiss     the trained empty index that the shards share; missing for flat and hnsw
OUT/staging/TOKEN/              versions being written (build.Staging)
OUT/owner/                      claims (files.Owner)
"""

import dataclasses
import logging
import re
import time
import zlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from index.base import checksums, files, object_cache
from index.base.errors import ConfigError, RequestError, VersionError
from index.base.object_copies import forget_file
from index.base.settings import dump, validate
from index.config import Kind, Metric

logger = logging.getLogger(__name__)

_Opened = TypeVar("_Opened")

FORMAT = 1
CURRENT = "current"
VERSIONS = "versions"
CHANGES = "changes"
STAGING = "staging"
MANIFEST = "manifest.json"
LABELS = "labels.npy"
IDS = "ids.npy"
QUANTIZER = "quantizer.faiss"

_SHARD_NAME = re.compile(r"^shard-[0-9]{5}\.npy$")
WAY_OUT = "build the index again, or go back to a version that is whole with roll_back(INDEX)"
_FILE_NAME = re.compile(r"^(?:(?:shard-[0-9]{5}|labels|ids)\.npy|(?:shard-[0-9]{5}|quantizer)\.faiss)$")
_SETTLED_NS = 1_000_000_000
# Files that were verified in this process, by path, size and times: they are not read again when a version is reopened.
_verified: set[tuple[str, int, int, int, int]] = set()


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """The expected size and checksum of a file of a version."""

    size_bytes: int
    """Size in bytes."""

    crc32: int
    """CRC-32 of its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Description of a version; `manifest.json` contains exactly this, with a checksum (`index.base.checksums`)."""

    format: int
    """Number of the folder format; this code writes and reads 1."""

    version: int
    """Number of the version in its index, from 1."""

    kind: Kind
    """Kind of index."""

    factory: str
    """FAISS's description of it; Flat where FAISS has no file."""

    parameters: dict[str, int]
    """The default search parameters, as built or tuned: nprobe, ef_search, k_factor."""

    metric: Metric
    """l2, inner_product or cosine."""

    dim: int
    """Numbers in a vector."""

    num_vectors: int
    """Vectors in all shards together."""

    mean: tuple[float, ...] | None
    """Mean of all vectors [dim], which the float32 ranking subtracts; null but for l2."""

    shard_starts: tuple[int, ...]
    """First position of each shard; the next start, or num_vectors, ends it. A shard may be empty."""

    ids_offset: int | None
    """ids are ids_offset + position, and there is no ids.npy; null if ids.npy contains them."""

    files: dict[str, FileRecord]
    """All data files of the version by name."""

    source: dict[str, str]
    """Origin of the vectors: fingerprints of checkpoint and catalogue, by name."""

    fingerprint: str
    """Fingerprint of everything that decides these files (index.writing.job); empty if unknown."""

    settings: dict[str, int | str]
    """The IndexConfig of the build: a merge builds the next version with the same settings."""

    created: str
    """Time of publishing, ISO 8601, UTC."""

    def shard_range(self, shard: int) -> tuple[int, int]:
        """Positions [start, stop) of a shard."""
        stops = (*self.shard_starts[1:], self.num_vectors)
        return self.shard_starts[shard], stops[shard]


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard-{shard:05d}.npy"


def faiss_name(shard: int) -> str:
    """File name of a shard's FAISS index."""
    return f"shard-{shard:05d}.faiss"


def is_shard_name(name: str) -> bool:
    """Whether this is the name of a file of a shard's vectors."""
    return _SHARD_NAME.match(name) is not None


def is_file_name(name: str) -> bool:
    """Whether a version may have a data file of this name."""
    return _FILE_NAME.match(name) is not None


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON; floats are written so that they read back exactly."""
    return checksums.encode_json(dump(manifest), MANIFEST, indent=1)


def read_manifest(folder: Path) -> Manifest:
    """Read and check a version folder's manifest. Raises VersionError."""
    path = folder / MANIFEST
    data = checksums.read_json(path, root=_index_of(folder), name=MANIFEST)
    if data.get("format") != FORMAT:
        raise VersionError(f"{path} has format={data.get('format')}; this program reads format {FORMAT}")
    try:
        manifest = validate(Manifest, data, str(path))
    except ConfigError as error:
        raise VersionError(f"{path} is damaged: {error}") from None
    if folder.parent.name == VERSIONS and folder.name != version_name(manifest.version):
        raise VersionError(f"{path} is that of version {manifest.version}: the file was swapped; {WAY_OUT}")
    starts = (*manifest.shard_starts, manifest.num_vectors)
    if starts[0] != 0 or sorted(starts) != list(starts) or len(starts) < 2:
        raise VersionError(f"{path} is damaged: shard_starts={list(manifest.shard_starts)} are not ascending")
    if manifest.dim < 1 or manifest.num_vectors < 1 or (manifest.ids_offset or 0) < 0:
        raise VersionError(
            f"{path} is damaged: no index has dim={manifest.dim}, num_vectors={manifest.num_vectors}"
        )
    if (manifest.metric == "l2") != (manifest.mean is not None) or len(manifest.mean or ()) not in (
        0,
        manifest.dim,
    ):
        raise VersionError(
            f"{path} is damaged: its mean does not fit metric={manifest.metric}, dim={manifest.dim}"
        )
    if any(value < 1 for value in manifest.parameters.values()):
        raise VersionError(f"{path} is damaged: parameters={manifest.parameters} must be at least 1")
    needed = {LABELS, *(shard_name(r) for r in range(len(manifest.shard_starts)))}
    needed |= {IDS} if manifest.ids_offset is None else set()
    if manifest.kind != "flat":
        needed |= {faiss_name(r) for r in range(len(manifest.shard_starts))}
    if manifest.kind not in ("flat", "hnsw"):
        needed.add(QUANTIZER)
    if needed != set(manifest.files):
        raise VersionError(f"{path} is damaged: files lists {sorted(manifest.files)}, not {sorted(needed)}")
    return manifest


def find_version(path: Path) -> Path:
    """The version folder to open: `path` itself, or the current version of the index at `path`."""
    path = object_cache.working_folder(path)
    if files.exists(path / MANIFEST):
        return path
    folder = path / VERSIONS / version_name(current_version(path))
    if not files.exists(folder / MANIFEST):
        raise VersionError(f"{path / CURRENT} names version {folder.name}, which is not there; {WAY_OUT}")
    return folder


def current_version(out: Path) -> int:
    """Number of the version that readers open. Raises VersionError where nothing is published."""
    if not files.exists(out / CURRENT):
        raise VersionError(f"{out} contains no published index (no file '{CURRENT}'); build one first")
    return object_cache.read_again(out / CURRENT, lambda: _read_current(out))


def _read_current(out: Path) -> int:
    words = files.read_text(out / CURRENT).split()
    name = words[0] if words else ""
    if not (name.isascii() and name.isdecimal() and len(words) <= 2):
        raise VersionError(
            f"{out / CURRENT} is damaged: '{name[:40]}' is not the name of a version; {WAY_OUT}"
        )
    if words != encode_current(int(name)).decode().split():
        if len(words) == 2:
            raise VersionError(f"{out / CURRENT} is damaged: its checksum is wrong; {WAY_OUT}")
        checksums.warn_unchecked(out / CURRENT, out)
    return int(name)


def encode_current(version: int) -> bytes:
    """Content of the file that names the current version."""
    name = version_name(version)
    return f"{name} {zlib.crc32(name.encode()):08x}\n".encode()


def open_current(path: Path, open_version: Callable[[Path], _Opened]) -> _Opened:
    """Call `open_version` on the current version folder at `path`;
    repeat once if that version was replaced meanwhile."""
    while True:
        folder = find_version(path)
        try:
            return open_version(folder)
        except VersionError:
            # A version that was replaced and removed while it was opened is not damaged.
            if find_version(path) == folder:
                raise


def check_files(
    folder: Path, manifest: Manifest, *, verify: bool = False, only: Collection[str] | None = None
) -> None:
    """Compare every file (or those in `only`) with the manifest: always its size, its checksum with `verify`.

    Verifying reads all bytes, once per process as long as a file does not change. Files of an object store are fetched
    first, and their checksums are compared in any case before they get their names; a local copy that is damaged is
    fetched again. Raises VersionError, which names the first missing or damaged file.
    """
    records = {name: r for name, r in manifest.files.items() if only is None or name in only}
    bring_files(folder, records)
    try:
        _compare_files(folder, records, verify=verify)
    except VersionError:
        if object_cache.place_of(folder) is None:
            raise
        _forget_damaged(folder, records, verify=verify)
        bring_files(folder, records)
        _compare_files(folder, records, verify=verify)


def bring_files(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Fetch the files of a version at an object store that have no local copy, and compare their checksums.

    Raises VersionError for a file whose bytes were wrong each time.
    """

    def is_intact(name: str, path: Path) -> bool:
        return path.stat().st_size == records[name].size_bytes and (
            files.crc32_of_file(path) == records[name].crc32
        )

    damaged = object_cache.bring(folder, wanted=lambda name: name in records, is_intact=is_intact)
    if damaged:
        raise VersionError(
            f"{folder / damaged[0]} is damaged: it was fetched three times, never with the manifest's checksum; {WAY_OUT}"
        )


def _forget_damaged(folder: Path, records: Mapping[str, FileRecord], *, verify: bool) -> None:
    for name, record in records.items():
        try:
            _compare_files(folder, {name: record}, verify=verify)
        except VersionError as error:
            logger.warning(
                "%s (the local copy; it is fetched again)", str(error).removesuffix(f"; {WAY_OUT}")
            )
            forget_file(folder / name)


def _compare_files(folder: Path, records: Mapping[str, FileRecord], *, verify: bool) -> None:
    for name, record in records.items():
        path = folder / name
        try:
            found = path.stat()
        except FileNotFoundError:
            raise VersionError(f"{path} is missing; {WAY_OUT}") from None
        if found.st_size != record.size_bytes:
            raise VersionError(
                f"{path} is damaged: {found.st_size} bytes, but its manifest expects {record.size_bytes}; {WAY_OUT}"
            )
        if not verify:
            continue
        state = (str(path.absolute()), found.st_ino, found.st_size, found.st_mtime_ns, record.crc32)
        if state in _verified:
            continue
        try:
            crc32 = files.crc32_of_file(path)
        except FileNotFoundError:  # a version may be removed while it is read
            raise VersionError(f"{path} is missing; {WAY_OUT}") from None
        if crc32 != record.crc32:
            raise VersionError(f"{path} is damaged: its checksum is not the manifest's; {WAY_OUT}")
        # A file that changed just now may change again without a different modification time.
        if time.time_ns() - found.st_mtime_ns > _SETTLED_NS:
            _verified.add(state)


def check_source(folder: Path, manifest: Manifest, wanted: Mapping[str, str]) -> None:
    """Raise RequestError if an index was made from another source; `wanted` maps names to the required fingerprints.

    A run requires {"catalogue": fingerprint of its data set, "parameters": name of its checkpoint}.
    """
    for name, value in wanted.items():
        found = manifest.source.get(name)
        if found != value:
            of = f"was made from {name} {found}" if found else f"does not say which {name} it was made from"
            raise RequestError(f"{folder} {of}; this run has {name} {value} (build it again from this run)")


def read_labels(folder: Path, manifest: Manifest) -> np.ndarray:
    """Labels by position: int64 [num_vectors], ascending, memory-mapped."""
    return _open_column(folder / LABELS, manifest)


def read_ids(folder: Path, manifest: Manifest) -> np.ndarray:
    """Ids by position: int64 [num_vectors]."""
    if manifest.ids_offset is not None:
        return np.arange(manifest.ids_offset, manifest.ids_offset + manifest.num_vectors, dtype=np.int64)
    return _open_column(folder / IDS, manifest)


def read_shard(folder: Path, manifest: Manifest, shard: int) -> np.ndarray:
    """Raw vectors of a shard: float32 [rows, dim], memory-mapped."""
    start, stop = manifest.shard_range(shard)
    array = files.open_array(folder / shard_name(shard))
    if array.dtype != np.float32 or array.shape != (stop - start, manifest.dim):
        raise VersionError(
            f"{folder / shard_name(shard)} is damaged: {array.dtype} {list(array.shape)}, but its manifest expects "
            f"float32 {[stop - start, manifest.dim]}"
        )
    return array


def read_faiss(path: Path) -> np.ndarray:
    """The bytes of a FAISS file, uint8 [size], memory-mapped. Raises VersionError."""
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise VersionError(f"{path} cannot be read: {error}") from None


def check_faiss(path: Path, num_vectors: int, dim: int, rows: int, manifest_dim: int) -> None:
    """Raise VersionError if a shard's FAISS index does not match the shard's rows."""
    if (num_vectors, dim) != (rows, manifest_dim):
        raise VersionError(
            f"{path} is damaged: it has {num_vectors} vectors of dim {dim}, but its manifest expects {rows} of dim "
            f"{manifest_dim}; build the index again"
        )


def write_parameters(folder: Path, manifest: Manifest, parameters: dict[str, int]) -> Manifest:
    """Store other search parameters in a published version, in one step; return its manifest. No data file changes."""
    changed = dataclasses.replace(manifest, parameters=dict(parameters))
    files.write_atomic(folder / MANIFEST, encode_manifest(changed))
    return changed


def _index_of(folder: Path) -> Path:
    return folder.parent.parent if folder.parent.name == VERSIONS else folder


def list_versions(out: Path) -> list[int]:
    """Numbers of the published versions of an index, ascending."""
    return sorted(int(name) for name in files.list_folder(out / VERSIONS) if name.isdecimal())


def version_name(version: int) -> str:
    """Folder name of a version."""
    return f"{version:06d}"


def _open_column(path: Path, manifest: Manifest) -> np.ndarray:
    array = files.open_array(path)
    if array.dtype != np.int64 or array.shape != (manifest.num_vectors,):
        raise VersionError(
            f"{path} is damaged: {array.dtype} {list(array.shape)}, but its manifest expects int64 "
            f"{[manifest.num_vectors]}"
        )
    return array
