"""A data set's folder as its writers see it: free to be made, held by one of them, given its next version."""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from fsl_dist.data.catalogue import Catalogue, CatalogueMetadata, write_catalogue
from fsl_dist.errors import RequestError
from index.storage import hold_lock


@contextlib.contextmanager
def hold_dataset(dataset: Path) -> Iterator[Catalogue]:
    """The current catalogue of `dataset`, which no other process changes meanwhile; RequestError where one does."""
    Catalogue.open(dataset)  # a folder that is no data set gets no lock file
    with hold_lock(dataset / "catalogue" / ".lock"):
        yield Catalogue.open(dataset)


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
    partial = folder / ".next.partial"
    fingerprint = write_catalogue(partial, columns, metadata)
    os.replace(partial, folder / f"{version:06d}.arrow")
    return fingerprint
