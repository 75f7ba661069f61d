"""What an index is served with: limits, token, processes, and the data set that names its ids."""

import hashlib
import hmac
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from fsl_dist.data.catalogue import Catalogue
from index.base.errors import ConfigError, RequestError, VersionError
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


@settings("gate")
class GateSettings:
    """What each process that listens takes at once, and how long it waits for a client."""

    headers_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds within which the headers of a request arrive; then the connection is closed with 408."""

    body_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds after its headers within which a body arrives; then it is refused with 408."""

    answer_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds within which a client takes an answer; then the connection is closed."""

    replica_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds within which a replica answers; then the request is refused with 504."""

    connections: Annotated[int, Field(ge=1)] = 2048
    """Connections; at more, the client with the most of them loses the one that waits the longest for a request."""

    connections_per_client: Annotated[int, Field(ge=1)] = 512
    """Connections of one client address; at more, it loses the one that waits the longest for a request."""

    searches: Annotated[int, Field(ge=1)] = 320
    """Searches that are answered or wait for a replica; further ones are refused with 503."""

    searches_per_client: Annotated[int, Field(ge=1)] = 128
    """Searches of one client address; further ones are refused with 429."""

    max_body_mb: Annotated[int, Field(ge=1)] = 32
    """Size of a request's body, in MiB; a larger one is refused with 413."""

    bodies_mb: Annotated[int, Field(ge=1)] = 1024
    """Size of all bodies in memory, in MiB; at more, the one that takes the longest to arrive is refused with 503."""

    token_sha256: str = ""
    """SHA-256 of the token that requests must have; empty if they need none."""

    token_env: str = ""
    """Environment variable with that token, where its digest is not given."""

    def __post_init__(self) -> None:
        if self.bodies_mb < self.max_body_mb:
            raise ConfigError(
                f"gate.bodies_mb={self.bodies_mb} is below max_body_mb={self.max_body_mb}: no body of that size could "
                "be read (raise bodies_mb)"
            )
        if self.token_env:
            object.__setattr__(self, "token_sha256", digest_token(self.token_env))


def bears_token(authorization: str, token_sha256: str) -> bool:
    """Whether the value of a request's Authorization header has the token; any has where none is needed."""
    if not token_sha256:
        return True
    scheme, _, token = authorization.partition(" ")
    # Digests, in constant time: nothing tells how much of a token was right.
    found = hashlib.sha256(token.strip().encode()).hexdigest()
    return hmac.compare_digest(found, token_sha256) and scheme.lower() == "bearer"


def digest_token(name: str) -> str:
    """SHA-256 of the token in the environment variable `name`. Raises RequestError if it is missing or too short."""
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
    """The index, or one of its versions' folders; the working folder of one at an object store."""

    verify: bool
    """Whether checksums are compared before a version is served."""

    checked: Path | None
    """The version whose checksums were compared on the same disk, which is not read again."""

    cache_gb: float | None
    """Most GiB of local copies of an index at an object store; None: as much as the disk has."""

    dataset: Path | None
    """Where the keys of ids come from."""

    limits: Limits
    """What one request may ask for."""

    token_sha256: str
    """SHA-256 of the token that requests must have; empty if they need none. The token itself is not stored."""

    num_actors: int
    """Ray actors that the shards are dealt to; 0 searches in the replica's own process."""

    num_replicas: int
    """Replicas of this service, and actors that serve each part."""

    num_cpus: int
    """CPUs, and threads, of each process that searches."""

    probe_queries: int = 32
    """Vectors of each version by which its recall is measured for `/metrics`; 0 measures none."""


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
