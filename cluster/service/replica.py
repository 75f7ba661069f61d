"""An index as an HTTP service: what Ray Serve runs in each replica."""

import asyncio
import ipaddress
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import ray
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from ray import serve
from ray.util import get_node_ip_address
from starlette.exceptions import HTTPException

from cluster.service.requests import (
    JSON,
    RAW,
    read_json,
    read_raw,
    write_json,
    write_raw,
)
from cluster.service.routes import build_app, refuse
from cluster.service.settings import ServiceSettings, bears_token, find_catalogue
from fsl_dist.data.catalogue import Catalogue
from index import FollowingIndex, versions
from index.actors.client import open_ray_index
from index.base.errors import FslDistError, RequestError
from index.base.object_cache import place_of
from index.runtime import faiss
from index.search import ShardedIndex, open_index
from index.tune import measure_recall
from index.version_cache import bring_version
from index.versions import Manifest

APP_NAME = "fsl-dist-index"
_NAME = "IndexService"
# Seconds between looks whether another version is current: a small file; at an object store, three requests.
_LOOK_S, _LOOK_AT_STORE_S = 0.2, 2.0
# Seconds until the next look after an error, such as a store that does not answer, or a disk without room.
_AFTER_ERROR_S = 15.0
# Requests that a replica works at together. In one process one is read or written while another searches; actors join
# the small ones that wait for them.
_AT_ONCE_HERE, _AT_ONCE_BY_ACTORS = 2, 32
# The middleware in each listening process limits the searches. These limits are far above its own, so that /health is
# always answered.
_MAX_TAKEN, _MAX_WAITING = 1024, 1024
# A replica that hangs is replaced after three checks that it does not answer.
_HEALTH_PERIOD_S, _HEALTH_TIMEOUT_S = 5.0, 10.0
_RECALL_K = 10
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

logger = logging.getLogger(__name__)


