"""Credentials that end after seconds, before a WSGI application that speaks S3 and STS (moto's): those of a service
account's token, of an instance, and of a container.

Tokens are texts with the time at which they were written. Whoever brings one that is older than `lifetime_s`, or signs a
request by a key that was issued before that, is refused as S3 and STS refuse it.
"""

import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from io import BytesIO
from typing import Any

_EXPIRED = (
    b"<ErrorResponse><Error><Code>ExpiredTokenException</Code><Message>The web identity token has expired</Message></Error>"
    b"</ErrorResponse>"
)
_OLD_KEY = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


class ShortLived:
    """A WSGI application that admits requests with keys that it issued a moment ago."""

    def __init__(self, application: Callable[..., Iterable[bytes]], lifetime_s: float) -> None:
        self._application, self._lifetime_s = application, lifetime_s
        self._issued: dict[str, float] = {}
        self._used: set[str] = set()
        self._tokens: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        if path == "/_used":
            return self._say(start, {"keys": len(self._used), "tokens": len(self._tokens)})
        if path == "/latest/api/token":  # of an instance, version 2
            start("200 OK", [("Content-Type", "text/plain")])
            return [b"session"]
        if path.startswith("/latest/meta-data/iam/security-credentials"):
            if path.endswith("/role"):
                return self._say(start, self._issue_json())
            start("200 OK", [("Content-Type", "text/plain")])
            return [b"role"]
        if path == "/container-credentials":
            if not self._is_fresh(environ.get("HTTP_AUTHORIZATION", "")):
                start("403 Forbidden", [("Content-Type", "text/plain")])
                return [b"the token has expired"]
            return self._say(start, self._issue_json())
        if method == "POST" and "HTTP_AUTHORIZATION" not in environ:
            return self._assume_role(environ, start)
        key = re.search(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if method == "PUT" and key is None and path.count("/") == 1:  # the test makes its bucket
            return self._application(environ, start)
        with self._lock:
            issued = self._issued.get(key[1] if key else "", 0.0)
            self._used.add(key[1] if key else "")
        if time.time() - issued > self._lifetime_s:
            start("400 Bad Request", [("Content-Type", "application/xml")])
            return [_OLD_KEY]
        return self._application(environ, start)

    def _assume_role(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        """moto's own answer of AssumeRoleWithWebIdentity, with an end that is near."""
        # STS takes its arguments in the address or in the body, moto in the body alone.
        given = (
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            or environ["QUERY_STRING"].encode()
        )
        query = urllib.parse.parse_qs(given.decode())
        form = {"wsgi.input": BytesIO(given), "CONTENT_LENGTH": str(len(given)), "QUERY_STRING": ""}
        form["CONTENT_TYPE"] = "application/x-www-form-urlencoded"
        if not self._is_fresh(query.get("WebIdentityToken", [""])[0]):
            start("400 Bad Request", [("Content-Type", "application/xml")])
            return [_EXPIRED]
        answered: list[Any] = []
        parts = self._application({**environ, **form}, lambda *said: answered.append(said))
        text = b"".join(parts).decode()
        found = re.search(r"<AccessKeyId>(.*?)</AccessKeyId>", text)
        assert found is not None, text
        self._note(found[1])
        text = re.sub(r"<Expiration>.*?</Expiration>", f"<Expiration>{self._end()}</Expiration>", text)
        start(answered[-1][0], [("Content-Type", "text/xml")])
        return [text.encode()]

    def _issue_json(self) -> dict[str, object]:
        key = f"ASIA{time.time_ns()}"
        self._note(key)
        secrets = {"SecretAccessKey": "do-not-tell", "Token": "session", "Expiration": self._end()}
        return {
            "Code": "Success",
            "Type": "AWS-HMAC",
            "LastUpdated": self._end(),
            "AccessKeyId": key,
            **secrets,
        }

    def _note(self, key: str) -> None:
        with self._lock:
            self._issued[key] = time.time()

    def _is_fresh(self, token: str) -> bool:
        with self._lock:
            self._tokens.add(token)
        return time.time() - float(token.rpartition("-")[2] or 0) < self._lifetime_s

    def _end(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + self._lifetime_s))

    def _say(self, start: Callable[..., Any], facts: dict[str, object]) -> list[bytes]:
        start("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(facts).encode()]
