"""The middleware between clients and replicas in each listening process: authentication, deadlines and limits.

Ray Serve's HTTP proxy passes a request to a replica when its headers have arrived; a client that never ends its body
then occupies a slot for ever. Here the body is read first. The proxy calls `middlewares` when it starts. `environment`
returns the environment variables that name `middlewares` and contain the settings.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from starlette.middleware import Middleware

from cluster.service.refusals import STATUS, Reason, count_refusal, with_refusals
from cluster.service.settings import GateSettings, bears_token
from index.base.settings import dump, validate

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

VARIABLE = "FSL_DIST_INDEX_GATE"
_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
MAX_HEADER_BYTES = 64 << 10
_SEARCH, _METRICS = "/search", "/metrics"
_HEALTH = ("/health", "/-/healthz")
_WITH_TOKEN = (_SEARCH, "/", "/-/routes")
# The rest, of which one scrape asks every replica, needs no token: few at once.
_MAX_PAGES = 16
_END_S = 5.0
"""seconds that Ray Serve has to end a request after its answer"""
# The headers that the service reads. Ray Serve obeys others, such as x-request-timeout-seconds, and fails if their
# bytes are not text.
_PASSED = {b"host", b"content-type", b"content-length", b"accept", b"authorization", b"user-agent"}


class Refusal(Exception):
    """A request that is not passed on: a status, and the one line to answer with."""

    reason: Reason | None = None
    """why, for the counters of `/metrics`; None: it is not counted"""

    def __init__(self, status: int, line: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(line)
        self.status, self.headers = status, headers

    @classmethod
    def of(cls, reason: Reason, line: str, *headers: tuple[bytes, bytes]) -> "Refusal":
        """A refusal that is counted, with the status of its reason."""
        refusal = cls(STATUS[reason], line, *headers)
        refusal.reason = reason
        return refusal


class _Body:
    """A body that is being read."""

    def __init__(self, limit: asyncio.Timeout) -> None:
        self.limit = limit
        self.size = 0
        self.is_dropped = False

    def drop(self) -> None:
        """End its reading: others need the memory."""
        self.is_dropped = True
        self.limit.reschedule(asyncio.get_running_loop().time())


class Gate:
    """ASGI middleware in front of Ray Serve's proxy."""

    def __init__(self, app: App, settings: GateSettings) -> None:
        self.app = app
        self.settings = settings
        self._reading: dict[_Body, None] = {}
        self._held_bytes = 0
        self._searches = self._pages = 0
        self._of_client: Counter[str] = Counter()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with a line of JSON."""
        if scope["type"] != "http":  # a websocket; the service has none
            return
        path = scope["path"]
        headers = {name.lower(): value for name, value in scope["headers"]}
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name.lower() in _PASSED]
        try:
            size = len(scope["raw_path"]) + sum(len(name) + len(value) for name, value in headers.items())
            if size > MAX_HEADER_BYTES:
                raise Refusal.of("header_size", f"the headers have more than {MAX_HEADER_BYTES} bytes")
            with ExitStack() as place:
                body = b""
                if path not in _HEALTH:
                    if path in _WITH_TOKEN and not bears_token(
                        headers.get(b"authorization", b"").decode("latin-1"), self.settings.token_sha256
                    ):
                        raise Refusal.of(
                            "token",
                            "this service needs a token: Authorization: Bearer TOKEN",
                            (b"www-authenticate", b"Bearer"),
                        )
                    if path == _SEARCH and scope["method"] == "POST":
                        body = await self._read(headers, receive)
                        place.callback(self._let_go, len(body))
                        place.enter_context(self._search(scope["client"][0] if scope.get("client") else ""))
                    else:
                        place.enter_context(self._page())
                answer = with_refusals(send) if path == _METRICS and scope["method"] == "GET" else send
                await self._pass(scope, with_body(body, receive), answer, place)
        except Refusal as refusal:
            if refusal.reason is not None:
                count_refusal(refusal.reason)
            await answer_refusal(send, refusal)

    async def _pass(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, place: ExitStack
    ) -> None:
        """Let Ray Serve answer, and give the request's `place` up when it has. Raises Refusal."""
        settings, now = self.settings, asyncio.get_running_loop().time
        has_begun = False

        async def send_in_time(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            # Sending waits for the client, which has a deadline of its own.
            limit.reschedule(now() + settings.answer_s + settings.replica_s)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                place.close()
                # If a replica's connections break at this moment, Ray Serve waits for the end of its messages for ever.
                limit.reschedule(now() + _END_S)

        with suppress(TimeoutError):
            async with asyncio.timeout(settings.replica_s) as limit:
                await self.app(scope, receive, send_in_time)
        # Ray Serve's proxy may take the cancellation for a client that has left, and return.
        if not has_begun and limit.expired():
            raise Refusal.of(
                "replica_time",
                f"no replica answered within replica_s={settings.replica_s:g} s; try again",
                (b"retry-after", b"1"),
            )

    def _let_go(self, num_bytes: int) -> None:
        self._held_bytes -= num_bytes

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body, which counts as held from here on. Raises Refusal."""
        settings = self.settings
        most = settings.max_body_mb << 20
        length = headers.get(b"content-length", b"0")
        too_large = Refusal.of(
            "body_size", f"the body is larger than max_body_mb={settings.max_body_mb} of this service"
        )
        if not length.isdigit() or len(length) > 18 or int(length) > most:
            raise too_large
        pieces: list[bytes] = []
        body = None
        try:
            async with asyncio.timeout(settings.body_s) as limit:
                self._reading[body := _Body(limit)] = None
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal.of("body_incomplete", "the body ended before its end")
                    pieces.append(message.get("body", b""))
                    body.size += len(pieces[-1])
                    self._held_bytes += len(pieces[-1])
                    if body.size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(pieces)
                    self._keep_within_memory()
        except BaseException as error:
            self._held_bytes -= body.size if body else 0
            if not isinstance(error, TimeoutError):
                raise
            if body is not None and body.is_dropped:
                raise Refusal.of(
                    "bodies_memory", "too many bodies are being sent; try again", (b"retry-after", b"1")
                ) from None
            raise Refusal.of(
                "body_time", f"the body did not arrive within body_s={settings.body_s:g} s"
            ) from None
        finally:
            if body is not None:
                self._reading.pop(body, None)

    def _keep_within_memory(self) -> None:
        """Drop the body that has been read for the longest where all together are too large."""
        excess = self._held_bytes - (self.settings.bodies_mb << 20)
        for body in self._reading:
            if excess <= 0:
                return
            if not body.is_dropped:
                body.drop()
            excess -= body.size

    @contextmanager
    def _search(self, client: str) -> Iterator[None]:
        """Occupy a slot for a search of `client`. Raises Refusal if none is free."""
        again = (b"retry-after", b"1")
        if self._of_client[client] >= self.settings.searches_per_client:
            most = self.settings.searches_per_client
            raise Refusal.of(
                "client_searches",
                f"{most} searches of this client are under way (searches_per_client={most})",
                again,
            )
        if self._searches >= self.settings.searches:
            most = self.settings.searches
            raise Refusal.of("searches", f"{most} searches are under way (searches={most}); try again", again)
        self._searches += 1
        self._of_client[client] += 1
        try:
            yield
        finally:
            self._searches -= 1
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]

    @contextmanager
    def _page(self) -> Iterator[None]:
        if self._pages >= _MAX_PAGES:
            raise Refusal.of(
                "pages",
                f"{_MAX_PAGES} requests of this kind are under way; try again",
                (b"retry-after", b"1"),
            )
        self._pages += 1
        try:
            yield
        finally:
            self._pages -= 1


def with_body(body: bytes, receive: Receive) -> Receive:
    """What a client sends, `body` in place of what it sent as one; then whether it is still there."""
    was_sent = False

    async def receive_it() -> Message:
        nonlocal was_sent
        if not was_sent:
            was_sent = True
            return {"type": "http.request", "body": body, "more_body": False}
        while (message := await receive())["type"] != "http.disconnect":
            pass
        return message

    return receive_it


async def answer_refusal(send: Send, refusal: Refusal) -> None:
    """Answer {"error": one line}."""
    body = json.dumps({"error": str(refusal)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *refusal.headers,
    ]
    if refusal.status == 408:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def environment(settings: GateSettings) -> dict[str, str]:
    """The variables of the processes that listen."""
    return {_CALLBACK: f"{__name__}:{middlewares.__name__}", VARIABLE: json.dumps(dump(settings))}


def middlewares() -> list[Middleware]:
    """What Ray Serve's proxy calls when it starts."""
    import uvicorn.config

    # uvicorn has no deadlines for headers and answers; the proxy leaves it no choice of another protocol class.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "cluster.service.connections:GuardedConnection"
    return [Middleware(Gate, settings_of_environment())]


def settings_of_environment() -> GateSettings:
    """The settings in this process's environment. Raises ConfigError, RequestError."""
    return validate(GateSettings, json.loads(os.environ.get(VARIABLE, "{}")), VARIABLE)
