"""A data set's folder as its writers see it: free to be made, held by one of them, given its next version."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.errors import RequestError
from index.base import object_cache
from index.base.files import hold_lock, list_folder, remove_folder
from index.base.object_store import concurrently

STAGING = ".append.partial"
"""Where an append works until all of it is there."""
_PARTIAL = ".next.partial"
_SHARDS = "shards"
# A shard is put in one request, which holds it in memory: only so it is put if absent.
_PUT_AT_ONCE = 4


@contextlib.contextmanager
def hold_dataset(dataset: Path) -> Iterator[Catalogue]:
    """The current catalogue of `dataset`, which no other process changes meanwhile; RequestError where one does.

    What a killed writer left of the next version is removed first, but for the pieces that an append may go on from.
    """
    Catalogue.open(dataset)  # a folder that is no data set gets no lock file
    with hold_lock(dataset / "catalogue" / ".lock"):
        current = Catalogue.open(dataset)
        if (
            object_cache.place_of(dataset) is None
        ):  # at a store no lock tells whether another machine is at work on it
            remove_folder(dataset / name_appended(current.version + 1))
        (dataset / "catalogue" / _PARTIAL).unlink(missing_ok=True)
        yield current


def work_beside(out: Path) -> Path:
    """Where a data set is worked on until it is `out`: beside it, so that a rename stays on one file system."""
    if object_cache.place_of(out) is None:
        return out.absolute().parent / f".{out.name}.partial"
    name = hashlib.sha256(str(out).encode()).hexdigest()[:16]
    return object_cache.cache_folder() / "packing" / f".{name}.partial"


def publish_new(work: Path, out: Path) -> None:
    """Make the finished folder `work` the data set `out`; at a store its catalogue comes last, if there is none."""
    if object_cache.place_of(out) is None:
        os.replace(work, out)
        return
    publish_shards(work / _SHARDS, out / _SHARDS)
    (out / "catalogue").mkdir(parents=True, exist_ok=True)
    catalogue = work / "catalogue" / "000001.arrow"
    target = out / "catalogue" / catalogue.name
    partial = target.with_name(_PARTIAL)
    shutil.move(catalogue, partial)
    _publish_catalogue(partial, target)


def publish_shards(work: Path, folder: Path) -> None:
    """Move finished shards to their place; at a store one of the same name must have the same bytes (RequestError)."""
    if object_cache.place_of(folder) is None:
        os.replace(work, folder)
        return
    paths = sorted(work.iterdir())
    for start in range(0, len(paths), _PUT_AT_ONCE):

        def put(path: Path) -> None:
            if not object_cache.put_same(path, folder / path.name):
                raise RequestError(
                    f"'{folder / path.name}' is there with other bytes: an earlier pack put it, or one that is at work now; "
                    "name a new place, or remove it first"
                )

        concurrently(put, paths[start : start + _PUT_AT_ONCE])


def _publish_catalogue(partial: Path, target: Path) -> None:
    try:
        object_cache.put_file(partial, target, is_new=True)
    except FileExistsError:
        raise RequestError(
            f"'{target}' is there: another process wrote it meanwhile; look at its data set and start again"
        ) from None
    os.replace(partial, target)


def name_appended(version: int) -> str:
    """The folder in a data set that holds the shards which came with catalogue `version`."""
    return f"appended-{version:06d}"


def check_new(out: Path) -> None:
    """RequestError unless `out` is free to become a data set; at a store, shards that a killed pack put are no hindrance."""
    if object_cache.place_of(out) is not None:
        if set(list_folder(out)) - {_SHARDS}:
            raise RequestError(
                f"output '{out}' is not empty; name a new place, or remove what is there first"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RequestError(
            f"output '{out}' exists and is not an empty folder; name a new one, or remove it first"
        )


def add_version(
    dataset: Path,
    version: int,
    columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    metadata: CatalogueMetadata,
) -> str:
    """Write the rows as catalogue `version` and make it current; returns the fingerprint. Hold the data set."""
    folder = dataset / "catalogue"
    partial = folder / _PARTIAL
    fingerprint = write_catalogue(partial, columns, metadata)
    _publish_catalogue(partial, folder / f"{version:06d}.arrow")
    remove_folder(dataset / STAGING)  # pieces are of one version
    return fingerprint
