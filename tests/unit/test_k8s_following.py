"""Followers outlive the API server: restarts, expired tokens, broken connections, deleted jobs; and deadlines are kept."""

import json
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from kube_server import KubeServer

from cluster.cli import fsl_dist
from cluster.jobs.deadlines import write_moment
from cluster.jobs.following import wait_for_start
from cluster.jobs.job import Job, LostSightError, WaitedError
from cluster.jobs.kuberay.api import KubeApi, KubeError
from cluster.jobs.kuberay.place import KubeRayPlace
from cluster.jobs.kuberay.rendering import KubeOptions
from cluster.jobs.kuberay.states import DEADLINE
from index.base.errors import FslDistError, RequestError

pytestmark = [pytest.mark.k8s, pytest.mark.heavy]

NAMESPACE = "/api/v1/namespaces/fsl-dist"
RAY_JOB = "/apis/ray.io/v1/namespaces/fsl-dist/rayjobs/first"
JOB = Job(name="first", arguments=("evaluate", "/mnt/fsl-dist/r"))
RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "startTime": "2026-11-21T22:00:00Z"}
DONE = RUNNING | {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubeServer]:
    with KubeServer() as running:
        claim = {"metadata": {"name": "fsl-dist"}, "spec": {"accessModes": ["ReadWriteMany"]}}
        running.put(f"{NAMESPACE}/persistentvolumeclaims/fsl-dist", claim)
        running.put(f"{NAMESPACE}/serviceaccounts/fsl-dist", {"metadata": {"name": "fsl-dist"}})
        token = tmp_path / "token"
        token.write_text(running.token)
        _use(running.kubeconfig(tmp_path, token_file=token), monkeypatch)
        yield running


def _use(kubeconfig: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kubernetes.config import kube_config

    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(kubeconfig))


def open_api(timeout_s: float = 10.0) -> tuple[KubeApi, list[float]]:
    """An API that has answered once, and the pauses it makes."""
    pauses: list[float] = []
    api = KubeApi(timeout_s=timeout_s, sleep=pauses.append)
    api.get(NAMESPACE)
    return api, pauses


def submit(server: KubeServer, **status: object) -> KubeRayPlace:
    here = KubeRayPlace(KubeOptions(), poll_s=0.02, timeout_s=10)
    here.submit(JOB)
    set_status(server, **(status or RUNNING))
    return here


def set_status(server: KubeServer, **status: object) -> None:
    server.put(RAY_JOB, {**server.objects[RAY_JOB], "status": status})


def until(holds: Callable[[], bool], listener: threading.Thread) -> None:
    for _ in range(1000):
        if holds():
            return
        listener.join(0.02)
    raise AssertionError("waited for 20 s")


def hear(here: KubeRayPlace) -> tuple[threading.Thread, list[str]]:
    heard: list[str] = []
    listener = threading.Thread(target=lambda: heard.extend(here.logs("first", follow=True)), daemon=True)
    listener.start()
    return listener, heard


@pytest.mark.parametrize("fault", ["429", "500", "502", "503", "504", "reset"])
def test_a_request_is_sent_again_until_the_server_answers(server: KubeServer, fault: str) -> None:
    api, pauses = open_api()
    server.faults = [fault] * 4
    assert api.get(NAMESPACE)["metadata"]["name"] == "fsl-dist"
    assert len(pauses) == 4
    # Each pause is random between half of its length and all of it, and the length doubles.
    assert all(0.25 * 2**n <= pause <= 0.5 * 2**n for n, pause in enumerate(pauses))


@pytest.mark.parametrize("status", ["400", "403", "409", "422"])
def test_what_another_try_would_not_change_is_said_at_once(server: KubeServer, status: str) -> None:
    api, pauses = open_api()
    server.faults = [status]
    with pytest.raises(KubeError) as refused:
        api.get(NAMESPACE)
    assert (refused.value.status, pauses) == (int(status), [])


