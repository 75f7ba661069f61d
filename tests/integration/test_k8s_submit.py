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
from cluster.jobs.kuberay.kustomize import build

pytestmark = [pytest.mark.integration, pytest.mark.k8s]

ROOT = Path(__file__).parents[2]
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


def test_a_wait_ends_with_its_cause_and_a_lost_api_with_the_way_back(
    server: KubeServer, tmp_path: Path
) -> None:
    job = ("--to", "kuberay", "--name", "first", "--", "evaluate", "/mnt/fsl-dist/r")
    server.add_event("RayJob", "first", "InvalidRayJobSpec", "no such thing", "2026-01-01T00:00:00Z")
    code, _, errors = run(tmp_path, "submit", "--wait-s", "0", *job)
    assert code == 3
    assert errors.splitlines()[-1] == (
        "error: first still waits after 0 s: rayjob first: InvalidRayJobSpec: no such thing; follow it again: "
        "fsl-dist job logs first --follow --to kuberay"
    )
    _, out, _ = run(tmp_path, "job", "status", "first", "--to", "kuberay")
    assert "message: rayjob first: InvalidRayJobSpec: no such thing" in out
    _, out, _ = run(tmp_path, "job", "describe", "first", "--to", "kuberay")
    assert "tries: 1 of 3" in out
    assert "InvalidRayJobSpec" in out
    follower = start(tmp_path, "job", "logs", "first", "--follow", "--to", "kuberay", "--api-timeout-s", "0")
    assert follower.stderr is not None
    assert "waits" in follower.stderr.readline()
    server.faults = ["503"] * 100
    _, errors = follower.communicate(timeout=60)
    assert follower.returncode == 4
    assert "--api-timeout-s 0" in errors
    assert errors.endswith("may still run; look again: fsl-dist job logs first --follow --to kuberay\n")


def test_the_runs_of_a_schedule_are_known_by_its_name(server: KubeServer, tmp_path: Path) -> None:
    name, jobs = "fsl-dist-index-rebuild", "/apis/ray.io/v1/namespaces/fsl-dist/rayjobs"
    schedule = next(one for one in build(ROOT / "k8s" / "overlays" / "cpu") if one["kind"] == "RayCronJob")
    schedule["metadata"]["creationTimestamp"] = "2026-11-20T00:00:00Z"
    server.put(f"/apis/ray.io/v1/namespaces/fsl-dist/raycronjobs/{name}", schedule)
    minute = round(time.time() / 86400) * 1440 - 1440 + 150  # 02:30 of a day or two ago
    for number, night in enumerate((minute - 1440, minute)):
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(night * 60))
        child = {
            "metadata": {
                "name": f"{name}-{night}",
                "labels": {"ray.io/cronjob-name": name},
                "annotations": {"ray.io/cronjob-scheduled-timestamp": moment},
                "creationTimestamp": moment,
            },
            "spec": schedule["spec"]["jobTemplate"],
            "status": {
                "jobDeploymentStatus": "Complete",
                "jobStatus": "SUCCEEDED",
                "rayClusterName": f"c{number}",
            }
            | {"startTime": moment, "endTime": moment},
        }
        server.put(f"{jobs}/{name}-{night}", child)
        # All nights' pods share the schedule's label.
        server.add_pod(f"p{number}", name, "submitter", phase="Succeeded")
        owner = {"name": f"{name}-{night}", "kind": "Job", "uid": str(number)}
        server.objects[f"/api/v1/namespaces/fsl-dist/pods/p{number}"]["metadata"]["ownerReferences"] = [owner]
        server.write_log(f"p{number}", f'{RESULT_MARK}{{"version": {number}}}\n', ends=True)
    options = ("--schedule", name, "--to", "kuberay", "--json")
    code, out, _ = run(tmp_path, "job", "list", *options)
    names = [one["name"] for one in json.loads(out)["jobs"] if not one["message"].startswith("missed")]
    assert (code, names) == (0, [f"{name}-{minute}", f"{name}-{minute - 1440}"])
    code, out, _ = run(tmp_path, "job", "status", *options)
    assert (code, json.loads(out)["name"], json.loads(out)["result"]) == (
        0,
        f"{name}-{minute}",
        {"version": 1},
    )
    code, out, _ = run(tmp_path, "job", "logs", *options)
    assert (code, json.loads(out)["log"]) == (0, f'{RESULT_MARK}{{"version": 1}}\n')
    code, _, errors = run(tmp_path, "job", "list", "--schedule", "none", "--to", "kuberay")
    assert (code, errors.count("\n")) == (2, 1)
    assert "there is no schedule none in namespace fsl-dist" in errors
    assert run(tmp_path, "job", "list", "--schedule", "none")[0] == 2, "schedules are Kubernetes' own"


def test_the_role_is_printed_for_a_namespace(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "k8s", "rights", "--namespace", "research")
    role = yaml.safe_load(out)
    assert (code, role["kind"], role["metadata"]["namespace"]) == (0, "Role", "research")
    assert run(tmp_path, "k8s", "rights", "--namespace", "A b")[0] == 2
