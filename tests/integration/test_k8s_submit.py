"""`fsl-dist submit --to kuberay` and `fsl-dist job` as people run them, against a server on loopback that speaks Kubernetes' API."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube_server import KubeServer

from cluster.jobs.job import RESULT_MARK

pytestmark = [pytest.mark.integration, pytest.mark.k8s]

COMMAND = [sys.executable, "-c", "from cluster.cli import main; main()"]
RAY_JOB = "/apis/ray.io/v1/namespaces/fsl-dist/rayjobs/first"
STARTED = "2026-11-21T22:00:00Z"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[KubeServer]:
    with KubeServer() as running:
        namespace = "/api/v1/namespaces/fsl-dist"
        claim = {"metadata": {"name": "fsl-dist"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        running.put(f"{namespace}/persistentvolumeclaims/fsl-dist", claim)
        running.put(f"{namespace}/serviceaccounts/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        running.kubeconfig(tmp_path)
        yield running


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig")}
    pipe = subprocess.PIPE
    return subprocess.Popen([*COMMAND, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True)


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = start(folder, *arguments)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def test_a_job_is_followed_to_its_result(server: KubeServer, tmp_path: Path) -> None:
    follower = start(
        tmp_path, "submit", "--to", "kuberay", "--name", "first", "--", "evaluate", "/mnt/fsl-dist/r"
    )
    deadline = time.monotonic() + 60
    while RAY_JOB not in server.objects:
        assert follower.poll() is None, follower.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "startTime": STARTED}
    server.put(RAY_JOB, {**server.objects[RAY_JOB], "status": status})
    server.add_pod("first-x", "first", "submitter", phase="Running")
    server.write_log("first-x", "500 images\n")
    code, out, _ = run(tmp_path, "job", "status", "first", "--to", "kuberay", "--json")
    assert (code, json.loads(out)["state"]) == (0, "running")
    server.write_log("first-x", f'{RESULT_MARK}{{"run": "r"}}\n', ends=True)
    done = {**status, "jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    server.put(RAY_JOB, {**server.objects[RAY_JOB], "status": done})
    out, errors = follower.communicate(timeout=60)
    assert (follower.returncode, json.loads(out)) == (0, {"run": "r"})
    assert errors.splitlines() == ["first is submitted", "500 images", "first: succeeded"]
    code, _, errors = run(
        tmp_path, "submit", "--to", "kuberay", "--name", "first", "--", "evaluate", "/mnt/fsl-dist/r"
    )
    assert (code, errors.count("\n")) == (2, 1)
    assert "job first exists in namespace fsl-dist" in errors


def test_what_has_not_begun_is_stopped_and_leaves_nothing(server: KubeServer, tmp_path: Path) -> None:
    before = set(server.objects)
    command = (
        "submit",
        "--to",
        "kuberay",
        "--name",
        "first",
        "--detach",
        "--",
        "evaluate",
        "/mnt/fsl-dist/r",
    )
    assert run(tmp_path, *command)[0] == 0
    assert set(server.objects) > before
    code, out, _ = run(tmp_path, "job", "stop", "first", "--to", "kuberay")
    assert (code, out) == (0, "first: stopped\n")
    assert set(server.objects) == before


def test_a_dry_run_touches_no_cluster(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        "run: {dir: /mnt/fsl-dist/runs/a}\ndata: {dataset: /mnt/fsl-dist/d}\nworkers: {num: 2}\n"
    )
    options = (
        "--to",
        "kuberay",
        "--dry-run",
        "--name",
        "first",
        "--gpus-per-worker",
        "1",
        "--deadline",
        "2h",
    )
    code, out, _ = run(tmp_path, "submit", *options, "--", "train", "--config", str(config))
    assert code == 0  # there is no cluster to touch
    found = list(yaml.safe_load_all(out))
    assert [one["kind"] for one in found] == ["ConfigMap", "RayJob", "NetworkPolicy", "NetworkPolicy"]
    assert found[1]["spec"]["activeDeadlineSeconds"] == 7320
    assert yaml.safe_load(found[0]["data"]["config.yaml"])["run"]["dir"] == "/mnt/fsl-dist/runs/a"
    code, _, errors = run(tmp_path, "submit", "--to", "kuberay", "--", "train", "--config", str(config))
    assert (code, errors.count("\n")) == (2, 1)
    assert "no Kubernetes cluster is configured" in errors
