"""Building the next version from a version and its changes: a resumable build; changes may continue meanwhile.

Batches written while the merge runs are carried over to the new version. A mark in the old version's list of batches,
which only one process can write under its number, ends that list and names the new version. From then on changes can
only go there, so that none is lost in between.
"""

import contextlib
import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from index import kinds, publishing, versions
from index.base import files
from index.base.errors import RequestError, VersionError
from index.base.pieces import Progress, Spread, do_here
from index.base.settings import lay_over, validate
from index.changes import Contents, batch_path, mark, read_batch, write_batch
from index.config import IndexConfig
from index.versions import Manifest
from index.writing import job
from index.writing.build import Staging


def merge(
    out: Path,
    settings: Mapping[str, object] | None = None,
    *,
    spread: Spread = do_here,
    progress: Progress | None = None,
) -> tuple[Path, bool]:
    """Build the next version of the index `out` from the current one and its changes, and publish it.

    The settings are those of the current version, overridden by `settings`; tuned parameters are kept. If it is killed,
    calling it again resumes it.

    Returns:
        The version's folder, and whether there was anything to merge.

    Raises:
        RequestError: all vectors were removed. Other errors as in `job.run`.
    """
    if files.exists(out / versions.MANIFEST):
        raise RequestError(f"{out} is one version; name the folder of its index")
    folder = versions.find_version(out)
    manifest = versions.read_manifest(folder)
    versions.check_files(folder, manifest, verify=True)
    contents = Contents(folder, manifest, vectors=False)
    changes = contents.changes
    if changes.successor:  # an earlier merge was killed before its last step
        publishing.make_current(out, changes.successor, has_changes=True)
        return merge(out, settings, spread=spread, progress=progress)[0], True
    if not changes.number:
        return folder, False
    if not contents.num_vectors:
        raise RequestError(
            f"every vector of {folder} was removed; an index needs at least one (add some first)"
        )
    kept = _kept(manifest, changes.hidden)
    plan = job.Plan(
        out=out,
        labels=np.concatenate([contents.labels[kept], changes.labels]),
        ids=np.concatenate([contents.ids[kept], changes.ids]),
        dim=manifest.dim,
        config=_config_of(manifest, settings or {}),
        source=manifest.source,
        identity={
            "version": hashlib.sha256(versions.encode_manifest(manifest)).hexdigest(),
            "changes": _digest(folder, changes.number),
        },
    )
    published = job.run(
        plan,
        open_vectors=functools.partial(MergedVectors, folder, changes.number),
        spread=spread,
        progress=progress,
        switch=functools.partial(_switch, folder, changes.number),
    )
    return published, True


def _config_of(manifest: Manifest, settings: Mapping[str, object]) -> IndexConfig:
    """The settings and tuned parameters of the version, overridden by `settings`."""
    built = validate(IndexConfig, manifest.settings, versions.MANIFEST)
    by_rule = kinds.parameters_of(built, manifest.dim, manifest.num_vectors)
    tuned = {} if manifest.parameters == by_rule or "kind" in settings else manifest.parameters
    return validate(
        IndexConfig,
        lay_over(IndexConfig, {**manifest.settings, **tuned}, settings, versions.MANIFEST),
        "the arguments",
    )


@dataclass(slots=True)
class MergedVectors:
    """Vectors of a version and its first `number` batches of changes, in the order of an attempt to merge them."""

    folder: Path
    number: int
    staging: Staging
    _opened: tuple[Contents, np.ndarray] | None = field(default=None, repr=False)
    """The contents of the version, and the positions that still exist; computed once per process."""

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As `job.Vectors`; vectors are known by their ids."""
        if self._opened is None:
            opened = Contents(self.folder, versions.read_manifest(self.folder), up_to=self.number)
            self._opened = opened, _kept(opened.manifest, opened.changes.hidden)
        contents, kept = self._opened
        manifest = contents.manifest
        rows = np.array(files.open_array(job.rows_path(self.staging))[start:stop])
        is_new = rows >= len(kept)
        vectors = np.empty((len(rows), manifest.dim), dtype=np.float32)
        vectors[is_new] = contents.changes.vectors[rows[is_new] - len(kept)]
        ids = np.empty(len(rows), dtype=np.int64)
        ids[is_new] = contents.changes.ids[rows[is_new] - len(kept)]
        places = np.flatnonzero(~is_new)
        positions = kept[rows[places]]
        ids[places] = contents.ids[positions]
        for shard in range(len(manifest.shard_starts)):
            first, last = manifest.shard_range(shard)
            own = (positions >= first) & (positions < last)
            vectors[places[own]] = versions.read_shard(self.folder, manifest, shard)[positions[own] - first]
        return vectors, ids

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.folder, self.number, self.staging)


def _switch(folder: Path, number: int, out: Path, version: int) -> None:
    """Move batches after `number` of the version in `folder` to the new version, and make that one current."""
    new, carried = out / versions.VERSIONS / versions.version_name(version), 0
    manifest = versions.read_manifest(folder)
    while True:
        number += 1
        try:
            write_batch(folder, number, mark(version, manifest.dim))
            break
        except FileExistsError:
            batch = read_batch(folder, number, manifest)
        if batch.successor == version:
            break  # an earlier merge was killed before its last step
        if batch.successor > 0:
            raise VersionError(f"{folder} was merged into version {batch.successor} meanwhile; merge that")
        if batch.successor < 0:
            carried += 1
            with contextlib.suppress(FileExistsError):  # the same
                write_batch(new, carried, batch)
    publishing.make_current(out, version, has_changes=True)


def _kept(manifest: Manifest, hidden: np.ndarray) -> np.ndarray:
    """Positions that are not hidden: int64, ascending."""
    return np.delete(np.arange(manifest.num_vectors), hidden)


def _digest(folder: Path, number: int) -> str:
    """SHA-256 of the bytes of the batches 1 to `number`."""
    digest = hashlib.sha256()
    for batch in range(1, number + 1):
        with batch_path(folder, batch).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
