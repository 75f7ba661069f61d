"""The HTTP routes of one replica of `index serve`, and how an error becomes an answer."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import HTTPBearer
from prometheus_client import Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from cluster.service.requests import BadBody, describe_answers, describe_body
from index.base.errors import FslDistError, RequestError
from index.search import ShardedIndex

logger = logging.getLogger(__name__)

_MAX_LINE = 600
"""characters of a refusal"""


class _Families(Collector):
    """Families of several replicas, for `generate_latest`."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        return self._families


def refuse(error: Exception) -> Response:
    """An error as an answer: {"error": one line}."""
    headers = None
    match error:
        case HTTPException():
            status, text, headers = error.status_code, error.detail, error.headers
        case BadBody():
            status, text = 400, str(error)
        case ClientDisconnect():
            status, text = 400, "the body ended before its end"
        case RequestError():
            status, text = 422, str(error)
        case FslDistError():
            status, text = 503, "a part of the index does not answer; try again"
        case _:
            status, text = 500, "the search failed; the log of the service says how"
    if len(text) > _MAX_LINE:  # it repeats what was sent
        text = f"{text[: _MAX_LINE // 2]} … {text[-_MAX_LINE // 2 :]}"
    if status >= 500:
        logger.error("%s", text, exc_info=error)
    return JSONResponse({"error": text}, status, headers)


class Service(Protocol):
    """What answers the routes: one replica (`cluster.service.replica.IndexService`)."""

    index: ShardedIndex

    async def follow(self) -> None:
        """Open new versions as they are published, until cancelled."""
        ...

    async def search(self, request: Request) -> Response:
        """Answer one search."""
        ...

    def describe(self, request: Request) -> dict[str, object]:
        """The version that is served, and the limits of a request."""
        ...

    async def all_metrics(self) -> list[Metric]:
        """What all replicas have counted."""
        ...


def build_app(service: Service) -> FastAPI:
    """The routes of a replica."""

    @asynccontextmanager
    async def follow(_: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(service.follow())
        yield
        following.cancel()

    app = FastAPI(title="fsl-dist index", summary="Nearest neighbours", redoc_url=None, lifespan=follow)
    app.add_exception_handler(HTTPException, lambda _, error: refuse(error))
    token = [Depends(HTTPBearer(auto_error=False, description="Where the service was started with a token."))]

    answers = describe_answers()

    def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
        return {status: answers[status] for status in statuses}

    @app.post(
        "/search",
        dependencies=token,
        openapi_extra={"requestBody": describe_body()},
        responses=answers,
    )
    async def search(request: Request) -> Response:
        """The k nearest vectors of each query, best first.

        JSON: {"version", "ids", "labels", "distances"}, the last three [n, k], and "keys" if the service has the data
        set. Where there are fewer than k, id and label are -1, distance and key null. Raw, where Accept is
        application/octet-stream: ids int64 [n, k], labels int64 [n, k], distances float32 [n, k], one behind the other,
        little-endian; headers Index-Version and Index-Shape (n,k). Refusals are {"error": one line}.
        """
        return await service.search(request)

    @app.get("/", dependencies=token, responses=refusals(401, 431, 503, 504))
    async def describe(request: Request) -> dict[str, object]:
        """The version that is served, and the limits of a request."""
        return service.describe(request)

    @app.get("/health", responses=refusals(431, 503, 504))
    async def health() -> dict[str, object]:
        """Ready: a version is open. Until then the proxy in front answers 404 or 503."""
        return {"status": "ready", "version": service.index.manifest.version}

    @app.get("/metrics", response_class=PlainTextResponse, responses=refusals(431, 503, 504))
    async def metrics() -> Response:
        """What all replicas have counted, for Prometheus."""
        return Response(
            generate_latest(_Families(await service.all_metrics())), media_type=CONTENT_TYPE_LATEST
        )

    return app
