"""What an index is served with: limits, token, processes, and the data set that names its ids."""

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fsl_dist.data.catalogue import Catalogue
from index.base.errors import RequestError, VersionError
from index.base.settings import settings
from index.search import MAX_K

MIN_TOKEN = 16


@settings("")
class Limits:
    """What one request may ask for."""

    max_k: Annotated[int, Field(ge=1, le=MAX_K)] = 1000
    """Neighbours a query."""

    max_batch: Annotated[int, Field(ge=1)] = 1024
    """Queries a request."""

    max_body_mb: Annotated[int, Field(ge=1)] = 32
    """Size of a request's body, in MiB."""


def digest_token(name: str) -> str:
    """SHA-256 of the token in the environment variable `name`. Raises RequestError where there is none worth its name."""
    token = os.environ.get(name, "").strip()
    if len(token) < MIN_TOKEN:
        raise RequestError(
            f"the environment variable {name} must hold a token of at least {MIN_TOKEN} characters "
            f"({name}=$(openssl rand -hex 32))"
        )
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceSettings:
    """What a replica is started with."""

    index: Path
    """The index, or one of its versions' folders."""

    checked: Path | None
    """The version whose checksums the command has compared; others are compared here. None compares none."""

    dataset: Path | None
    """Where the keys of ids come from."""

    limits: Limits
    """What one request may ask for."""

    token_sha256: str
    """Of the token that requests must bring; empty where they need none. The token itself is kept nowhere."""

    num_actors: int
    """Ray actors that the shards are dealt to; 0 searches in the replica's own process."""

    num_replicas: int
    """Replicas of this service, and actors that serve each part."""

    num_cpus: int
    """CPUs, and threads, of each process that searches."""


def find_catalogue(dataset: Path, fingerprint: str) -> Catalogue:
    """The version of a data set's catalogue that an index was made from. Raises VersionError, RequestError."""
    newest = Catalogue.open(dataset)
    for version in range(newest.version, 0, -1):
        with suppress(RequestError):  # a version that is not there
            catalogue = Catalogue.open(dataset, version)
            if catalogue.fingerprint == fingerprint:
                return catalogue
    raise VersionError(
        f"the index was made from {f'catalogue {fingerprint}' if fingerprint else 'vectors of no data set'}, and no "
        f"catalogue version of {dataset} is that one (name the data set it was built from, or leave --dataset out)"
    )