class IndexService:
    """One replica: the current version of the index, and what it has counted."""

    def __init__(self, settings: ServiceSettings) -> None:
        _keep_to_loopback()
        self.settings = settings
        self._workers = ThreadPoolExecutor(
            _AT_ONCE_BY_ACTORS if settings.num_actors else _AT_ONCE_HERE,
            # OpenMP counts threads by calling thread.
            initializer=faiss.omp_set_num_threads,
            initargs=(settings.num_cpus,),
        )
        self._remote = None
        if settings.num_actors:
            self._remote = open_ray_index(
                settings.index,
                num_actors=settings.num_actors,
                replicas=settings.num_replicas,
                num_cpus=settings.num_cpus,
                verify=False,
            )
        self._catalogues: dict[str, Catalogue] = {}
        self._following: FollowingIndex[ShardedIndex] = FollowingIndex(settings.index, self._open)
        self.index = self._following.latest()
        self._registry = registry = CollectorRegistry()
        start = "fsl_dist_index_"
        self._requests = Counter(
            f"{start}requests", "Searches, by HTTP status.", ["status"], registry=registry
        )
        self._queries = Counter(f"{start}queries", "Queries answered.", registry=registry)
        self._seconds = Histogram(
            f"{start}request_seconds", "Seconds of a search.", buckets=_SECONDS, registry=registry
        )
        version = Gauge(f"{start}version", "Version that is served.", registry=registry)
        version.set_function(lambda: self.index.manifest.version)
        vectors = Gauge(f"{start}vectors", "Vectors of that version.", registry=registry)
        vectors.set_function(lambda: self.index.num_vectors)
        published = Gauge(
            f"{start}published_timestamp_seconds", "When that version was published.", registry=registry
        )
        published.set_function(lambda: datetime.fromisoformat(self.index.manifest.created).timestamp())
        self._recall = Gauge(
            f"{start}recall_at_{_RECALL_K}",
            "Share of the true neighbours of some of its own vectors that a version finds.",
            ["version"],
            registry=registry,
        )
        self._probed: Manifest | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:  # Ray Serve asks for it after __init__
        return build_app(self)

    async def follow(self) -> None:
        """Follow publications and rollbacks, concurrently with the requests."""
        look_s = _LOOK_S if place_of(self.settings.index) is None else _LOOK_AT_STORE_S
        pause_s, said = look_s, ""
        probing = asyncio.create_task(self._probe())
        while True:
            await asyncio.sleep(pause_s)
            pause_s = look_s
            if probing.done() and self._probed != self.index.manifest:
                probing = asyncio.create_task(self._probe())
            # The open version is served, whatever happens to the next.
            try:
                self.index = await asyncio.to_thread(self._following.latest)
                said = ""
            except FslDistError as error:
                pause_s = _AFTER_ERROR_S
                if str(error) != said:
                    said = str(error)
                    logger.warning("version %d stays in use: %s", self.index.manifest.version, said)
            except Exception:
                pause_s = _AFTER_ERROR_S
                logger.exception("%s cannot be followed", self.settings.index)

    async def _probe(self) -> None:
        """Measure the recall of the version that is served, concurrently with the requests: once, and again if it is
        tuned."""
        index, sample = self.index, self.settings.probe_queries
        self._probed = index.manifest
        self._recall.clear()  # of the version before
        if not sample:
            return
        try:
            found = await asyncio.to_thread(_measure_recall, index, sample)
            self._recall.labels(str(index.manifest.version)).set(found)
        except FslDistError as error:  # such as of an index of one vector, or one that was changed
            logger.info("the recall of %s was not measured: %s", index.path, error)

    async def search(self, request: Request) -> Response:
        """Answer a search, and count it."""
        start = time.perf_counter()
        try:
            response = await self._search(request)
        except Exception as error:
            response = refuse(error)
        self._requests.labels(response.status_code).inc()
        self._seconds.observe(time.perf_counter() - start)
        return response

    def describe(self, request: Request) -> dict[str, object]:
        """The version that is served, and the limits. Raises HTTPException."""
        self._check_token(request)
        manifest, limits = self.index.manifest, self.settings.limits
        told = ("version", "kind", "factory", "metric", "dim", "parameters", "created")
        # The rest of the source may be paths, of which a client knows nothing.
        source = {
            name: manifest.source[name] for name in ("catalogue", "parameters") if name in manifest.source
        }
        limited = {name: getattr(limits, name) for name in ("max_k", "max_batch", "max_body_mb")}
        facts = {name: getattr(manifest, name) for name in told}
        return {**facts, "num_vectors": self.index.num_vectors, "source": source, **limited}

    def metrics(self) -> list[Metric]:
        """What this replica has counted, its name in each sample."""
        own = {"replica": serve.get_replica_context().replica_id.unique_id}
        families = list(self._registry.collect())
        for family in families:
            family.samples = [
                sample._replace(labels={**sample.labels, **own})
                for sample in family.samples
                if not sample.name.endswith("_created")
            ]
        return families

    async def all_metrics(self) -> list[Metric]:
        """The same of every replica that answers, family by family."""
        handle = serve.get_deployment_handle(_NAME, APP_NAME)
        found = await handle.broadcast("metrics").results_async(timeout_s=5, return_exceptions=True)
        families: dict[str, Metric] = {}
        for family in (family for replica in found if isinstance(replica, list) for family in replica):
            if family.name in families:
                families[family.name].samples += family.samples
            else:
                families[family.name] = family
        return list(families.values())

    def _check_token(self, request: Request) -> None:
        if not bears_token(request.headers.get("authorization", ""), self.settings.token_sha256):
            raise HTTPException(
                401, "this service needs a token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    async def _search(self, request: Request) -> Response:
        self._check_token(request)
        kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
        if kind not in (JSON, RAW):
            raise HTTPException(415, f"Content-Type {kind} is none of {JSON}, {RAW}")
        body = await self._read(request)
        is_raw = RAW in request.headers.get("accept", "")
        query = request.query_params.multi_items()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._workers, self._answer, body, kind, query, is_raw)

    async def _read(self, request: Request) -> bytes:
        most = self.settings.limits.max_body_mb
        pieces, size = [], int(request.headers.get("content-length", 0))
        if size <= most << 20:
            size = 0
            async for piece in request.stream():
                pieces.append(piece)
                size += len(piece)
                if size > most << 20:
                    break
        if size > most << 20:
            raise HTTPException(413, f"the body is larger than max_body_mb={most} of this service")
        return b"".join(pieces)

    def _answer(self, body: bytes, kind: str, query: list[tuple[str, str]], is_raw: bool) -> Response:
        index = self.index  # all of the answer comes from this version
        try:
            search = read_json(body) if kind == JSON else read_raw(body, query, index.dim)
            result = search.run(index, self.settings.limits)
        except RequestError as error:
            # A client knows nothing of folders here.
            text = str(error).replace(f"the index {index.path}", "the index")
            raise RequestError(text.replace(str(index.path), "the index")) from None
        labels = index.labels_of(result.ids)
        self._queries.inc(len(result.ids))
        if is_raw:
            headers = {
                "Index-Version": str(index.manifest.version),
                "Index-Shape": ",".join(map(str, result.ids.shape)),
            }
            return Response(write_raw(result, labels), headers=headers, media_type=RAW)
        keys = None
        if (catalogue := self._catalogue_of(index.manifest)) is not None:
            # Vectors that were added later may be of no image.
            known = (result.ids >= 0) & (result.ids < catalogue.num_samples)
            keys = np.full(result.ids.shape, None, dtype=object)
            keys[known] = catalogue.keys(result.ids[known])
        return Response(write_json(index.manifest.version, result, labels, keys), media_type=JSON)

    def _open(self, folder: Path) -> ShardedIndex:
        manifest = versions.read_manifest(folder)
        is_unchecked = self.settings.verify and folder != self.settings.checked
        bring_version(folder, manifest, verify=is_unchecked, cache_gb=self.settings.cache_gb)
        self._catalogue_of(manifest)
        if self._remote is None:
            return open_index(folder, verify=False)
        self._remote = self._remote.open_version(folder)  # which lets go of the one before
        return self._remote

    def _catalogue_of(self, manifest: Manifest) -> Catalogue | None:
        if self.settings.dataset is None:
            return None
        wanted = manifest.source.get("catalogue", "")
        if wanted not in self._catalogues:
            self._catalogues[wanted] = find_catalogue(self.settings.dataset, wanted)
        return self._catalogues[wanted]


