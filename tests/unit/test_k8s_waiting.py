"""Why a job waits: each thing that can hold it, as the API server has it, and what the user reads."""

import pytest

from cluster.jobs.kuberay.waiting import JobObjects, find_cause

pytestmark = pytest.mark.k8s

EARLY, LATE, LATEST = (f"2026-11-21T22:0{minute}:00Z" for minute in range(3))


def ray_job(deployment: str = "Initializing", *, suspend: bool = False, **status: object) -> dict:
    spec = {"suspend": True} if suspend else {}
    labels = {"kueue.x-k8s.io/queue-name": "team"} if suspend else {}
    return {
        "metadata": {"name": "a", "labels": labels},
        "spec": spec,
        "status": {"jobDeploymentStatus": deployment, "rayClusterName": "a-c", **status},
    }


def condition(kind: str, status: str, reason: str, message: str, since: str = EARLY) -> dict:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since}


def pod(name: str, *conditions: dict, phase: str = "Pending", **status: object) -> dict:
    return {"metadata": {"name": name}, "status": {"phase": phase, "conditions": list(conditions), **status}}


def waiting(reason: str, message: str = "", *, kind: str = "containerStatuses", **more: object) -> dict:
    return {kind: [{"state": {"waiting": {"reason": reason, "message": message}}, **more}]}


def event(kind: str, name: str, reason: str, message: str, at: str, event_type: str = "Warning") -> dict:
    about = {"kind": kind, "name": name}
    return {
        "metadata": {},
        "involvedObject": about,
        "type": event_type,
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def cluster(*conditions: dict) -> dict:
    return {"metadata": {"name": "a-c"}, "status": {"conditions": list(conditions)}}


QUOTA = 'pods "a-head" is forbidden: exceeded quota: team, requested: cpu=4, used: cpu=8, limited: cpu=10'
NO_ACCOUNT = (
    'pods "a-head" is forbidden: error looking up service account x/robot: serviceaccount "robot" not found'
)
CASES = {
    "quota": (
        {"cluster": cluster(condition("ReplicaFailure", "True", "FailedCreateHeadPod", QUOTA))},
        f"cluster a-c: FailedCreateHeadPod: {QUOTA}",
    ),
    "the job's own copy of its cluster's conditions": (
        {
            "job": ray_job(
                rayClusterStatus={
                    "conditions": [condition("ReplicaFailure", "True", "FailedCreateHeadPod", NO_ACCOUNT)]
                }
            )
        },
        f"cluster a-c: FailedCreateHeadPod: {NO_ACCOUNT}",
    ),
    "a failure that is over": (
        {
            "cluster": cluster(condition("ReplicaFailure", "False", "x", "y")),
            "pods": [pod("a-head", phase="Running")],
        },
        "its 1 pods are up; the command is starting",
    ),
    "unschedulable": (
        {"pods": [pod("a-w", condition("PodScheduled", "False", "Unschedulable", "0/3 nodes: no GPU"))]},
        "pod a-w: Unschedulable: 0/3 nodes: no GPU",
    ),
    "a scheduling gate": (
        {"pods": [pod("a-w", condition("PodScheduled", "False", "SchedulingGated", "waits for its gang"))]},
        "pod a-w: SchedulingGated: waits for its gang",
    ),
    "image": (
        {"pods": [pod("a-w", **waiting("ImagePullBackOff", 'Back-off pulling image "x:1"'))]},
        'pod a-w: ImagePullBackOff: Back-off pulling image "x:1"',
    ),
    "image of an init container": (
        {"pods": [pod("a-w", **waiting("ErrImagePull", "no such tag", kind="initContainerStatuses"))]},
        "pod a-w: ErrImagePull: no such tag",
    ),
    "secret of a variable": (
        {"pods": [pod("a-w", **waiting("CreateContainerConfigError", 'secret "s" not found'))]},
        'pod a-w: CreateContainerConfigError: secret "s" not found',
    ),
    "memory": (
        {
            "pods": [
                pod(
                    "a-w",
                    **waiting(
                        "CrashLoopBackOff",
                        "back-off 40s",
                        lastState={"terminated": {"reason": "OOMKilled", "exitCode": 137}},
                    ),
                )
            ]
        },
        "pod a-w: CrashLoopBackOff: back-off 40s (it ended before with OOMKilled, exit code 137)",
    ),
    "eviction": (
        {"pods": [pod("a-w", phase="Failed", reason="Evicted", message="The node was low on disk.")]},
        "pod a-w: Evicted: The node was low on disk.",
    ),
    "drain": (
        {"pods": [pod("a-w", condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "drained"))]},
        "pod a-w: EvictionByEvictionAPI: drained",
    ),
    "volume": (
        {
            "pods": [pod("a-w", **waiting("ContainerCreating"))],
            "events": [
                event("Pod", "a-w", "Scheduled", "to node-1", EARLY, "Normal"),
                event("Pod", "a-w", "FailedMount", 'secret "s" not found', LATE),
            ],
        },
        'pod a-w: FailedMount: secret "s" not found',
    ),
    "priority class": (
        {"events": [event("Job", "a", "FailedCreate", "no PriorityClass with name high was found", LATE)]},
        "job a: FailedCreate: no PriorityClass with name high was found",
    ),
    "webhook": (
        {
            "events": [
                event("RayCluster", "a-c", "FailedToCreateHeadPod", "admission webhook denied", LATE),
                event("RayCluster", "a-c", "CreatedWorkerPod", "made", LATEST, "Normal"),
            ]
        },
        "raycluster a-c: FailedToCreateHeadPod: admission webhook denied",
    ),
    "an event that a later one answers": (
        {
            "events": [
                event("RayCluster", "a-c", "FailedToCreateHeadPod", "admission webhook denied", EARLY),
                event("RayCluster", "a-c", "CreatedHeadPod", "made", LATE, "Normal"),
            ],
            "pods": [pod("a-head")],
        },
        "0 of 1 pods are up",
    ),
    "an event of a pod that is up": (
        {
            "pods": [pod("a-w", phase="Running"), pod("a-head")],
            "events": [event("Pod", "a-w", "FailedMount", "timed out", LATE)],
        },
        "1 of 2 pods are up",
    ),
    "a name that KubeRay refuses": (
        {
            "job": {"metadata": {"name": "a"}, "spec": {}},
            "events": [event("RayJob", "a", "InvalidRayJobSpec", "backoffLimit", LATE)],
        },
        "rayjob a: InvalidRayJobSpec: backoffLimit",
    ),
    "an operator that is away": (
        {"job": {"metadata": {"name": "a"}, "spec": {}}},
        "KubeRay's operator has not started it yet",
    ),
    "queue": (
        {
            "job": ray_job("Suspended", suspend=True),
            "workloads": [
                {"status": {"conditions": [condition("QuotaReserved", "False", "Pending", "no quota left")]}}
            ],
        },
        "queue team: Pending: no quota left",
    ),
    "preemption": (
        {
            "job": ray_job("Suspended", suspend=True),
            "workloads": [
                {
                    "status": {
                        "conditions": [
                            condition("QuotaReserved", "False", "Pending", "no quota left", EARLY),
                            condition("Evicted", "True", "Preempted", "to make room for b", LATE),
                        ]
                    }
                }
            ],
        },
        "queue team: Preempted: to make room for b",
    ),
    "a queue that says nothing": (
        {"job": ray_job("Suspended", suspend=True)},
        "queue team: suspended until its queue admits it",
    ),
}


