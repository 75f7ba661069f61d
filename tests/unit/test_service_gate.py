"""What stands in front of the index service, over real sockets: half-sent requests, slow readers, limits, tokens."""

import asyncio
import hashlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import prometheus
import pytest
import uvicorn

from cluster.service import connections, gate
from cluster.service.gate import VARIABLE, Gate, environment, settings_of_environment
from cluster.service.refusals import STATUS
from cluster.service.settings import GateSettings
from index.base.errors import ConfigError

TOKEN = "a token of the tests 0123456789"
HEADERS = b"POST /search HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
QUICK = {"headers_s": 0.4, "body_s": 0.4, "answer_s": 0.4}
DEADLINE = 0.4 + 2.0 + 1.5  # with what a busy machine needs


class Replica:
    """What is behind the gate: it counts requests, keeps bodies, and answers when it may."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.headers: list[list[bytes]] = []
        self.answer = b"{}"
        self.is_open = threading.Event()
        self.is_open.set()
        self.num_inside = 0
        self.swallows = False
        self.lingers = False

    async def __call__(self, scope, receive, send) -> None:
        self.num_inside += 1
        self.headers.append([name for name, _ in scope["headers"]])
        body = (await receive())["body"]
        try:
            while scope["path"] == "/search" and not self.is_open.is_set():
                await asyncio.sleep(0.01)
            self.bodies.append(body)
            size = str(len(self.answer)).encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", size)]})
            await send({"type": "http.response.body", "body": self.answer})
            if self.lingers:
                await asyncio.sleep(60)
        except asyncio.CancelledError:
            if not self.swallows:
                raise
        finally:
            self.num_inside -= 1


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, **settings: object) -> Iterator[tuple[Replica, int]]:
    """A replica behind a gate with these settings, and the port."""
    chosen = GateSettings(**{**QUICK, **settings})  # type: ignore[arg-type]
    monkeypatch.setenv(VARIABLE, environment(chosen)[VARIABLE])
    monkeypatch.setattr(connections, "_connections", None)
    replica = Replica()
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        config = uvicorn.Config(
            Gate(replica, settings_of_environment()),  # type: ignore[arg-type]
            http=connections.GuardedConnection,
            lifespan="off",
            log_level="critical",
            timeout_keep_alive=60,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield replica, listening.getsockname()[1]
        finally:
            replica.is_open.set()
            server.should_exit = True
            thread.join()


def wait_until(is_so: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.005)


class Clients(ExitStack):
    """Raw connections to one port."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port = port

    def open(self, data: bytes = b"") -> socket.socket:
        connection = self.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        connection.sendall(data)
        return connection

    def ask(self, data: bytes) -> int:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(data)
            return status_of(connection)


def status_of(connection: socket.socket) -> int:
    """The status of the next answer; 0 where the connection was closed without one."""
    try:
        first = connection.recv(65536)
    except ConnectionResetError:
        return 0
    return int(first.split()[1]) if first else 0