def _measure_recall(index: ShardedIndex, sample: int) -> float:
    """The recall of an index by one thread, which requests hardly notice."""
    if not index.parameters:
        return 1.0  # a flat index compares with every vector
    faiss.omp_set_num_threads(1)
    return measure_recall(index, _RECALL_K, sample)


def _keep_to_loopback() -> None:
    """Let Ray Serve's own server in a replica, on which replicas ask one another, listen where the Ray node does.

    It takes all addresses whatever the node's is; there is no setting. `test_index_serve.py` lists what listens.
    """
    if not ray.is_initialized() or not ipaddress.ip_address(get_node_ip_address()).is_loopback:
        return
    from ray.serve._private import replica

    add_port = replica.add_port_to_grpc_server

    def add_loopback_port(server: object, address: str) -> int:
        return int(add_port(server, address.replace("[::]", "127.0.0.1")))

    replica.add_port_to_grpc_server = add_loopback_port


def make_application(settings: ServiceSettings) -> serve.Application:
    """What Ray Serve is to run."""
    deployment = serve.deployment(
        name=_NAME,
        num_replicas=settings.num_replicas,
        max_ongoing_requests=_MAX_TAKEN,
        max_queued_requests=_MAX_WAITING,
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=_HEALTH_PERIOD_S,
        health_check_timeout_s=_HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": 1 if settings.num_actors else settings.num_cpus},
    )
    return deployment(serve.ingress()(IndexService)).bind(settings)
