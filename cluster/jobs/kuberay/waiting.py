"""Why a job on Kubernetes waits, from the conditions of its queue, cluster and pods, and from their events."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cluster.jobs.kuberay.kustomize import Manifest

_QUEUE = {"QuotaReserved": "False", "Admitted": "False", "Evicted": "True", "Preempted": "True"}
"""conditions of Kueue's Workload that delay a job, with the status in which they do"""
_STARTING = ("", "ContainerCreating", "PodInitializing")
"""reasons of a container that is still starting"""
_WORDS = re.compile(r"^(Failed|Successful|Created|Deleted)(ly)?(To)?(Create|Delete)?|(ing|ed)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class JobObjects:
    """A job's objects, as the API server returns them."""

    ray_job: Manifest
    cluster: Manifest | None = None
    """its RayCluster; None before it exists, or if it may not be read"""
    pods: Sequence[Manifest] = ()
    events: Sequence[Manifest] = ()
    """events of all these objects"""
    workloads: Sequence[Manifest] = ()
    """Workloads of Kueue for the job, if the cluster has Kueue"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cause:
    """One reason why a job waits."""

    where: str
    """kind and name of the object that reports it; empty if the start is not delayed"""
    said: str
    """the reason and its message, on one line"""
    since: str = ""
    """date and time, ISO 8601 in UTC"""

    def __str__(self) -> str:
        return f"{self.where}: {self.said}" if self.where else self.said


def find_cause(found: JobObjects) -> Cause | None:
    """The newest reason why a job waits; None if it does not wait.

    Conditions describe the current state, so they come first: those of the queue, of the cluster, of the pods. Events
    are read if no condition explains the wait, such as a volume that cannot be mounted. The first of equally new
    reasons is returned.
    """
    conditions = [*_queue_causes(found), *_cluster_causes(found), *_pod_causes(found.pods)]
    causes = conditions or list(_event_causes(found))
    if not causes:
        return _progress(found)
    newest = max(causes, key=lambda cause: cause.since)
    # Pods that wait for the same reason are one cause, whichever reported it last.
    same = [cause for cause in causes if cause.said == newest.said]
    more = f" and {len(same) - 1} more" if len(same) > 1 else ""
    return Cause(where=f"{same[0].where}{more}", said=newest.said, since=newest.since)


def is_in_queue(ray_job: Manifest) -> bool:
    """Whether a job waits in a queue, before its first cluster or after it was preempted."""
    is_suspended = ray_job.get("status", {}).get("jobDeploymentStatus", "") in ("Suspended", "Suspending")
    return is_suspended or bool(ray_job["spec"].get("suspend"))


def time_of_event(event: Manifest) -> str:
    """When an event was last seen: ISO 8601 in UTC."""
    return str(
        event.get("series", {}).get("lastObservedTime")
        or event.get("lastTimestamp")
        or event.get("eventTime")
        or event["metadata"].get("creationTimestamp", "")
    )


def _queue_causes(found: JobObjects) -> Iterator[Cause]:
    if not is_in_queue(found.ray_job):
        return
    labels = found.ray_job["metadata"].get("labels", {})
    queue = labels.get("kueue.x-k8s.io/queue-name", "")
    is_explained = False
    for workload in found.workloads:
        for condition in _conditions(workload):
            if _QUEUE.get(condition["type"]) == condition["status"]:
                is_explained = True
                yield _of_condition(f"queue {queue}", condition)
    if not is_explained:
        yield Cause(
            where=f"queue {queue}" if queue else "", said="suspended until its queue admits it", since="0"
        )


def _cluster_causes(found: JobObjects) -> Iterator[Cause]:
    cluster = found.cluster or {"status": found.ray_job.get("status", {}).get("rayClusterStatus", {})}
    name = found.ray_job.get("status", {}).get("rayClusterName", "")
    for condition in _conditions(cluster):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            yield _of_condition(f"cluster {name}", condition)


def _pod_causes(pods: Iterable[Manifest]) -> Iterator[Cause]:
    for pod in pods:
        status, where = pod.get("status", {}), f"pod {pod['metadata']['name']}"
        if status.get("phase") == "Failed" and status.get("reason"):  # Evicted, NodeLost
            yield Cause(where=where, said=_join(status["reason"], status.get("message", "")))
        for condition in _conditions(pod):
            is_unplaced = condition["type"] == "PodScheduled" and condition["status"] == "False"
            is_removed = condition["type"] == "DisruptionTarget" and condition["status"] == "True"
            if is_unplaced or is_removed:
                yield _of_condition(where, condition)
        for container in [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]:
            waiting = container.get("state", {}).get("waiting", {})
            if waiting.get("reason", "") in _STARTING:
                continue
            said = _join(waiting["reason"], waiting.get("message", ""))
            ended = container.get("lastState", {}).get("terminated", {})
            if ended.get("reason"):  # why it restarts: OOMKilled, Error
                said += f" (it ended before with {ended['reason']}, exit code {ended.get('exitCode')})"
            yield Cause(where=where, said=said, since=_newest_transition(pod))


def _event_causes(found: JobObjects) -> Iterator[Cause]:
    """Warnings of objects that are not up, unless a later event of the same object resolves them."""
    running = {pod["metadata"]["name"] for pod in found.pods if _is_ready(pod)}
    for event in found.events:
        about = event.get("involvedObject", {})
        if event.get("type") != "Warning" or (about.get("kind") == "Pod" and about.get("name") in running):
            continue
        if not any(_answers(other, event) for other in found.events):
            where = f"{about.get('kind', '').lower()} {about.get('name', '')}"
            said = _join(event.get("reason", ""), event.get("message", ""))
            yield Cause(where=where, said=said, since=time_of_event(event))


def _answers(other: Manifest, warning: Manifest) -> bool:
    """Whether `other` resolves `warning`: CreatedHeadPod after FailedToCreateHeadPod."""
    return (
        other.get("type") == "Normal"
        and other.get("involvedObject") == warning.get("involvedObject")
        and _WORDS.sub("", other.get("reason", "")) == _WORDS.sub("", warning.get("reason", ""))
        and time_of_event(other) > time_of_event(warning)
    )


def _progress(found: JobObjects) -> Cause | None:
    """The progress of a start that is not delayed."""
    status = found.ray_job.get("status", {})
    if not status.get("jobDeploymentStatus"):
        return Cause(where="", said="KubeRay's operator has not started it yet")
    if status.get("jobStatus") == "RUNNING":
        return None
    ready = sum(map(_is_ready, found.pods))
    if not found.pods:
        return Cause(where="", said="its pods are not created yet")
    if ready == len(found.pods):
        return Cause(where="", said=f"its {ready} pods are up; the command is starting")
    return Cause(where="", said=f"{ready} of {len(found.pods)} pods are up")


def _conditions(one: Manifest) -> list[Manifest]:
    return one.get("status", {}).get("conditions") or []


def _is_ready(pod: Manifest) -> bool:
    status = pod.get("status", {})
    return status.get("phase") == "Running" and all(
        container.get("ready", True) for container in status.get("containerStatuses", [])
    )


def _newest_transition(pod: Manifest) -> str:
    return max((condition.get("lastTransitionTime") or "" for condition in _conditions(pod)), default="")


def _of_condition(where: str, condition: Manifest) -> Cause:
    reason = condition.get("reason") or condition["type"]
    return Cause(
        where=where,
        said=_join(reason, condition.get("message", "")),
        since=condition.get("lastTransitionTime") or "",
    )


def _join(reason: str, message: str) -> str:
    text = " ".join(f"{reason}: {message}".split())
    return text.removesuffix(":")
