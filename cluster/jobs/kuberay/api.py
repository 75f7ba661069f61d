"""Kubernetes' API by the official client: JSON in and out, and its failures in one line each."""

import codecs
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from index.base.errors import FslDistError, RequestError
from index.base.extras import require

_CONNECT_S, _READ_S = 5, 60
_MERGE = "application/merge-patch+json"


class KubeError(FslDistError):
    """The API server refused a request; `status` is its HTTP code."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class KubeApi:
    """The cluster of the current kubeconfig context, or the one that this process runs in."""

    def __init__(self) -> None:
        require("kubernetes")
        from kubernetes import client, config

        settings = client.Configuration()
        # A cluster that is away is told at once, not after three tries.
        settings.retries = 0
        try:
            config.load_kube_config(client_configuration=settings)
        except config.ConfigException as error:
            try:
                config.load_incluster_config(client_configuration=settings)
            except config.ConfigException:
                raise RequestError(
                    f"no Kubernetes cluster is configured: {' '.join(str(error).split())} (KUBECONFIG names the file, kubectl "
                    "config use-context the cluster)"
                ) from None
        self.host = str(settings.host)
        self._client = client.ApiClient(settings)

    def get(self, path: str, **query: str) -> dict:
        """An object or a list. KubeError."""
        return self._json("GET", path, query=query)

    def find(self, path: str) -> dict | None:
        """An object; None where there is none."""
        try:
            return self.get(path)
        except KubeError as error:
            if error.status != 404:
                raise
            return None

    def create(self, path: str, body: Mapping, *, is_trial: bool = False) -> dict:
        """Create an object; on trial, everything but keeping it."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if is_trial else {})
        return self._json("POST", path, body, query=query)

    def change(self, path: str, body: Mapping) -> dict:
        """Lay a merge patch over an object."""
        return self._json("PATCH", path, body, content=_MERGE)

    def delete(self, path: str) -> None:
        """Delete an object, and what it owns, in the background."""
        self._json("DELETE", path, {"propagationPolicy": "Background"})

    def stream(self, path: str, **query: str) -> Iterator[str]:
        """A text, in pieces as they come. Ends quietly where the connection does."""
        import urllib3

        response = self._ask("GET", path, query=query, read_s=None)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            for piece in response.stream(1 << 16):
                yield decoder.decode(piece)
        except urllib3.exceptions.HTTPError:
            return
        finally:
            response.close()

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
        read_s: float | None = _READ_S,
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
                method, url, header_params=headers, body=sent, _request_timeout=(_CONNECT_S, read_s)
            ).response
        except (urllib3.exceptions.HTTPError, ApiException, OSError) as error:
            reason = " ".join(str(getattr(error, "reason", error)).split())
            raise FslDistError(
                f"the Kubernetes API at {self.host} does not answer: {reason} (kubectl cluster-info asks it, too)"
            ) from None
        if response.status >= 400:
            raise KubeError(self._explain(response.status, response.read(), path), response.status)
        return response

    def _explain(self, status: int, data: bytes, path: str) -> str:
        try:
            said = json.loads(data)["message"]
        except (ValueError, KeyError, TypeError):
            said = data.decode("utf-8", "replace")[:200] or f"HTTP {status}"
        said = " ".join(str(said).split())
        if status == 401:
            return f"the Kubernetes API at {self.host} does not know who asks: {said} (log in to the cluster again)"
        return f"Kubernetes refuses {path}: {said}"
