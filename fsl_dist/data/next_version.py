"""A data set's folder as its writers see it: free to be made, held by one of them, given its next version."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.errors import RequestError
from index.storage import hold_lock, remove_folder

STAGING = ".append.partial"
"""Where an append works until all of it is there."""
_PARTIAL = ".next.partial"


@contextlib.contextmanager
def hold_dataset(dataset: Path) -> Iterator[Catalogue]:
    """The current catalogue of `dataset`, which no other process changes meanwhile; RequestError where one does.

    What a killed writer left of the next version is removed first, but for the pieces that an append may go on from.
    """
    Catalogue.open(dataset)  # a folder that is no data set gets no lock file
    with hold_lock(dataset / "catalogue" / ".lock"):
        current = Catalogue.open(dataset)
        remove_folder(dataset / name_appended(current.version + 1))
        (dataset / "catalogue" / _PARTIAL).unlink(missing_ok=True)
        yield current


def name_appended(version: int) -> str:
    """The folder in a data set that holds the shards which came with catalogue `version`."""
    return f"appended-{version:06d}"


def check_new(out: Path) -> None:
    """RequestError unless `out` is free to become a data set."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
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
    os.replace(partial, folder / f"{version:06d}.arrow")
    remove_folder(dataset / STAGING)  # pieces are of one version
    return fingerprint
