"""What one listening process refuses, counted by status and reason, and added to the answers of `/metrics`.

Replicas never see these requests. Each process counts its own, so Prometheus scrapes every pod.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import generate_latest

Reason = Literal[
    "header_size",
    "header_time",
    "token",
    "body_size",
    "body_time",
    "body_incomplete",
    "bodies_memory",
    "client_searches",
    "searches",
    "pages",
    "replica_time",
]
"""why a request is refused"""

STATUS: dict[Reason, int] = {
    "header_size": 431,
    "header_time": 408,
    "token": 401,
    "body_size": 413,
    "body_time": 408,
    "body_incomplete": 400,
    "bodies_memory": 503,
    "client_searches": 429,
    "searches": 503,
    "pages": 503,
    "replica_time": 504,
}
"""HTTP status of each reason"""

Closing = Literal["connections", "body_time", "answer_time"]
"""why a connection is closed without an answer: the limits of connections, or a client that neither sends nor takes"""

_registry = CollectorRegistry()
_refused = Counter(
    "fsl_dist_index_refused",
    "Requests that the listening process refused, by HTTP status and reason.",
    ["status", "reason"],
    registry=_registry,
)
_closed = Counter(
    "fsl_dist_index_closed_connections",
    "Connections that the listening process closed without an answer.",
    ["reason"],
    registry=_registry,
)
# A counter that appears with its first count has no rate for that count.
for _reason, _status in STATUS.items():
    _refused.labels(str(_status), _reason)
for _closing in get_args(Closing):
    _closed.labels(_closing)

Message = MutableMapping[str, Any]
_Send = Callable[[Message], Awaitable[None]]


def count_refusal(reason: Reason) -> None:
    """Count one refused request."""
    _refused.labels(str(STATUS[reason]), reason).inc()


def count_closing(reason: Closing) -> None:
    """Count one connection that was closed without an answer."""
    _closed.labels(reason).inc()


def with_refusals(send: _Send) -> _Send:
    """A `send` that appends this process's counters to a successful answer, which is a page of metrics."""
    start: Message = {}
    pieces: list[bytes] = []

    async def send_together(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
            return
        pieces.append(message.get("body", b""))
        if message.get("more_body", False):
            return
        if start["status"] == 200:
            pieces.append(generate_latest(_registry))
        body = b"".join(pieces)
        headers = [(name, value) for name, value in start["headers"] if name.lower() != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    return send_together
