"""Two teams share a quota of one job by Kueue: who waits is told why, is admitted in turn, and is preempted by priority."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from kube_server import KubeServer
from kueue import JOBS, Kueue, needs

from cluster.jobs.following import wait_for_start
from cluster.jobs.job import Job, WaitedError
from cluster.jobs.kuberay.kustomize import build
from cluster.jobs.kuberay.place import KubeRayPlace
from cluster.jobs.kuberay.rendering import KubeOptions, render

pytestmark = pytest.mark.k8s

QUEUES = Path(__file__).parents[2] / "k8s" / "queues"
NAMESPACE = "/api/v1/namespaces/fsl-dist"
ARGUMENTS = ("evaluate", "/mnt/fsl-dist/r")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    from kubernetes.config import kube_config

    with KubeServer() as running:
        claim = {"metadata": {"name": "fsl-dist"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        running.put(f"{NAMESPACE}/persistentvolumeclaims/fsl-dist", claim)
        running.put(f"{NAMESPACE}/serviceaccounts/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(running.kubeconfig(tmp_path)))
        yield running


def submit(name: str, queue: str, priority: str = "") -> KubeRayPlace:
    options = KubeOptions(queue=queue, priority=priority, workers=2, gpus_per_worker=1)
    place = KubeRayPlace(options, poll_s=0.02)
    place.submit(Job(name=name, arguments=ARGUMENTS))
    return place


def finish(server: KubeServer, name: str) -> None:
    done = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", "startTime": "2026-11-21T22:00:00Z"}
    server.put(JOBS + name, {**server.objects[JOBS + name], "status": done})


def test_the_second_team_waits_for_the_first_and_an_urgent_job_preempts(
    server: KubeServer, caplog: pytest.LogCaptureFixture
) -> None:
    kueue = Kueue(server, build(QUEUES))
    submit("first", "team-a")
    place = submit("second", "team-b")
    kueue.schedule()
    assert place.status("first").state == "running"
    waiting = place.status("second")
    assert waiting.state == "pending"
    assert waiting.message.startswith(
        "queue team-b: WaitingForQuota: couldn't assign flavors to pod set workers"
    )
    assert "insufficient unused quota for nvidia.com/gpu in flavor fsl-dist, 2 more needed" in waiting.message
    with caplog.at_level(logging.INFO), pytest.raises(WaitedError, match="WaitingForQuota"):
        wait_for_start(place, "second", wait_s=0.1, poll_s=0.02)
    assert caplog.text.count("WaitingForQuota") == 1, "told once"

    finish(server, "first")
    kueue.schedule()
    assert wait_for_start(place, "second", wait_s=5).state == "running"

    submit("third", "team-a", "urgent")
    kueue.schedule()
    assert place.status("third").state == "running"
    preempted = place.status("second")
    assert preempted.state == "pending"
    assert preempted.message.startswith("queue team-b: Preempted: Preempted to accommodate a workload")

    finish(server, "third")
    kueue.schedule()
    assert place.status("second").state == "running"


def test_the_quota_is_that_of_one_job_of_the_readme(server: KubeServer) -> None:
    (job,) = (
        one
        for one in render(
            Job(name="a", arguments=ARGUMENTS), KubeOptions(queue="team-a", workers=2, gpus_per_worker=1)
        )
        if one["kind"] == "RayJob"
    )
    found = {name: float(amount) for name, amount in needs(job).items()}
    assert found == {"cpu": 10.5, "memory": 41 * 2**30, "nvidia.com/gpu": 2}
    assert Kueue(server, build(QUEUES))._quota["memory"] == 41 * 2**30
