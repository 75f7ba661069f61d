"""An S3 server on loopback: moto's, which keeps everything in memory, behind a journal so that a killed one comes back whole.

    python s3_server.py PORT JOURNAL [DELAY_S [LIFETIME_S TLS_PORT CERTIFICATE]]

Whatever changed something is noted on the disk before it is answered, and done again before a restarted server listens.
Requests signed with the key `denied` are answered 403; without `If-None-Match` where the journal's name ends in .plain.
With LIFETIME_S, keys and tokens end after so many seconds (short_lived.py), and TLS_PORT answers the same by TLS.
"""

import pickle
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable
from io import BytesIO
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from short_lived import ShortLived
from werkzeug.serving import make_server

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_KEPT = (
    "REQUEST_METHOD",
    "PATH_INFO",
    "QUERY_STRING",
    "CONTENT_TYPE",
    "HTTP_HOST",
    "SERVER_NAME",
    "SERVER_PORT",
)


class Journalled:
    """A WSGI application whose changes outlive its process."""

    def __init__(self, application: Callable[..., Iterable[bytes]], path: Path, delay_s: float) -> None:
        self._application, self._path, self._delay_s = application, path, delay_s
        if path.exists():
            with path.open("rb") as file:
                while file.peek(1):
                    environ, body = pickle.load(file)
                    self._call({**environ, "wsgi.input": BytesIO(body)}, lambda *_: None)
        self._file = path.open("ab")

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(self._delay_s)
        if "Credential=denied" in environ.get("HTTP_AUTHORIZATION", ""):
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [_DENIED]
        if self._path.suffix == ".plain":
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self._application(environ, start)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        answered: list[Any] = []
        parts = self._call({**environ, "wsgi.input": BytesIO(body)}, lambda *said: answered.append(said))
        if answered[-1][0].startswith("2"):
            kept = {
                name: value for name, value in environ.items() if name in _KEPT or name.startswith("HTTP_")
            }
            plain = {"CONTENT_LENGTH": str(len(body)), "wsgi.url_scheme": "http", "wsgi.errors": None}
            self._file.write(pickle.dumps(({**kept, **plain}, body)))
            self._file.flush()
        start(*answered[-1])
        return parts

    def _call(self, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
        return list(self._application(environ, start))


def main() -> None:
    port, journal, *more = sys.argv[1:]
    moto = DomainDispatcherApplication(create_backend_app)
    application: Any = Journalled(moto, Path(journal), float(more[0]) if more else 0.0)
    if more[1:]:
        lifetime_s, tls_port, certificate = more[1:]
        application = ShortLived(application, float(lifetime_s))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        secure = make_server("127.0.0.1", int(tls_port), application, threaded=True, ssl_context=context)
        threading.Thread(target=secure.serve_forever, daemon=True).start()
    make_server("127.0.0.1", int(port), application, threaded=True).serve_forever()


if __name__ == "__main__":
    main()
