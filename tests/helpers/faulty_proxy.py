"""A proxy on loopback before an HTTP server, which changes a byte of some answers, cuts others off or stops in them."""

import random
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class FaultyProxy:
    """Forwards to `target`; of the GETs with a body so many are changed or, above 4000 bytes, cut off in the middle, and
    so many of all requests answered 503.

    Which ones follows from `seed` and the order of requests; at most `most` are changed, and as many cut. While `stops` is set, a GET ends its answer in the middle
    and waits; `has_stopped` is set then.
    """

    def __init__(
        self, target: str, *, changed: float = 0.0, cut: float = 0.0, refused: float = 0.0, seed: int = 0
    ) -> None:
        self.num_changed = self.num_cut = self.num_refused = 0
        self.changed, self.cut, self.most = changed, cut, 1_000_000_000
        self.stops, self.has_stopped = threading.Event(), threading.Event()
        draw, lock = random.Random(seed), threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                with lock:
                    is_refused, is_changed, place, is_cut = (
                        draw.random() < refused,
                        draw.random() < proxy.changed and proxy.num_changed < proxy.most,
                        draw.random(),
                        proxy.cut > 0 and draw.random() < proxy.cut and proxy.num_cut < proxy.most,
                    )
                if is_refused:
                    proxy.num_refused += 1
                    self.answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
                    return
                headers = {
                    name: value for name, value in self.headers.items() if name.lower() != "connection"
                }
                request = urllib.request.Request(
                    target + self.path, data=body or None, headers=headers, method=self.command
                )
                try:
                    with urllib.request.urlopen(request, timeout=60) as answered:
                        status, said, data = answered.status, dict(answered.headers), answered.read()
                except urllib.error.HTTPError as error:
                    status, said, data = error.code, dict(error.headers), error.read()
                is_object = said.get("Content-Type", "") != "application/xml" and status in (200, 206)
                if is_changed and self.command == "GET" and is_object and data:
                    proxy.num_changed += 1
                    where = int(place * len(data))
                    data = data[:where] + bytes([data[where] ^ 0x10]) + data[where + 1 :]
                is_long = self.command == "GET" and is_object and len(data) > 4000
                if is_cut and is_long:
                    proxy.num_cut += 1
                self.answer(
                    status, said, data, is_cut=is_long and is_cut, stops=is_long and proxy.stops.is_set()
                )

            def answer(
                self,
                status: int,
                said: dict[str, str],
                data: bytes,
                *,
                is_cut: bool = False,
                stops: bool = False,
            ) -> None:
                self.send_response(status)
                for name, value in said.items():
                    if name.lower() not in (
                        "content-length",
                        "connection",
                        "transfer-encoding",
                        "date",
                        "server",
                    ):
                        self.send_header(name, value)
                is_head = self.command == "HEAD"
                self.send_header(
                    "Content-Length", said.get("Content-Length", "0") if is_head else str(len(data))
                )
                self.end_headers()
                if is_cut or stops:
                    self.wfile.write(data[: len(data) // 2])
                    self.wfile.flush()
                    while stops and proxy.stops.is_set():
                        proxy.has_stopped.set()
                        threading.Event().wait(0.05)
                    self.close_connection = True
                elif not is_head:
                    self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = forward

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
