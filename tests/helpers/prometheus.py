"""Pages of metrics, and a real Prometheus on loopback where Debian's package is installed."""

import contextlib
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from free_ports import free_port
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def read_samples(text: str) -> list[Sample]:
    """The samples of a page of metrics."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


def is_installed() -> bool:
    return shutil.which("prometheus") is not None


class Prometheus:
    """Asks one server."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/query"

    def ask(self, query: str) -> list[dict]:
        """The series that answer a query now. HTTPError for one that it does not understand."""
        sent = urllib.parse.urlencode({"query": query}).encode()
        with urllib.request.urlopen(self._url, sent, timeout=30) as answer:
            return json.load(answer)["data"]["result"]


@contextlib.contextmanager
def scraping(port: int, folder: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes 127.0.0.1:`port` each second, as a pod `p` of the namespace `a`."""
    config = folder / "prometheus.yml"
    config.write_text(
        f"""
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: fsl-dist
    static_configs:
      - targets: ["127.0.0.1:{port}"]
        labels: {{namespace: a, pod: p, ray_io_cluster: c}}
"""
    )
    own = free_port()
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{own}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)
    try:
        server, deadline = Prometheus(own), time.monotonic() + 30
        while True:
            try:
                server.ask("up")
                break
            except (urllib.error.URLError, ConnectionError):
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait(30)