def objects(job: dict | None = None, **found: object) -> JobObjects:
    return JobObjects(ray_job=job or ray_job(), **found)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", CASES)
def test_what_holds_a_job_is_said(name: str) -> None:
    found, said = CASES[name]
    assert str(find_cause(objects(**found))) == said


def test_the_newest_of_several_counts_and_pods_that_wait_for_the_same_thing_are_one() -> None:
    lacking = [
        pod(f"a-w{n}", condition("PodScheduled", "False", "Unschedulable", "no GPU", LATE)) for n in range(3)
    ]
    failure = condition("ReplicaFailure", "True", "FailedCreateWorkerPod", "quota", EARLY)
    assert (
        str(find_cause(objects(cluster=cluster(failure), pods=lacking)))
        == "pod a-w0 and 2 more: Unschedulable: no GPU"
    )
    newer = failure | {"lastTransitionTime": LATEST}
    assert (
        str(find_cause(objects(cluster=cluster(newer), pods=lacking)))
        == "cluster a-c: FailedCreateWorkerPod: quota"
    )
    # Whichever pod was looked at last, the cause is the same, so it is not reported again.
    causes = {str(find_cause(objects(pods=lacking[n:] + lacking[:n]))).partition(": ")[2] for n in range(3)}
    assert causes == {"Unschedulable: no GPU"}


def test_a_running_job_whose_pods_are_up_waits_for_nothing() -> None:
    job = ray_job("Running", jobStatus="RUNNING")
    assert find_cause(objects(job, pods=[pod("a-w", phase="Running")])) is None
    lacking = pod("a-w", condition("PodScheduled", "False", "Unschedulable", "no GPU"))
    assert str(find_cause(objects(job, pods=[lacking]))) == "pod a-w: Unschedulable: no GPU"