def test_a_server_that_stays_away_is_lost_sight_of(server: KubeServer) -> None:
    api, pauses = open_api(timeout_s=0.0)
    server.faults = ["reset"]
    with pytest.raises(LostSightError, match=r"does not answer: .*; requests were repeated for 0 s") as lost:
        api.get(NAMESPACE)
    assert lost.value.exit_code == 4
    # One that never answered is another address: nothing is repeated.
    server.faults = ["reset"]
    with pytest.raises(FslDistError, match="does not answer") as never:
        KubeApi(sleep=pauses.append).get(NAMESPACE)
    assert (never.value.exit_code, pauses) == (1, [])


def test_a_token_that_was_renewed_is_read_again(server: KubeServer, tmp_path: Path) -> None:
    api, pauses = open_api()
    server.token = "the-next-token"
    (tmp_path / "token").write_text("the-next-token")
    assert api.get(NAMESPACE)["metadata"]["name"] == "fsl-dist"
    assert pauses == []
    # One that is renewed a little later than it expires.
    server.token = "the-third-token"
    api._sleep = lambda _: (tmp_path / "token").write_text("the-third-token") and None
    assert api.get(NAMESPACE)["metadata"]["name"] == "fsl-dist"


def test_an_object_whose_creation_was_not_answered_is_this_submission_s(server: KubeServer) -> None:
    created = server.put

    def lose_the_answer(path: str, one: dict) -> dict:
        if path == RAY_JOB and RAY_JOB not in server.objects:
            server.faults = ["reset"]  # the POST itself is kept, and its answer lost
            created(path, one)
            raise ConnectionResetError
        return created(path, one)

    server.put = lose_the_answer  # type: ignore[method-assign]
    KubeRayPlace(KubeOptions(), timeout_s=10).submit(JOB)
    assert RAY_JOB in server.objects
    with pytest.raises(RequestError, match="job first exists"):
        KubeRayPlace(KubeOptions()).submit(JOB)


