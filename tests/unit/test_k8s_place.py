"""Jobs on KubeRay: the real Kubernetes client against a server on loopback that speaks Kubernetes' API (helpers/kube_server)."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from kube_server import KubeServer

from cluster.jobs.job import RESULT_MARK, Job
from cluster.jobs.kuberay.place import KubeRayPlace
from cluster.jobs.kuberay.rendering import KubeOptions
from cluster.jobs.kuberay.rights import LOOKS, RIGHTS, render_role
from index.base.errors import FslDistError, RequestError

pytestmark = [pytest.mark.k8s, pytest.mark.heavy]

ROOT = Path(__file__).parents[2]
NAMESPACE = "/api/v1/namespaces/fsl-dist"
RAY_JOB = "/apis/ray.io/v1/namespaces/fsl-dist/rayjobs/first"
JOB = Job(name="first", arguments=("train", "run.dir=/mnt/fsl-dist/a b"), config="workers: {num: 2}\n")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with KubeServer() as running:
        claim = {"metadata": {"name": "fsl-dist"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        running.put(f"{NAMESPACE}/persistentvolumeclaims/fsl-dist", claim)
        running.put(f"{NAMESPACE}/serviceaccounts/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        _use(running.kubeconfig(tmp_path), monkeypatch)
        yield running


def _use(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The client reads KUBECONFIG when it is imported.
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))


def place(**options: object) -> KubeRayPlace:
    return KubeRayPlace(KubeOptions(**options), poll_s=0.02)  # type: ignore[arg-type]


def set_status(server: KubeServer, **status: object) -> None:
    """What KubeRay would write."""
    server.put(RAY_JOB, {**server.objects[RAY_JOB], "status": status})


def test_a_job_comes_with_its_config_and_policies_and_goes_with_them(server: KubeServer) -> None:
    before = set(server.objects)
    place().submit(JOB)
    made = {path.split("fsl-dist/", 1)[1] for path in set(server.objects) - before}
    assert made == {
        "configmaps/first",
        "networkpolicies/first",
        "networkpolicies/first-dashboard",
        "rayjobs/first",
    }
    assert server.objects[f"{NAMESPACE}/configmaps/first"]["data"] == {"config.yaml": JOB.config}
    here = place()
    here.stop("first")  # nothing has begun
    assert here.status("first").state == "stopped"
    assert set(server.objects) == before


def test_a_job_s_states_and_result(server: KubeServer) -> None:
    here = place()
    here.submit(JOB)
    found = here.status("first")
    assert (found.state, found.command) == ("pending", "fsl-dist train 'run.dir=/mnt/fsl-dist/a b'")
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unplaced = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}]
    server.add_pod("first-head", "first", "ray", conditions=unplaced)
    assert here.status("first").message == f"pod first-head: Unschedulable: {said}"
    set_status(server, jobDeploymentStatus="Running", jobStatus="RUNNING", startTime="2026-11-21T22:00:00Z")
    assert (here.status("first").state, here.status("first").started) == ("running", "2026-11-21 22:00:00")
    del server.objects[f"{NAMESPACE}/pods/first-head"]
    set_status(server, jobDeploymentStatus="Retrying", jobStatus="FAILED")
    assert (here.status("first").state, here.status("first").message) == (
        "pending",
        "restarts on a new cluster",
    )
    set_status(
        server,
        jobDeploymentStatus="Failed",
        jobStatus="FAILED",
        reason="AppFailed",
        message="failed with exit\ncode 2",
    )
    assert (here.status("first").state, here.status("first").message) == (
        "failed",
        "AppFailed failed with exit code 2",
    )
    assert here.status("first").follower_exit_code == 2
    set_status(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    assert here.status("first").result is None
    server.add_pod("first-abc", "first", "submitter", phase="Succeeded")
    server.write_log("first-abc", f"step 1\n{RESULT_MARK}{json.dumps({'steps': 1})}\n", ends=True)
    assert here.status("first").result == {"steps": 1}
    assert [found.name for found in here.list()] == ["first"]


def test_logs_are_followed_over_a_retry_without_a_word_lost_or_twice(server: KubeServer) -> None:
    here = place()
    here.submit(JOB)
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(here.logs("first", follow=True)))
    listener.start()
    server.add_pod("first-one", "first", "submitter", phase="Running")
    server.write_log("first-one", "step 1 é\n")
    server.write_log("first-one", "lost the head\n", ends=True)
    set_status(server, jobDeploymentStatus="Retrying", jobStatus="FAILED")
    while "".join(heard) != "step 1 é\nlost the head\n":
        listener.join(0.02)
    del server.objects[f"{NAMESPACE}/pods/first-one"]
    server.add_pod("first-two", "first", "submitter", phase="Running")
    server.write_log("first-two", "went on from step 1\n")
    while "went on" not in "".join(heard):
        listener.join(0.02)
    set_status(server, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    server.write_log("first-two", "step 2\n", ends=True)
    listener.join(20)
    assert not listener.is_alive()
    assert "".join(heard) == "step 1 é\nlost the head\nwent on from step 1\nstep 2\n"
    assert "".join(here.logs("first", follow=False)) == "went on from step 1\nstep 2\n"


def test_a_running_job_is_stopped_for_good(server: KubeServer) -> None:
    here = place()
    here.submit(JOB)
    set_status(server, jobDeploymentStatus="Running", jobStatus="RUNNING", startTime="2026-11-21T22:00:00Z")
    here.stop("first")
    spec = server.objects[RAY_JOB]["spec"]
    assert (spec["activeDeadlineSeconds"], spec["backoffLimit"]) == (1, 0)
    assert "suspend" not in spec, "that is Kueue's"
    assert here.status("first").follower_exit_code == 143
    set_status(server, jobDeploymentStatus="Failed", jobStatus="RUNNING", reason="DeadlineExceeded")
    assert here.status("first").state == "stopped"
    here.stop("first")  # twice is once


def test_nothing_is_left_where_something_was_refused(server: KubeServer) -> None:
    before = set(server.objects)
    server.refused["rayjobs"] = "admission webhook denied the request: no budget"
    with pytest.raises(FslDistError, match="no budget"):
        place().submit(JOB)
    assert set(server.objects) == before


def _no_kuberay(server: KubeServer) -> None:
    del server.objects["/apis/ray.io/v1"]


def _no_rights(server: KubeServer) -> None:
    server.denied |= {("create", "rayjobs"), ("get", "pods/log")}


def _no_namespace(server: KubeServer) -> None:
    del server.objects["/api/v1/namespaces/fsl-dist"]


def _taken_name(server: KubeServer) -> None:
    server.put(RAY_JOB, {"metadata": {"name": "first"}})


def _taken_policy(server: KubeServer) -> None:
    path = "/apis/networking.k8s.io/v1/namespaces/fsl-dist/networkpolicies/first-dashboard"
    server.put(path, {"metadata": {"name": "first-dashboard"}})


def _no_claim(server: KubeServer) -> None:
    del server.objects[f"{NAMESPACE}/persistentvolumeclaims/fsl-dist"]


def _narrow_claim(server: KubeServer) -> None:
    server.objects[f"{NAMESPACE}/persistentvolumeclaims/fsl-dist"]["spec"]["accessModes"] = ["ReadWriteOnce"]


def _no_account(server: KubeServer) -> None:
    del server.objects[f"{NAMESPACE}/serviceaccounts/fsl-dist"]


def _kueue_without_queue(server: KubeServer) -> None:
    server.put("/apis/kueue.x-k8s.io", {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}})


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (
            _no_kuberay,
            {},
            r"the cluster at http.* has no KubeRay, .*\(.*/k8s/README.md installs its operator",
        ),
        (
            _no_rights,
            {},
            r"you may not create rayjobs, get pods/log in namespace fsl-dist \(fsl-dist k8s rights --namespace fsl-dist prints",
        ),
        (_no_namespace, {}, r"there is no namespace fsl-dist \(kubectl apply"),
        (_taken_name, {}, r"job first exists in namespace fsl-dist \(choose another --name;"),
        (
            _taken_policy,
            {},
            r"NetworkPolicy first-dashboard exists in namespace fsl-dist \(choose another --name\)",
        ),
        (
            _no_claim,
            {},
            r"--storage fsl-dist: there is no such PersistentVolumeClaim .*\(.*/k8s/base/storage.yaml",
        ),
        (_narrow_claim, {}, r"--storage fsl-dist is ReadWriteOnce; .* must be ReadWriteMany"),
        (_no_account, {}, r"there is no ServiceAccount fsl-dist in namespace fsl-dist \(kubectl"),
        (lambda _: None, {"queue": "team"}, r"--queue team: the cluster has no Kueue \(without"),
        (_kueue_without_queue, {"queue": "team"}, r"--queue team: there is no such LocalQueue .*\(kubectl"),
    ],
)
def test_what_the_cluster_cannot_take_is_told_before_anything_is_made(
    server: KubeServer, spoil: object, options: dict, said: str
) -> None:
    spoil(server)  # type: ignore[operator]
    before = set(server.objects)
    with pytest.raises(RequestError, match=said) as told:
        place(**options).submit(JOB)
    assert "\n" not in str(told.value)
    assert set(server.objects) == before


def test_one_who_may_look_at_nothing_else_may_submit_and_needs_no_claim_for_a_bucket(
    server: KubeServer,
) -> None:
    server.denied |= {("get", "persistentvolumeclaims"), ("get", "serviceaccounts")}
    place().submit(JOB)
    _no_claim(server)
    place(storage="s3://bucket/x").submit(Job(name="second", arguments=("evaluate", "s3://bucket/x/run")))
    made = {path.rpartition("/")[2] for path in server.objects if "/rayjobs/" in path}
    assert made == {"first", "second"}


def test_a_job_that_is_not_there(server: KubeServer) -> None:
    for ask in (place().status, place().stop, lambda name: list(place().logs(name, follow=False))):
        with pytest.raises(
            RequestError, match=r"there is no job gone in namespace fsl-dist \(fsl-dist job list"
        ):
            ask("gone")


def test_a_cluster_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with KubeServer() as ended:
        kubeconfig = ended.kubeconfig(tmp_path)
        _use(ended.kubeconfig(tmp_path, token="another"), monkeypatch)
        with pytest.raises(FslDistError, match=r"does not accept the login: Unauthorized \(log in"):
            place().submit(JOB)
    _use(kubeconfig, monkeypatch)
    with pytest.raises(
        FslDistError, match=r"the Kubernetes API at http://127.0.0.1:\d+ does not answer: .*refused"
    ):
        place().submit(JOB)
    _use(tmp_path / "nowhere", monkeypatch)
    with pytest.raises(RequestError, match=r"no Kubernetes cluster is configured: .*KUBECONFIG"):
        place()


def test_the_file_of_rights_is_what_the_command_prints() -> None:
    assert yaml.safe_load((ROOT / "k8s" / "rights" / "submitter.yaml").read_text()) == render_role("fsl-dist")


def test_a_job_lives_its_life_with_exactly_the_printed_rights(server: KubeServer) -> None:
    server.granted = {
        (verb, resource) for (_, resource), verbs in {**RIGHTS, **LOOKS}.items() for verb in verbs
    }
    here = place()
    here.submit(JOB)
    set_status(server, jobDeploymentStatus="Initializing", rayClusterName="first-c")
    server.add_event(
        "RayCluster", "first-c", "FailedToCreateHeadPod", "exceeded quota", "2026-01-01T00:00:00Z"
    )
    assert here.status("first").message == "raycluster first-c: FailedToCreateHeadPod: exceeded quota"
    set_status(server, jobDeploymentStatus="Running", jobStatus="RUNNING", startTime="2026-11-21T22:00:00Z")
    server.add_pod("first-x", "first", "submitter", phase="Succeeded")
    server.write_log("first-x", "step 1\n", ends=True)
    assert "".join(here.logs("first", follow=False)) == "step 1\n"
    assert [event["reason"] for event in here.events("first")] == []
    assert here.describe("first")["pods"][0]["pod"] == "first-x"
    assert [one.name for one in here.list()] == ["first"]
    here.stop("first")
    assert here.status("first").state == "stopped"
