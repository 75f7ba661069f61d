"""What a real sweep and its trials export for Prometheus; every query of dashboards and alerts is about that."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path

import prometheus
import pytest
import yaml
from prometheus_client.samples import Sample
from promql import Query, documented, queries, unanswered

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).parents[1] / "helpers" / "exporting_sweep.py"
# Series that a run on CPUs without a fault does not have.
NAMES = ("ray_fsl_dist_", "ray_resources{", "ray_node_")
ABSENT = ("ray_node_gpus_utilization", 'Name="GPU"', "train_skipped_steps", 'state="failed"')
SWEEP = {
    "base": {
        "data": {
            "channels": 1,
            "resize": "exact",
            "resize_size": 16,
            "image_size": 16,
            "mean": [0.5],
            "std": [0.5],
            "flip": False,
            "decoder": "torchvision",
            "holdout_fraction": 0.25,
        },
        "backbone": {"name": "conv4", "width": 8},
        "method": {"kind": "deep_knn"},
        "mining": {"source": "dataset"},
        "training": {"epochs": 10000, "patience": 10000, "minutes": 0.08},
        "run": {"trackers": []},
    },
    "space": {"training.lr": {"choice": [0.001, 0.0001]}},
    "trials": 1,
    "concurrency": 1,
    "search": "grid",
}


def of_ray() -> list[Query]:
    """Queries about what Ray exports."""
    return [query for query in queries() if "fsl_dist_index" not in query.text]


@pytest.mark.slow
def test_every_query_is_about_what_a_sweep_exports(digits: Path, tmp_path: Path) -> None:
    base = SWEEP["base"]
    config = {**SWEEP, "base": {**base, "data": {**base["data"], "dataset": str(digits)}}}
    path, port_file, folder = tmp_path / "sweep.yaml", tmp_path / "port", tmp_path / "sweep"
    path.write_text(yaml.safe_dump({**config, "dir": str(folder)}))
    command = [sys.executable, str(SCRIPT), str(path), str(port_file)]
    # By default new values are exported every 10 s.
    environment = {**os.environ, "RAY_metrics_report_interval_ms": "1000"}
    samples: dict[tuple, Sample] = {}
    answered: set[Query] = set()
    with (
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as stack,
    ):
        try:
            while not port_file.exists():
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
            port = int(port_file.read_text())
            server = None
            if prometheus.is_installed():
                server = stack.enter_context(prometheus.scraping(port, tmp_path))
            while process.poll() is None:
                time.sleep(1.5)
                for sample in scrape(port):
                    samples[sample.name, *sorted(sample.labels.items())] = sample
                if server is not None:
                    answered |= {query for query in of_ray() if server.ask(shown(query))}
        finally:
            process.kill()
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    faults = [fault for query in of_ray() for fault in unanswered(query, list(samples.values()))]
    assert [fault for fault in faults if not any(name in fault for name in ABSENT)] == []
    names = {sample.name for sample in samples.values()}
    assert {name for name in documented() if name.startswith("ray_")} <= names
    sweeps = [sample for sample in samples.values() if "sweep" in sample.labels]
    assert {sample.labels["sweep"] for sample in sweeps} == {str(folder)}
    runs = {sample.labels["run"] for sample in samples.values() if "run" in sample.labels}
    assert runs == {str(folder / "trials" / number) for number in ("0000", "0001")}
    if server is not None:
        missing = [q.place for q in of_ray() if q not in answered and not q.place.startswith("alert")]
        assert [place for place in missing if "GPU" not in place and "Skipped" not in place] == []


def shown(query: Query) -> str:
    """A query as Grafana sends it with all values of its variables."""
    for name in ("run", "sweep", "namespace"):
        query = Query(query.place, query.text.replace(f"${name}", ".*"))
    return query.text


def scrape(port: int) -> list[Sample]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
            lines = page.read().decode().splitlines(keepends=True)
            # The rest, nine tenths of it, would take a second to read.
            return prometheus.read_samples("".join(line for line in lines if line.startswith(NAMES)))
    except (urllib.error.URLError, ConnectionError):  # it has ended
        return []