def test_what_cannot_be_removed_after_a_failed_submission_is_named(
    server: KubeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.refused["rayjobs"] = "no budget"
    here = KubeRayPlace(KubeOptions(), timeout_s=10)
    keep = server.put

    def take_the_right(path: str, one: dict) -> dict:
        server.denied.add(("delete", "networkpolicies"))  # after the rights were checked
        return keep(path, one)

    server.put = take_the_right  # type: ignore[method-assign]
    with pytest.raises(FslDistError, match="no budget"):
        here.submit(JOB)
    left = [record.message for record in caplog.records if "is left on the cluster" in record.message]
    assert len(left) == 2
    assert all("networkpolicies/first" in text for text in left)


@pytest.mark.parametrize("lines", range(6))
def test_a_log_goes_on_where_its_connection_broke(server: KubeServer, lines: int) -> None:
    here = submit(server)
    server.add_pod("first-x", "first", "submitter", phase="Running")
    # Two lines of each second, and equal ones among them: neither text nor time alone tells which was read.
    text = "".join(f"step {n // 3}\n" for n in range(9))
    server.log_breaks = [lines, 2, 0]
    server.write_log("first-x", text)
    listener, heard = hear(here)
    until(lambda: "".join(heard) == text, listener)
    set_status(server, **DONE)
    server.write_log("first-x", "the last words", ends=True)
    listener.join(20)
    assert not listener.is_alive()
    assert "".join(heard) == text + "the last words"


def test_a_log_goes_on_over_an_api_server_that_is_away(server: KubeServer) -> None:
    here = submit(server)
    server.add_pod("first-x", "first", "submitter", phase="Running")
    server.write_log("first-x", "step 1\n")
    listener, heard = hear(here)
    until(lambda: heard == ["step 1\n"], listener)
    server.faults = ["503", "reset"]
    set_status(server, **DONE)
    server.write_log("first-x", "step 2\n", ends=True)
    listener.join(20)
    assert heard == ["step 1\n", "step 2\n"]
    assert server.faults == []


def test_a_second_submitter_of_the_same_try_repeats_nothing(server: KubeServer) -> None:
    here = submit(server)
    owner = {"uid": "try-1", "kind": "Job", "name": "first"}

    def add(name: str, text: str, uid: str) -> None:
        server.add_pod(name, "first", "submitter", phase="Failed")
        server.objects[f"{NAMESPACE}/pods/{name}"]["metadata"]["ownerReferences"] = [owner | {"uid": uid}]
        server.write_log(name, text, ends=True)

    add("first-a", "waiting for the dashboard\nstep 1\nstep 1\n", "try-1")
    listener, heard = hear(here)
    until(lambda: len(heard) == 3, listener)
    add("first-b", "tailing the log\nstep 1\nstep 1\nstep 1\nstep 2\n", "try-1")
    until(lambda: "step 2\n" in heard, listener)
    add("first-c", "step 1\nstep 2\nstep 3\n", "try-2")
    set_status(server, **DONE)
    listener.join(20)
    first = ["waiting for the dashboard\n", "step 1\n", "step 1\n"]
    assert heard == [*first, "tailing the log\n", "step 1\n", "step 2\n", "step 1\n", "step 2\n", "step 3\n"]


@pytest.mark.parametrize("comes_back", [False, True])
def test_a_job_that_is_deleted_while_it_is_followed_is_said(server: KubeServer, comes_back: bool) -> None:
    here = submit(server)
    listener, _ = hear(here)
    listener.join(0.1)
    gone = server.objects.pop(RAY_JOB)
    if comes_back:
        server.put(RAY_JOB, {**gone, "metadata": {"name": "first"}})
    listener.join(20)
    found = here.status("first")
    assert (found.state, found.follower_exit_code) == ("stopped", 143)
    assert found.message == "it was deleted while it was followed; its last state was running"


def test_the_cause_of_waiting_is_said_once_and_again_when_it_changes(
    server: KubeServer, caplog: pytest.LogCaptureFixture
) -> None:
    here = submit(server, jobDeploymentStatus="Initializing")
    looks = iter(range(6))

    def pass_time(_: float) -> None:
        look = next(looks)
        if look == 2:
            lacking = [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
            ]
            server.add_pod("first-head", "first", "ray", conditions=lacking)
        elif look == 4:
            set_status(server, **RUNNING)

    with caplog.at_level(logging.INFO):
        assert wait_for_start(here, "first", sleep=pass_time).state == "running"
    assert [record.message for record in caplog.records if "waits" in record.message] == [
        "first waits: its pods are not created yet",
        "first waits: pod first-head: Unschedulable: no GPU",
    ]


def test_a_wait_ends_with_its_cause(server: KubeServer) -> None:
    here = submit(server, jobDeploymentStatus="Initializing")
    server.add_event(
        "RayCluster", "first-c", "FailedToCreateHeadPod", "exceeded quota", "2026-01-01T00:00:00Z"
    )
    set_status(server, jobDeploymentStatus="Initializing", rayClusterName="first-c")
    now = [0.0]

    def pass_time(seconds: float) -> None:
        now[0] += seconds

    with pytest.raises(
        WaitedError, match=r"first still waits after 30 s: raycluster first-c: .*exceeded quota"
    ) as waited:
        wait_for_start(here, "first", wait_s=30, sleep=pass_time, clock=lambda: now[0])
    assert (waited.value.exit_code, now[0]) == (3, 30)
    assert RAY_JOB in server.objects


def test_a_queued_job_that_is_stopped_leaves_the_queue_though_it_ran_before(server: KubeServer) -> None:
    here = submit(server, jobDeploymentStatus="Suspended", startTime="2026-11-21T22:00:00Z")
    here.stop("first")
    assert RAY_JOB not in server.objects
    found = here.status("first")
    assert (found.state, found.message) == ("stopped", "it waited in its queue; the job was deleted")


def test_the_deadline_counts_from_the_server_s_clock_and_ends_a_wait_in_a_queue(server: KubeServer) -> None:
    here = submit(server, jobDeploymentStatus="Suspended")
    job = server.objects[RAY_JOB]
    deadline = job["metadata"]["annotations"][DEADLINE]
    assert f"job enter --deadline {deadline} --ray-version" in job["spec"]["entrypoint"]
    assert here.status("first").deadline == deadline.replace("T", " ").removesuffix("Z")
    job["metadata"]["annotations"][DEADLINE] = write_moment(here._api.now_s() - 1)
    assert here.status("first").is_late
    found = wait_for_start(here, "first", sleep=lambda _: None)
    assert RAY_JOB not in server.objects
    assert (found.state, found.follower_exit_code) == ("failed", 1)
    assert found.message == "its deadline passed while it waited in its queue; the job was deleted"


def test_a_command_that_no_retry_mends_has_failed_though_ray_says_stopped(server: KubeServer) -> None:
    here = submit(server, **(RUNNING | {"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}))
    server.add_pod("first-x", "first", "submitter", phase="Succeeded")
    server.write_log("first-x", "error: runs/r is not a run folder\nfsl-dist-final: 2\n", ends=True)
    found = here.status("first")
    assert (found.state, found.exit_code, found.message) == ("failed", 2, "runs/r is not a run folder")


def test_a_result_counts_more_than_an_operator_that_cannot_reach_the_job(server: KubeServer) -> None:
    status = RUNNING | {"jobDeploymentStatus": "Failed", "reason": "JobStatusCheckTimeoutExceeded"}
    here = submit(server, **status)
    server.add_pod("first-x", "first", "submitter", phase="Succeeded")
    server.write_log("first-x", 'fsl-dist-result: {"steps": 3}\n', ends=True)
    found = here.status("first")
    assert (found.state, found.result, found.follower_exit_code) == ("succeeded", {"steps": 3}, 0)
    assert "KubeRay reports a failure (JobStatusCheckTimeoutExceeded" in found.message


def test_the_operator_is_let_in_from_where_it_is(server: KubeServer) -> None:
    server.objects["/api/v1/pods"] = {"metadata": {}, "items": [{"metadata": {"namespace": "ray-system"}}]}
    submit(server)
    policy = server.objects["/apis/networking.k8s.io/v1/namespaces/fsl-dist/networkpolicies/first-dashboard"]
    assert "ray-system" in str(policy["spec"])
    assert "kuberay-system" not in str(policy["spec"])


def test_only_records_of_jobs_that_ended_long_ago_are_removed(server: KubeServer) -> None:
    now_s = open_api()[0].now_s()
    jobs = RAY_JOB.rpartition("/")[0]
    for name, status, age_s, labels in (
        ("old", DONE, 100, {"fsl-dist/job": "old"}),
        ("old-night", DONE, 100, {"ray.io/cronjob-name": "nightly"}),
        ("new", DONE, 10, {"fsl-dist/job": "new"}),
        ("running", RUNNING, 100, {"fsl-dist/job": "running"}),
        ("another-s", DONE, 100, {}),
    ):
        one = {
            "metadata": {"name": name, "labels": labels},
            "spec": {"entrypoint": "fsl-dist job enter -- doctor"},
            "status": {**status, "endTime": write_moment(now_s - age_s)},
        }
        server.put(f"{jobs}/{name}", one)
    assert sorted(KubeRayPlace(KubeOptions()).clean(50)) == ["old", "old-night"]
    left = {path.rpartition("/")[2] for path in server.objects if path.startswith(f"{jobs}/")}
    assert left == {"new", "running", "another-s"}


def test_top_shows_the_newest_progress_and_the_reason_of_a_wait(server: KubeServer) -> None:
    submit(server)
    server.add_pod("first-x", "first", "submitter", phase="Running")
    line = "epoch 2/9  step 5/8  loss 0.5123  812 img/s  at most 0:25 left  data wait 12 ms"
    server.write_log("first-x", f"{line.replace('2/9', '1/9')}\n{line}\n")
    found = CliRunner().invoke(fsl_dist, ["top", "--to", "kuberay", "--json"])
    (job,) = json.loads(found.output)["jobs"]
    assert (job["name"], job["state"], job["progress"]["line"]) == ("first", "running", line)
    shown = CliRunner().invoke(fsl_dist, ["top", "--to", "kuberay", "--once"]).output
    assert "epoch 2/9 step 5/8" in shown
    set_status(server)
    found = CliRunner().invoke(fsl_dist, ["top", "--to", "kuberay", "--json"])
    (job,) = json.loads(found.output)["jobs"]
    assert job["state"] == "pending"
    assert job["message"] == KubeRayPlace(KubeOptions()).status("first").message != ""
