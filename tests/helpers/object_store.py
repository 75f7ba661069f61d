"""The S3 server of the tests as a process that can be killed and come back."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

SERVER = Path(__file__).with_name("s3_server.py")


class ObjectStore:
    """tests/helpers/s3_server.py at a port of its own, with one bucket."""

    bucket = "bucket"

    def __init__(
        self,
        journal: Path,
        *,
        delay_s: float = 0.0,
        lifetime_s: float | None = None,
        certificate: Path | None = None,
    ) -> None:
        """lifetime_s: keys and tokens end after so long; `certificate` (with its key) is for `tls_port`."""
        self.port, self.tls_port = _free_port(), _free_port()
        self._arguments = [str(self.port), str(journal), str(delay_s)]
        if lifetime_s is not None:
            self._arguments += [str(lifetime_s), str(self.tls_port), str(certificate)]
        self.start()
        make = urllib.request.Request(f"{self.address}/{self.bucket}", method="PUT")
        urllib.request.urlopen(make, timeout=30).close()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find the server."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "do-not-tell",
            "AWS_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Start the server, with everything it knew; returns when it listens."""
        self._process = subprocess.Popen(
            [sys.executable, SERVER, *self._arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )
        for _ in range(600):
            assert self._process.poll() is None, "the S3 server ended"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the S3 server does not listen")

    def kill(self) -> None:
        """End the server at once, as a crash does."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
