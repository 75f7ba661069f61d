"""Published versions of an index: folder layout, manifest, opening, pruning.

OUT/current                     name of the version that readers open, replaced atomically
OUT/versions/000001/manifest.json
                    shard-00000.npy …   float32 [rows, dim], rows sorted by (label, id)
                    labels.npy          int64 [num_vectors], by position
                    ids.npy             int64 [num_vectors], left out when ids are ids_offset + position
                    shard-00000.faiss … every kind but flat: the shard's FAISS index
                    quantizer.faiss     what they share: trained, empty; no such file for flat and hnsw
OUT/staging/TOKEN/              versions being written
OUT/owner/                      claims (storage.Owner)
"""

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index import gate, storage
from index.config import Kind, Metric
from index.errors import ConfigError, VersionError

FORMAT = 1
CURRENT = "current"
VERSIONS = "versions"
STAGING = "staging"
MANIFEST = "manifest.json"
LABELS = "labels.npy"
IDS = "ids.npy"
QUANTIZER = "quantizer.faiss"

_FILE_NAME = re.compile(r"^(?:(?:shard-[0-9]{5}|labels|ids)\.npy|(?:shard-[0-9]{5}|quantizer)\.faiss)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """What a file of a version must be."""

    size_bytes: int
    """Size in bytes."""

    crc32: int
    """CRC-32 of its bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What a version holds; `manifest.json` is this, and nothing else."""

    format: int
    """Number of the folder format; this code writes and reads 1."""

    version: int
    """Number of the version in its index, from 1."""

    kind: Kind
    """Kind of index."""

    factory: str
    """FAISS's description of it; Flat where FAISS has no file."""

    parameters: dict[str, int]
    """What a search takes where it is told nothing else: nprobe, ef_search, k_factor, as built or tuned."""

    metric: Metric
    """l2, inner_product, or cosine, whose vectors have length 1."""

    dim: int
    """Numbers in a vector."""

    num_vectors: int
    """Vectors in all shards together."""

    mean: tuple[float, ...] | None
    """Mean of all vectors [dim], which the float32 ranking subtracts; null but for l2."""

    shard_starts: tuple[int, ...]
    """First position of each shard; the next start, or num_vectors, ends it. A shard may be empty."""

    ids_offset: int | None
    """ids are ids_offset + position, and there is no ids.npy; null where ids.npy says them."""

    files: dict[str, FileRecord]
    """Every data file of the version by name."""

    source: dict[str, str]
    """Where the vectors came from: fingerprints of checkpoint and catalogue, by name."""

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


def encode_manifest(manifest: Manifest) -> bytes:
    """The manifest as JSON; floats are written so that they read back exactly."""
    return (json.dumps(gate.dump(manifest), indent=1) + "\n").encode()


def read_manifest(folder: Path) -> Manifest:
    """Read and check a version folder's manifest. Raises VersionError."""
    path = folder / MANIFEST
    try:
        data = json.loads(storage.read_text(path))
        if isinstance(data, dict) and data.get("format") != FORMAT:
            raise VersionError(f"{path} has format={data.get('format')}; this program reads format {FORMAT}")
        manifest = gate.validate(Manifest, data, str(path))
    except (json.JSONDecodeError, ConfigError) as error:
        raise VersionError(f"{path} is damaged: {error}") from None
    starts = (*manifest.shard_starts, manifest.num_vectors)
    if starts[0] != 0 or sorted(starts) != list(starts) or len(starts) < 2:
        raise VersionError(f"{path} is damaged: shard_starts={list(manifest.shard_starts)} are not ascending")
    needed = {LABELS, *(shard_name(r) for r in range(len(manifest.shard_starts)))}
    needed |= {IDS} if manifest.ids_offset is None else set()
    if manifest.kind != "flat":
        needed |= {faiss_name(r) for r in range(len(manifest.shard_starts))}
    if manifest.kind not in ("flat", "hnsw"):
        needed.add(QUANTIZER)
    if needed != set(manifest.files) or not all(_FILE_NAME.match(name) for name in manifest.files):
        raise VersionError(f"{path} is damaged: files lists {sorted(manifest.files)}, not {sorted(needed)}")
    return manifest


def find_version(path: Path) -> Path:
    """The version folder to open: `path` itself, or the current version of the index at `path`."""
    if (path / MANIFEST).exists():
        return path
    if not (path / CURRENT).exists():
        raise VersionError(
            f"{path} holds no published index (no file '{CURRENT}'); build one with: fsl-dist index build"
        )
    name = storage.read_text(path / CURRENT).strip()
    if not name.isdecimal():
        raise VersionError(f"{path / CURRENT} is damaged: '{name}' is no version's name")
    folder = path / VERSIONS / name
    if not (folder / MANIFEST).exists():
        raise VersionError(
            f"{path / CURRENT} names version {name}, which is not there; build the index again"
        )
    return folder


def check_files(folder: Path, manifest: Manifest, *, verify: bool = False) -> None:
    """Compare every file with the manifest: its size always, its checksum with `verify` (reads all bytes).

    Raises VersionError naming the first file that is missing or damaged.
    """
    for name, record in manifest.files.items():
        path = folder / name
        size_bytes = storage.size_of_file(path)
        if size_bytes is None:
            raise VersionError(f"{path} is missing; build the index again")
        if size_bytes != record.size_bytes:
            raise VersionError(
                f"{path} is damaged: {size_bytes} bytes, its manifest says {record.size_bytes}; build the index again"
            )
        if verify and storage.crc32_of_file(path) != record.crc32:
            raise VersionError(
                f"{path} is damaged: its checksum is not the manifest's; build the index again"
            )


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
    array = storage.open_array(folder / shard_name(shard))
    if array.dtype != np.float32 or array.shape != (stop - start, manifest.dim):
        raise VersionError(
            f"{folder / shard_name(shard)} is damaged: {array.dtype} {list(array.shape)}, its manifest says "
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
    """Refuse a shard's FAISS index that does not hold the shard's rows (VersionError)."""
    if (num_vectors, dim) != (rows, manifest_dim):
        raise VersionError(
            f"{path} is damaged: it holds {num_vectors} vectors of dim {dim}, its manifest says {rows} of dim "
            f"{manifest_dim}; build the index again"
        )


def write_parameters(folder: Path, manifest: Manifest, parameters: dict[str, int]) -> Manifest:
    """Store other search parameters in a published version, in one step; returns its manifest. No data file changes."""
    changed = dataclasses.replace(manifest, parameters=dict(parameters))
    storage.write_atomic(folder / MANIFEST, encode_manifest(changed))
    return changed


def list_versions(out: Path) -> list[int]:
    """Numbers of the published versions of an index, ascending."""
    return sorted(int(name) for name in storage.list_folder(out / VERSIONS) if name.isdecimal())


def version_name(version: int) -> str:
    """Folder name of a version."""
    return f"{version:06d}"


def publish_version(out: Path, staging: Path, manifest: Manifest, keep_versions: int) -> Path:
    """Give the staged folder the next number, make it current, remove versions beyond `keep_versions`.

    A process killed before the last step leaves the old version current. `manifest.version` is set here.
    """
    version = max(list_versions(out), default=0) + 1
    final = out / VERSIONS / version_name(version)
    storage.write_atomic(staging / MANIFEST, encode_manifest(dataclasses.replace(manifest, version=version)))
    storage.publish_folder(staging, final)
    storage.write_atomic(out / CURRENT, f"{version_name(version)}\n".encode())
    # A version above the new one can only be another process's; it is not ours to remove.
    own = [v for v in list_versions(out) if v <= version]
    for old in own[:-keep_versions]:
        storage.remove_folder(out / VERSIONS / version_name(old))
    return final


def _open_column(path: Path, manifest: Manifest) -> np.ndarray:
    array = storage.open_array(path)
    if array.dtype != np.int64 or array.shape != (manifest.num_vectors,):
        raise VersionError(
            f"{path} is damaged: {array.dtype} {list(array.shape)}, its manifest says int64 {[manifest.num_vectors]}"
        )
    return array
