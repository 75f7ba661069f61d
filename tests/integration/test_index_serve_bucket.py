"""`fsl-dist index serve s3://…` for real: from checked copies, while versions are published and the store goes away."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import PROGRAM
from free_ports import free_port

from cluster.jobs.kuberay.kustomize import build as build_overlay
from index.base.object_cache import working_folder
from index.config import IndexConfig
from index.writing.build import build
from index.writing.writer import IndexWriter

pytestmark = pytest.mark.integration

NUM, DIM = 3000, 32
VECTORS = np.random.default_rng(0).standard_normal((NUM, DIM)).astype(np.float32)
COPY_GB = NUM * (DIM * 4 + 16) / (1 << 30)  # of one version, at most


def publish(address: str, vectors: np.ndarray) -> None:
    labels = np.arange(len(vectors)) % 7
    build(working_folder(address), vectors, labels, config=IndexConfig(shards=2, keep_versions=9))


def ask(port: int, vectors: np.ndarray, token: str = "") -> tuple[int, list[int]]:
    """The version that answered, and the nearest id of each vector."""
    body = json.dumps({"queries": vectors.tolist(), "k": 1}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/search", body, {"Content-Type": "application/json"}
    )
    request.add_header("Authorization", f"Bearer {token}")
    with urllib.request.urlopen(request, timeout=30) as response:
        found = json.load(response)
    return found["version"], [ids[0] for ids in found["ids"]]


def wait_for(what: Callable[[], bool], process: subprocess.Popen[str], within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not what():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.slow  # replicas wait 15 s for room where a version is still open
@pytest.mark.timeout(300)
def test_an_index_is_served_from_a_bucket(
    s3: str, s3_server: Any, elsewhere: Callable[[str], None], tmp_path: Path
) -> None:
    publish(s3, VECTORS)
    port, cache, errors = free_port(), tmp_path / "copies", tmp_path / "stderr"
    options = ("--port", str(port), "--replicas", "2", "--cache-dir", cache, "--cache-gb", f"{2.5 * COPY_GB}")
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            [PROGRAM, "index", "serve", s3, *options, "--json"],
            env={**os.environ, "FSL_DIST_CACHE": str(tmp_path / "unused")},
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, errors.read_text()
        assert json.loads(said)["index"] == s3
        assert ask(port, VECTORS[:9]) == (1, list(range(9)))
        copies = next(cache.rglob("versions"))
        assert sorted(path.name for path in copies.glob("[0-9]*")) == ["000001"]
        assert not (tmp_path / "unused" / "fsl-dist-objects").exists()

        elsewhere("builder")
        IndexWriter(working_folder(s3)).add(VECTORS[:1] + 100, np.array([0]), np.array([77_777]))
        wait_for(lambda: ask(port, VECTORS[:1] + 100)[1] == [77_777], process)
        # Each new version is followed; the copies of those before make room, and those that are open stay.
        for version in (2, 3, 4):
            publish(s3, np.roll(VECTORS, version, axis=0))
            wait_for(
                lambda wanted=version: all(ask(port, VECTORS[:1])[0] == wanted for _ in range(12)), process
            )
            assert ask(port, VECTORS[:9]) == (version, [(i + version) % NUM for i in range(9)])
        assert len(list(copies.glob("[0-9]*"))) <= 2

        s3_server.kill()
        try:
            until = time.monotonic() + 6
            while time.monotonic() < until:
                assert ask(port, VECTORS[:2])[0] == 4
        finally:
            s3_server.start()
        publish(s3, VECTORS)
        wait_for(lambda: ask(port, VECTORS[:1])[0] == 5, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, errors.read_text()
        assert "Traceback" not in errors.read_text()
    finally:
        process.kill()
        process.communicate()


def test_what_cannot_be_served_from_a_bucket_is_one_line(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(s3, VECTORS)
    for options, said in (
        (["--cache-gb", "0.0001"], f"error: '{s3}/versions/000001' does not fit into --cache-gb"),
        (["--actors", "1"], "--actors 1 needs an index on a disk that all nodes see, not s3://"),
    ):
        done = run("index", "serve", s3, *options)
        assert done.returncode == 2
        assert said.split(": ", 1)[-1].replace("'", "") in done.stderr.replace("'", "")
        assert len(done.stderr.strip().splitlines()) == 1
    done = run("index", "serve", f"{s3}-nowhere")
    assert done.returncode != 0
    assert "contains no published index" in done.stderr
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = run("index", "serve", s3)
    assert done.returncode == 2
    assert "name a folder there with --cache-dir" in done.stderr


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, *arguments, "--port", str(free_port())], capture_output=True, text=True, timeout=100
    )


OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
TOKEN = "a token of the tests 0123456789"
APPLICATION = """
import json, sys
from cluster.service.app import build
from fsl_dist.training.ray.session import ray_session

with ray_session(2):
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(build(json.loads(sys.argv[1])), name="fsl-dist-index", route_prefix="/")
    print("ready", file=sys.__stdout__, flush=True)  # Ray's prints go to stderr
    sys.stdin.read()
    serve.shutdown()
"""


def serve_config(overlay: str) -> dict[str, Any]:
    service = next(one for one in build_overlay(OVERLAYS / overlay) if one["kind"] == "RayService")
    found: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return found


@pytest.mark.k8s
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_restricted_overlay_s_service_starts_from_its_bucket(s3: str, tmp_path: Path) -> None:
    publish(s3, VECTORS)
    port, copies = free_port(), tmp_path / "copies"
    (application,) = serve_config("restricted")["applications"]
    own = {"index": s3, "cache_dir": str(copies), "replicas": 2, "cpus": 1}
    process = subprocess.Popen(
        [sys.executable, "-c", APPLICATION, json.dumps(application["args"] | own), str(port)],
        env={**os.environ, "INDEX_TOKEN": TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        assert ask(port, VECTORS[:9], token=TOKEN) == (1, list(range(9)))
        assert len(list((copies / "fsl-dist-objects").rglob("shard-*.npy"))) == 2
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.k8s
def test_the_bucket_s_service_differs_from_the_base_in_its_places_alone(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.service.app import build as build_application

    base, bucket = serve_config("cpu"), serve_config("restricted")
    args, other = bucket["applications"][0].pop("args"), base["applications"][0].pop("args")
    assert bucket == base
    assert args.pop("index").startswith("s3://")
    assert args.pop("cache_dir").startswith("/mnt/fsl-dist/")  # a folder of its own in each pod
    args.pop("cache_gb")
    assert {**args, "index": other["index"]} == other

    publish(s3, VECTORS)
    monkeypatch.setenv("INDEX_TOKEN", TOKEN)
    application = build_application({**args, "index": s3, "cache_dir": str(tmp_path / "copies")})
    (settings,) = application._bound_deployment.init_args
    assert settings.verify
    assert settings.checked is None, "each node compares its own copies"
    assert str(settings.index).startswith(str(tmp_path / "copies"))
    assert not list((tmp_path / "copies").rglob("*.npy")), "they are fetched where they are needed"
