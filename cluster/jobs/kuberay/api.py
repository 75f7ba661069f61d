"""The Kubernetes API through the official client: JSON in and out, repeated requests, errors in one line each."""

import codecs
import json
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

from cluster.jobs.job import LostSightError
from index.base.errors import FslDistError, RequestError
from index.base.extras import require

log = logging.getLogger(__name__)

API_TIMEOUT_S = 300.0
"""seconds for which a server that has answered before may be unreachable; a restart takes 10 to 60"""

_CONNECT_S, _READ_S = 5, 30
_QUIET_S = 60
"""seconds after which a log without new lines is requested again: the connection may be dead"""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 15.0
_MERGE = "application/merge-patch+json"
_PASSING = {401, 408, 425, 429, 500, 502, 503, 504}
"""HTTP codes that may pass: an expired token that is renewed, a busy server, a restart"""


class KubeError(FslDistError):
    """The API server refused a request; `status` is its HTTP code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class BrokenOffError(FslDistError):
    """A connection ended in the middle of an answer."""


class _AwayError(FslDistError):
    """The API server did not answer, or with an error that may pass."""

    def __init__(self, message: str, pause_s: float = 0.0) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class KubeApi:
    """The cluster of the current kubeconfig context, or the one that this process runs in.

    A request is sent again, with growing random pauses, if the connection is refused or breaks, after 429 and 5xx, and
    if the token has expired, which is then read from its file again. Nothing is repeated before the server has answered
    the first request of this object: a wrong address is reported at once.

    Args:
        timeout_s: seconds for which one request is repeated.
        sleep: waits for seconds; tests pass their own.
    """

    def __init__(
        self, *, timeout_s: float = API_TIMEOUT_S, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        require("kubernetes")
        self._timeout_s, self._sleep = timeout_s, sleep
        self._has_answered = False
        self._ahead_s: float | None = None  # of the server's clock
        self._connect()

    def get(self, path: str, **query: str) -> dict:
        """An object or a list. Raises KubeError."""
        return self._json("GET", path, query=query)

    def find(self, path: str) -> dict | None:
        """An object; None if it does not exist."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.status != 404:
                raise
            return None

    def look(self, path: str, **query: str) -> dict | None:
        """An object or a list; None if it does not exist or may not be read."""
        try:
            return self.get(path, **query)
        except KubeError as error:
            if error.status not in (403, 404):
                raise
            return None

    def create(self, path: str, body: Mapping, *, is_trial: bool = False) -> dict:
        """Create an object; is_trial: a dry run. A repeated request may find its own object (409)."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if is_trial else {})
        return self._json("POST", path, body, query=query)

    def change(self, path: str, body: Mapping) -> dict:
        """Apply a merge patch to an object."""
        return self._json("PATCH", path, body, content=_MERGE)

    def delete(self, path: str) -> None:
        """Delete an object and everything it owns, in the background."""
        self._json("DELETE", path, {"propagationPolicy": "Background"})

    def now_s(self) -> float:
        """Seconds since 1970 by the server's clock, from its last answer; before the first one, by the local clock."""
        return time.time() if self._ahead_s is None else time.time() + self._ahead_s

    def stream(self, path: str, **query: str) -> Iterator[str]:
        """A text in pieces. Raises BrokenOffError if the connection breaks or is silent for a minute."""
        import urllib3

        response = self._ask("GET", path, query=query, is_stream=True)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for piece in response.stream(1 << 16):
                yield decoder.decode(piece)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise BrokenOffError(f"the connection to {self.host} broke off: {error}") from None
        finally:
            response.close()

    def _connect(self) -> None:
        """Read the configuration and the file of the token."""
        from kubernetes import client, config

        settings = client.Configuration()
        settings.retries = 0
        try:
            config.load_kube_config(client_configuration=settings)
        except config.ConfigException as error:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                raise RequestError(
                    f"no Kubernetes cluster is configured: {' '.join(str(error).split())} (set KUBECONFIG to the file; kubectl "
                    "config use-context chooses the cluster)"
                ) from None
        self.host = str(settings.host)
        self._client = client.ApiClient(settings)

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> dict:
        response = self._ask(method, path, body, query=query, content=content)
        return json.loads(response.data)

    def _ask(
        self,
        method: str,
        path: str,
        body: Mapping | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
        is_stream: bool = False,
    ) -> Any:
        """The answer to a request, repeated while the server is unreachable. Raises KubeError, LostSightError."""
        deadline = time.monotonic() + self._timeout_s
        pause_s, is_said = _FIRST_PAUSE_S, False
        while True:
            try:
                response = self._ask_once(method, path, body, query, content, is_stream)
            except _AwayError as error:
                left_s = deadline - time.monotonic()
                if not self._has_answered:
                    raise FslDistError(f"{error} (check with kubectl cluster-info)") from None
                if left_s <= 0:
                    raise LostSightError(
                        f"{error}; requests were repeated for {self._timeout_s:g} s (api_timeout_s={self._timeout_s:g})"
                    ) from None
                if not is_said:
                    log.warning("%s; trying again for %g s", error, self._timeout_s)
                    is_said = True
                # Half of it is random: clients that lost the same server do not return at once.
                wait_s = max(pause_s * random.uniform(0.5, 1.0), error.pause_s)  # noqa: S311 - jitter, no secret
                self._sleep(min(wait_s, max(left_s, 0.0)))
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            self._has_answered = True
            if stamp := response.headers.get("Date"):
                self._ahead_s = parsedate_to_datetime(stamp).timestamp() - time.time()
            if is_said:
                log.info("the Kubernetes API at %s answers again", self.host)
            return response

    def _ask_once(
        self,
        method: str,
        path: str,
        body: Mapping | None,
        query: Mapping[str, str] | None,
        content: str,
        is_stream: bool,
    ) -> Any:
        response = self._send(method, path, body, query, content, is_stream)
        if response.status == 401:
            # An expired token is renewed in its file.
            self._connect()
            response = self._send(method, path, body, query, content, is_stream)
        if response.status < 400:
            return response
        error = KubeError(self._explain(response.status, response.data, path), response.status)
        if response.status not in _PASSING or not self._has_answered:
            raise error
        asked = response.headers.get("Retry-After", "")
        raise _AwayError(str(error), float(asked) if asked.isdigit() else 0.0)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping | None,
        query: Mapping[str, str] | None,
        content: str,
        is_stream: bool,
    ) -> Any:
        import urllib3
        from kubernetes.client import ApiException

        method, url, headers, sent, _ = self._client.param_serialize(
            method=method,
            resource_path=quote(path),
            query_params=list((query or {}).items()),
            header_params={"Accept": "*/*", "Content-Type": content},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            response = self._client.call_api(
                method,
                url,
                header_params=headers,
                body=sent,
                _request_timeout=(_CONNECT_S, _QUIET_S if is_stream else _READ_S),
            ).response
            if not is_stream or response.status >= 400:
                _ = response.data  # read here: a body may break off as well
            return response
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise _AwayError(f"the Kubernetes API at {self.host} does not answer: {reason}") from None

    def _explain(self, status: int, data: bytes, path: str) -> str:
        try:
            said = json.loads(data)["message"]
        except (ValueError, KeyError, TypeError):
            said = data.decode("utf-8", "replace")[:200] or f"HTTP {status}"
        said = " ".join(str(said).split())
        if status == 401:
            return f"the Kubernetes API at {self.host} does not accept the login: {said} (log in to the cluster again)"
        return f"Kubernetes refuses {path}: {said}"
