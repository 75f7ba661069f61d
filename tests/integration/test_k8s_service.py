"""The RayService's application, built and asked for real; what it cannot serve is reported in one line."""

import importlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import uvicorn.config
import yaml
from free_ports import free_port

from cluster.jobs.kuberay.kustomize import read_objects
from cluster.service.settings import GateSettings, bears_token
from index.base.errors import FslDistError, RequestError
from index.config import IndexConfig
from index.writing.build import build as build_index

pytestmark = [pytest.mark.integration, pytest.mark.k8s]

MANIFEST = Path(__file__).parents[2] / "k8s" / "base" / "index-service.yaml"
TOKEN = "a token of the tests 0123456789"
PROGRAM = """
import json, sys
from cluster.service.app import build
from fsl_dist.training.ray.session import ray_session

with ray_session(2):
    from ray import serve

    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
    serve.run(build(json.loads(sys.argv[1])), name="fsl-dist-index", route_prefix="/")
    print("ready", flush=True)
    sys.stdin.read()
    serve.shutdown()
"""


def arguments() -> dict:
    service = next(one for one in read_objects(MANIFEST) if one["kind"] == "RayService")
    return yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]


def variables() -> dict[str, str]:
    """The environment that the manifest gives to every pod, without the secret."""
    service = next(one for one in read_objects(MANIFEST) if one["kind"] == "RayService")
    found = []
    for group in [
        service["spec"]["rayClusterConfig"]["headGroupSpec"],
        *service["spec"]["rayClusterConfig"]["workerGroupSpecs"],
    ]:
        (container,) = group["template"]["spec"]["containers"]
        found.append({one["name"]: one["value"] for one in container["env"] if "value" in one})
    assert all(one == found[0] for one in found)
    return found[0]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index")
    vectors = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    build_index(out, vectors, np.arange(50) % 5, config=IndexConfig(), source={})
    return out


def test_ray_serve_takes_the_manifest_s_configuration() -> None:
    from ray.serve.schema import ServeDeploySchema

    service = next(one for one in read_objects(MANIFEST) if one["kind"] == "RayService")
    found = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    assert found.applications[0].import_path == "cluster.service.app:build"


def test_the_manifest_s_environment_sets_the_gate_up(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.service import gate

    found = variables()
    assert set(gate.environment(GateSettings())) <= set(found)
    monkeypatch.setenv("INDEX_TOKEN", TOKEN)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    # The callback names another protocol class to uvicorn, in this process too.
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    module, _, function = found["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].partition(":")
    (middleware,) = getattr(importlib.import_module(module), function)()
    assert middleware.cls is gate.Gate
    (settings,) = middleware.args
    assert bears_token(f"Bearer {TOKEN}", settings.token_sha256)
    assert not bears_token("", settings.token_sha256)
    monkeypatch.delenv("INDEX_TOKEN")
    with pytest.raises(RequestError, match="INDEX_TOKEN"):
        gate.middlewares()


@pytest.mark.slow
def test_the_application_answers_those_who_bring_the_token(index: Path) -> None:
    port = free_port()
    args = {**arguments(), "index": str(index), "replicas": 1, "cpus": 1}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, json.dumps(args), str(port)],
        env={**os.environ, **variables(), "INDEX_TOKEN": TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if line == "ready\n":
                break
        else:
            raise AssertionError("".join(said))
        body = json.dumps({"queries": [[0.1, 0.2, 0.3, 0.4]], "k": 3}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/search", body, {"Content-Type": "application/json"}
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request, timeout=60)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert (answer["version"], len(answer["ids"][0])) == (1, 3)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/-/routes", timeout=60)
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"ray_version": "2.59.0"},
            r"the image has Ray \S+, the manifest says rayVersion 2.59.0 \(an image built",
        ),
        ({"token_env": "NO_TOKEN"}, r"the environment variable NO_TOKEN must hold a token"),
        ({"index": "/nowhere"}, r"/nowhere"),
        ({"replicas": 0}, r"args.replicas=0 must be at least 1"),
        ({"replica": 1}, r"replica.*replicas"),
    ],
)
def test_what_cannot_be_served_is_told(
    index: Path, change: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cluster.service.app import build

    monkeypatch.setenv("INDEX_TOKEN", TOKEN)
    with pytest.raises((RequestError, FslDistError), match=said) as told:
        build({**arguments(), "index": str(index), **change})
    assert "\n" not in str(told.value)