def is_taken(connection: socket.socket, data: bytes) -> bool:
    """Whether the other side still takes what is sent."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def get(path: str, *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "host: x", *headers, "", ""]).encode()


def post(body: bytes = b"{}", *headers: bytes) -> bytes:
    return (
        HEADERS
        + b"".join(header + b"\r\n" for header in headers)
        + b"content-length: %d\r\n\r\n" % len(body)
        + body
    )


def test_half_sent_bodies_take_no_place_and_end_with_408(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, searches=4) as (replica, port), Clients(port) as clients:
        held = [clients.open(HEADERS + b'content-length: 100\r\n\r\n{"qu') for _ in range(150)]
        assert clients.ask(get("/health")) == 200
        assert clients.ask(post()) == 200
        assert replica.num_inside == 0
        start = time.monotonic()
        assert [status_of(connection) for connection in held] == [408] * 150
        assert [connection.recv(1) for connection in held] == [b""] * 150
        assert time.monotonic() - start < DEADLINE


def test_a_trickled_body_and_trickled_headers_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as (_, port), Clients(port) as clients:
        body = clients.open(HEADERS + b"transfer-encoding: chunked\r\n\r\n")
        headers, blank, silent = clients.open(b"GET /health HT"), clients.open(b"\r\n"), clients.open()
        start = time.monotonic()
        left = {body: b"1\r\nx\r\n", headers: b"x", blank: b"\r\n"}
        while left:
            for connection, piece in list(left.items()):
                if not is_taken(connection, piece):
                    del left[connection]
            assert time.monotonic() - start < DEADLINE
            time.sleep(0.02)
        assert status_of(silent) == 408
        assert silent.recv(1) == b""


def test_whoever_keeps_sending_after_a_refusal_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, max_body_mb=1) as (replica, port), Clients(port) as clients:
        connection = clients.open(HEADERS + b"content-length: 99999999\r\n\r\nx")
        assert status_of(connection) == 413
        start = time.monotonic()
        while is_taken(connection, b"x" * 1000):
            assert time.monotonic() - start < DEADLINE
            time.sleep(0.02)
        assert replica.bodies == []


def test_a_connection_is_used_again_after_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as (replica, port), Clients(port) as clients:
        connection = clients.open(post(b"1"))
        assert status_of(connection) == 200
        time.sleep(0.6)  # longer than every deadline: nothing is under way
        connection.sendall(post(b"2"))
        assert status_of(connection) == 200
        # A busy replica is no client's fault.
        replica.is_open.clear()
        connection.sendall(post(b"3"))
        time.sleep(0.6)
        replica.is_open.set()
        assert status_of(connection) == 200
        connection.sendall(post(b"4") + post(b"5") + get("/health"))
        wait_until(lambda: len(replica.bodies) == 6)
        assert replica.bodies == [b"1", b"2", b"3", b"4", b"5", b""]


def test_who_does_not_take_the_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch) as (replica, port), Clients(port) as clients:
        replica.answer = b"x" * (32 << 20)
        connection = clients.open(post())
        wait_until(lambda: len(replica.bodies) == 1)
        wait_until(lambda: replica.num_inside == 0)
        time.sleep(DEADLINE - 1.5)
        received = 0
        with suppress(ConnectionResetError):
            while piece := connection.recv(1 << 20):
                received += len(piece)
        assert received < 32 << 20


def test_searches_have_places_and_health_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, searches=3, searches_per_client=3) as (replica, port), Clients(port) as clients:
        replica.is_open.clear()
        held = [clients.open(post()) for _ in range(3)]
        wait_until(lambda: replica.num_inside == 3)
        assert clients.ask(post()) == 429
        assert clients.ask(get("/health")) == clients.ask(get("/-/healthz")) == 200
        replica.is_open.set()
        assert [status_of(connection) for connection in held] == [200] * 3
        assert clients.ask(post()) == 200
    with served(monkeypatch, searches=3) as (replica, port), Clients(port) as clients:
        replica.is_open.clear()
        held = [clients.open(post()) for _ in range(3)]
        wait_until(lambda: replica.num_inside == 3)
        assert clients.ask(post()) == 503
        held[0].close()  # the one behind sees that its client is gone
        replica.is_open.set()
        wait_until(lambda: replica.num_inside == 0)
        assert clients.ask(post()) == 200


def test_a_replica_that_hangs_is_refused_by_504(monkeypatch: pytest.MonkeyPatch) -> None:
    with served(monkeypatch, replica_s=0.3) as (replica, port), Clients(port) as clients:
        replica.is_open.clear()
        assert clients.ask(post()) == 504
        wait_until(lambda: replica.num_inside == 0)
        replica.swallows = True  # as Ray Serve's proxy does
        assert clients.ask(post()) == 504
        replica.is_open.set()
        assert clients.ask(post()) == 200


def test_a_search_that_is_answered_holds_no_place_even_if_its_end_never_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gate, "_END_S", 0.3)
    with served(monkeypatch, searches=1) as (replica, port), Clients(port) as clients:
        replica.lingers = True
        assert [clients.ask(post()) for _ in range(5)] == [200] * 5
        assert clients.ask(get("/health")) == 200
        wait_until(lambda: replica.num_inside == 0)


def test_at_too_many_connections_those_that_wait_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {"headers_s": 60.0, "body_s": 60.0}
    for name in ("connections_per_client", "connections"):
        with served(monkeypatch, **limits, **{name: 20}) as (replica, port), Clients(port) as clients:
            replica.is_open.clear()
            busy = clients.open(post())
            wait_until(lambda: replica.num_inside == 1)
            waiting = [clients.open(b"POST") for _ in range(100)]
            assert clients.ask(get("/health")) == 200
            assert [status_of(connection) for connection in waiting[:70]] == [0] * 70
            replica.is_open.set()
            assert status_of(busy) == 200


def test_bodies_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"max_body_mb": 2, "bodies_mb": 4, "body_s": 60.0}
    with served(monkeypatch, **settings) as (replica, port), Clients(port) as clients:
        piece = b"x" * (1 << 20)
        held = [clients.open(HEADERS + b"content-length: 2000000\r\n\r\n" + piece) for _ in range(6)]
        # Those that have been sent for the longest are dropped, and what arrives whole is answered.
        assert status_of(held[0]) == 503
        assert clients.ask(post(b"y" * (1 << 20))) == 200
        assert len(replica.bodies) == 1
        held[-1].sendall(b"x" * (2000000 - (1 << 20)))
        assert status_of(held[-1]) == 200


def test_the_token_is_asked_for_before_a_body_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    bearer = f"authorization: Bearer {TOKEN}"
    with served(monkeypatch, token_sha256=digest) as (replica, port), Clients(port) as clients:
        assert status_of(clients.open(HEADERS + b"content-length: 100\r\n\r\n")) == 401
        for path in ("/", "/-/routes"):
            assert clients.ask(get(path)) == clients.ask(get(path, "authorization: Bearer \xe9")) == 401
            assert clients.ask(get(path, bearer)) == 200
        for path in ("/health", "/-/healthz", "/metrics", "/openapi.json"):
            assert clients.ask(get(path)) == 200
        assert clients.ask(post(b"{}", bearer.encode())) == 200
        assert replica.bodies[-1] == b"{}"


def test_refusals_are_counted_by_reason_on_the_page_of_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    bearer = f"authorization: Bearer {TOKEN}".encode()
    with (
        served(monkeypatch, token_sha256=digest, max_body_mb=1, bodies_mb=1) as (replica, port),
        Clients(port) as clients,
    ):
        replica.answer = b"a_total 1.0\n"

        def counts() -> dict[str, float]:
            samples = prometheus.read_samples(body_of(port, "/metrics"))
            assert [sample.value for sample in samples if sample.name == "a_total"] == [1.0]
            return {
                f"{sample.labels['reason']} {sample.labels.get('status', '')}".strip(): sample.value
                for sample in samples
                if sample.name.endswith(("refused_total", "closed_connections_total"))
            }

        before = counts()
        assert set(before) == {f"{reason} {status}" for reason, status in STATUS.items()} | {
            "connections",
            "body_time",
            "answer_time",
        }
        assert clients.ask(post(b"{}")) == 401
        assert status_of(clients.open(HEADERS + bearer + b"\r\ncontent-length: 1048577\r\n\r\n")) == 413
        assert status_of(clients.open(HEADERS + bearer + b"\r\ncontent-length: 9\r\n\r\n")) == 408
        assert clients.ask(get("/health", "x: " + "y" * 100_000)) == 431
        assert status_of(clients.open(b"GET / HT")) == 408
        after = counts()
        grown = {name: after[name] - before[name] for name in after if after[name] > before[name]}
        assert grown == {
            "token 401": 1,
            "body_size 413": 1,
            "body_time 408": 1,
            "header_size 431": 1,
            "header_time 408": 1,
        }


def body_of(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (get("/health", "x-request-id: \xff\xfe", "serve-multiplexed-model-id: \xff"), 200),
        (get("/health", "content-length: 5") + b"12345", 200),
        (get("/health", "connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13"), 200),
        (get("/health", "x: " + "y" * 100_000), 431),
        (b"GET /" + b"y" * 400_000, 431),
        (HEADERS + b"content-length: -1\r\n\r\n", 400),
        (HEADERS + b"content-length: 99999999999999999999\r\n\r\n", 400),
        (HEADERS + b"content-length: 999999999999\r\n\r\n", 413),
        (HEADERS + b"transfer-encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
    ],
)
def test_odd_requests_get_an_answer(monkeypatch: pytest.MonkeyPatch, data: bytes, status: int) -> None:
    with served(monkeypatch, max_body_mb=1) as (replica, port), Clients(port) as clients:
        assert clients.ask(data) == status
        assert clients.ask(get("/health")) == 200
        allowed = {b"host", b"content-type", b"content-length", b"accept", b"authorization", b"user-agent"}
        assert {name for names in replica.headers for name in names} <= allowed


def test_settings_go_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_TOKEN", TOKEN)
    monkeypatch.setenv(VARIABLE, json.dumps({"token_env": "A_TOKEN", "body_s": 5}))
    found = settings_of_environment()
    assert (found.body_s, found.token_sha256) == (5.0, hashlib.sha256(TOKEN.encode()).hexdigest())
    with pytest.raises(ConfigError, match=r"gate\.bodies_mb=4 is below max_body_mb=32.*raise bodies_mb"):
        GateSettings(bodies_mb=4)
    with pytest.raises(ConfigError, match=r"gate\.body_s=0"):
        GateSettings(body_s=0)
