"""The folder of a data set as its writers see it: locked while it is made or changed, and given its next version."""

import contextlib
import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from fsl_dist.data.catalogue import Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.data.ingest.rows import Columns
from fsl_dist.data.store import ShardStore
from fsl_dist.errors import DataError, RequestError
from index.base import object_cache
from index.base.files import hold_lock, list_folder, remove_folder
from index.base.object_store import concurrently

logger = logging.getLogger(__name__)

_STAGING = ".append.partial"
_PARTIAL = ".next.partial"
_SHARDS = "shards"
# A shard is uploaded in one request, which needs it in memory: only then can the upload be conditional.
_PUT_AT_ONCE = 4


@contextlib.contextmanager
def hold_new(out: Path, *, has_shards: bool = False) -> Iterator[None]:
    """Hold the lock of a new data set at `out`; raises RequestError if `check_new` fails or another process holds the
    lock."""
    # The lock ends with its process, so any partial folder that exists while it is held belongs to a killed process.
    partial = partial_of(out)
    with hold_lock(partial.with_name(f".{out.name}.lock")):
        check_new(out, has_shards=has_shards)
        yield


@contextlib.contextmanager
def hold_dataset(dataset: Path) -> Iterator[Catalogue]:
    """Yield the current catalogue of `dataset` and block other writers;
    raises RequestError if another process is writing.

    Remains of a killed writer are removed first, except for pieces that an append may resume with. A shard that is
    missing or has another size than in the catalogue is reported in a warning: it need not be accessible here.
    """
    Catalogue.open(dataset)  # fails first, so that no lock file is created in another folder
    with hold_lock(dataset / "catalogue" / ".lock"):
        current = Catalogue.open(dataset)
        # At an object store a local lock cannot show whether another machine is writing.
        if object_cache.place_of(dataset) is None:
            remove_folder(dataset / name_shards(dataset, current))
        (dataset / "catalogue" / _PARTIAL).unlink(missing_ok=True)
        try:
            ShardStore(current).check_files()
        except DataError as error:
            logger.warning("%s", error)
        yield current


def partial_of(out: Path, old: Catalogue | None = None) -> Path:
    """Where the next version of `out` is worked on: on the same file system, so that one rename publishes it."""
    if object_cache.place_of(out) is not None:
        name = hashlib.sha256(str(out).encode()).hexdigest()[:16]
        return object_cache.cache_folder() / "packing" / f".{name}{'' if old is None else '.append'}.partial"
    return out.absolute().parent / f".{out.name}.partial" if old is None else out / _STAGING


def name_shards(out: Path, old: Catalogue | None, token: str = "") -> str:
    """The folder in `out` for shards added to `old`;
    at an object store `token` separates the shards of two machines."""
    if old is None:
        return _SHARDS
    name = f"appended-{old.version + 1:06d}"
    return name if object_cache.place_of(out) is None else f"{name}-{token}"


def publish_new(work: Path, out: Path, columns: Columns, metadata: CatalogueMetadata) -> str:
    """Publish the folder `work`, with its shards if it has any, as the data set `out`; return the fingerprint.

    If `out` contains the shards already, only the catalogue is added. At an object store the catalogue is uploaded
    last, and only if there is none.
    """
    if object_cache.place_of(out) is not None:
        publish_shards(work / _SHARDS, out / _SHARDS)
        (out / "catalogue").mkdir(parents=True, exist_ok=True)
        return add_version(out, 1, columns, metadata)
    catalogue = work / "catalogue"
    catalogue.mkdir(exist_ok=True)
    fingerprint = write_catalogue(catalogue / "000001.arrow", columns, metadata)
    if list_folder(out):
        os.replace(catalogue, out / "catalogue")
    else:
        os.replace(work, out)
    return fingerprint


def publish_shards(work: Path, folder: Path) -> None:
    """Move finished shards to `folder`; at a store one of the same name must have the same bytes (RequestError)."""
    if object_cache.place_of(folder) is None:
        os.replace(work, folder)
        return
    paths = sorted(work.iterdir())
    for start in range(0, len(paths), _PUT_AT_ONCE):

        def put(path: Path) -> None:
            if not object_cache.put_same(path, folder / path.name):
                raise RequestError(
                    f"'{folder / path.name}' exists with other bytes: another pack wrote it before, or is running now; "
                    "name a new location, or remove it first"
                )

        concurrently(put, paths[start : start + _PUT_AT_ONCE])


def _publish_catalogue(partial: Path, target: Path) -> None:
    try:
        object_cache.put_file(partial, target, is_new=True)
    except FileExistsError:
        raise RequestError(
            f"'{target}' exists: another process wrote it meanwhile; check its data set and start again"
        ) from None
    os.replace(partial, target)


def check_new(out: Path, *, has_shards: bool = False) -> None:
    """Raise RequestError unless `out` can become a data set; at an object store, shards of a killed pack are allowed.

    has_shards: `out` contains the shards to index, and must only have no catalogue yet.
    """
    if has_shards:
        if (out / "catalogue").exists():
            raise RequestError(f"output '{out}' already has a catalogue; `resplit` creates its next version")
    elif object_cache.place_of(out) is not None:
        if set(list_folder(out)) - {_SHARDS}:
            raise RequestError(
                f"output '{out}' is not empty; choose a new location, or remove its content first"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(
            f"output '{out}' exists and is not an empty folder; name a new one, or remove it first"
        )


def add_version(dataset: Path, version: int, columns: Columns, metadata: CatalogueMetadata) -> str:
    """Write the rows as catalogue `version` and make it current; return the fingerprint. The caller holds the lock."""
    folder = dataset / "catalogue"
    partial = folder / _PARTIAL
    fingerprint = write_catalogue(partial, columns, metadata, version=version)
    _publish_catalogue(partial, folder / f"{version:06d}.arrow")
    remove_folder(dataset / _STAGING)  # pieces belong to one version
    return fingerprint
