"""The middleware in front of the application: who may ask, from which page, how much and for how long."""

import hashlib
import hmac
import secrets
from collections.abc import MutableMapping
from contextlib import ExitStack
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from cluster.service.gate import App, Gate, Message, Receive, Refusal, Send, answer_refusal, with_body
from cluster.service.settings import GateSettings, bears_token

COOKIE = "fsl_dist_view"
LOGIN = "/login"
_OPEN = (LOGIN, "/health")
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


class Sessions:
    """The cookie of browsers that have sent the token; it is valid until the process ends."""

    def __init__(self, token_sha256: str) -> None:
        self.token_sha256 = token_sha256
        self.cookie = hmac.new(secrets.token_bytes(32), token_sha256.encode(), hashlib.sha256).hexdigest()

    def is_token(self, token: str) -> bool:
        """Whether a text is the token."""
        return bears_token(f"Bearer {token}", self.token_sha256)

    def admits(self, headers: MutableMapping[bytes, bytes]) -> bool:
        """Whether a request has the token or the cookie; all requests do where no token is needed."""
        if bears_token(headers.get(b"authorization", b"").decode("latin-1"), self.token_sha256):
            return True
        try:
            found = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(COOKIE)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(found.value.encode(), self.cookie.encode())


class ViewGate(Gate):
    """Reads a request's body within limits, and passes it on if its sender may ask.

    Without a token only this machine can connect, but any web site that its user opens can send requests here. They
    are refused by the names in their Host and Origin headers.
    """

    def __init__(self, app: App, settings: GateSettings, sessions: Sessions, names: frozenset[str]) -> None:
        """names: host names by which the application may be called without a token."""
        super().__init__(app, settings)
        self._sessions, self._names = sessions, names

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it with a line of JSON."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = {name.lower(): value for name, value in scope["headers"]}

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            self._check_sender(scope, headers)
            with ExitStack() as place:
                body = b""
                if scope["method"] == "POST":
                    body = await self._read(headers, receive)
                    place.callback(self._let_go, len(body))
                place.enter_context(self._search(scope["client"][0] if scope.get("client") else ""))
                await self._pass(scope, with_body(body, receive), send_guarded, place)
        except Refusal as refusal:
            await answer_refusal(send_guarded, refusal)

    def _check_sender(self, scope: MutableMapping[str, Any], headers: MutableMapping[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._sessions.token_sha256 and _host_name(host) not in self._names:
            raise Refusal(403, f"this application is not called {host[:100]}")
        origin = headers.get(b"origin", b"").decode("latin-1")
        site = headers.get(b"sec-fetch-site", b"none")
        if scope["method"] != "GET" and (
            (origin and origin.partition("://")[2] != host) or site not in (b"none", b"same-origin")
        ):
            raise Refusal(403, "this request was sent by a page of another site")
        path = scope["path"]
        if path in _OPEN or path.startswith("/static/") or self._sessions.admits(headers):
            return
        if scope["method"] == "GET" and b"text/html" in headers.get(b"accept", b""):
            raise Refusal(303, "a token is needed", (b"location", LOGIN.encode()))
        raise Refusal(
            401,
            "this application needs a token: Authorization: Bearer TOKEN",
            (b"www-authenticate", b"Bearer"),
        )


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty for one that is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
