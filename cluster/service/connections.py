"""Connections of the processes that listen, with deadlines for what a client sends and takes.

A connection is in one of three states: it waits for the headers of a request, it receives the body, or it is busy. A
busy connection has a complete request, and the answer is computed or sent. Each state but the last has a deadline, and
so has an answer that a client does not receive.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.service.gate import MAX_HEADER_BYTES, settings_of_environment
from cluster.service.refusals import count_closing, count_refusal
from cluster.service.settings import GateSettings

# After the body's own deadline the middleware answers 408; a client that continues to send is then disconnected.
_LINGER_S = 2.0


class _Connections:
    """The connections of this process by client address, in the order in which their last request ended."""

    def __init__(self, settings: GateSettings) -> None:
        self.settings = settings
        self._of_client: dict[str, dict[GuardedConnection, None]] = {}
        self._num = 0

    def add(self, connection: "GuardedConnection") -> None:
        """Count a new connection; at the limits, one that waits for its client is closed for it."""
        own = self._of_client.setdefault(connection.address, {})
        own[connection] = None
        self._num += 1
        if len(own) > self.settings.connections_per_client:
            self._close_one(own)
        elif self._num > self.settings.connections:
            self._close_one(max(self._of_client.values(), key=len))

    def remove(self, connection: "GuardedConnection") -> None:
        """Forget a connection."""
        own = self._of_client.get(connection.address, {})
        if connection in own:
            del own[connection]
            self._num -= 1
            if not own:
                del self._of_client[connection.address]

    def renew(self, connection: "GuardedConnection") -> None:
        """Note that a request of `connection` has just ended: others of its address are closed before it."""
        own = self._of_client.get(connection.address, {})
        if connection in own:
            own[connection] = own.pop(connection)

    def _close_one(self, own: "dict[GuardedConnection, None]") -> None:
        waiting = next((one for one in own if not one.is_busy), None)
        chosen = waiting or next(reversed(own))
        self.remove(chosen)
        count_closing("connections")
        chosen.transport.abort()


_connections: _Connections | None = None


class GuardedConnection(HttpToolsProtocol):
    """uvicorn's connection with deadlines, without websockets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        global _connections
        super().__init__(*args, **kwargs)
        if _connections is None:
            _connections = _Connections(settings_of_environment())
        self._all = _connections
        self._settings = _connections.settings
        self.ws_protocol_class = None
        self.address = ""
        self.is_busy = False
        self._in_headers = True
        self._is_whole = True
        self._header_bytes = 0
        self._receiving: asyncio.TimerHandle | None = None
        self._sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        self._all.add(self)
        self._wait_for_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and its deadlines."""
        self._all.remove(self)
        self._stop_waiting()
        self._stop_sending()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what the client has sent."""
        if self._in_headers:
            self._header_bytes += len(data)
            if self._receiving is None:  # the first bytes of the next request
                self._wait_for_headers()
        super().data_received(data)
        if self._in_headers and self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
            count_refusal("header_size")
            self._refuse(b"431 Request Header Fields Too Large")

    def on_headers_complete(self) -> None:
        """Wait for the body."""
        self._in_headers, self._is_whole, self.is_busy = False, False, False
        self._stop_waiting()
        super().on_headers_complete()
        if not self.pipeline:
            self._wait_for_body()

    def on_message_complete(self) -> None:
        """Leave the client its time: the request is whole."""
        self._stop_waiting()
        self._in_headers, self._is_whole, self._header_bytes = True, True, 0
        self.is_busy = not self.cycle.response_complete
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Wait until the client has taken the answer, and sent the rest of its body, which nobody reads."""
        super().on_response_complete()
        self._all.renew(self)
        self.is_busy = bool(self.pipeline)
        if not self._is_whole and self._receiving is None:
            self._wait_for_body()
        if self.transport.get_write_buffer_size() > 0:
            self._wait_for_reader()

    def pause_writing(self) -> None:
        """Wait until the client takes what was written."""
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        """The client has taken it."""
        self._stop_sending()
        super().resume_writing()

    def _stop_waiting(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
            self._receiving = None

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _wait_for_headers(self) -> None:
        self._receiving = self.loop.call_later(self._settings.headers_s, self._end_headers)

    def _wait_for_body(self) -> None:
        self._receiving = self.loop.call_later(self._settings.body_s + _LINGER_S, self._end_body)

    def _wait_for_reader(self) -> None:
        if self._sending is None:
            self._sending = self.loop.call_later(self._settings.answer_s, self._end_answer)

    def _end_headers(self) -> None:
        self._receiving = None
        if not self.is_busy:
            count_refusal("header_time")
            self._refuse(b"408 Request Timeout")

    def _end_body(self) -> None:
        count_closing("body_time")
        self.transport.abort()

    def _end_answer(self) -> None:
        self._sending = None
        if self.transport.get_write_buffer_size() > 0:
            count_closing("answer_time")
            self.transport.abort()

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
        self.transport.close()
        self._wait_for_reader()
