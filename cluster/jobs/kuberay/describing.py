"""A job on Kubernetes for people to read: its pods and events, each as a row of texts."""

from collections.abc import Sequence
from typing import Any

from cluster.jobs.job import JobStatus
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.rendering import PART_LABEL
from cluster.jobs.kuberay.states import show_utc
from cluster.jobs.kuberay.waiting import JobObjects, time_of_event

_LAST_EVENTS = 10


def describe_job(status: JobStatus, found: JobObjects) -> dict[str, Any]:
    """State, cluster, pods (rows) and the last events (rows) of a job."""
    ray_status = found.ray_job.get("status") or {}
    return {
        "name": status.name,
        "state": status.state,
        "message": status.message,
        "command": status.command,
        "started": status.started,
        "ended": status.ended,
        "deadline": status.deadline,
        "tries": f"{(ray_status.get('failed') or 0) + 1} of {found.ray_job['spec'].get('backoffLimit', 0) + 1}",
        "cluster": ray_status.get("rayClusterName", ""),
        "pods": [_describe_pod(pod) for pod in found.pods],
        "events": list(describe_events(found))[-_LAST_EVENTS:],
    }


def describe_events(found: JobObjects) -> Sequence[dict[str, str]]:
    """Events as rows, the oldest first."""
    return [
        {
            "time (UTC)": show_utc(time_of_event(event)),
            "type": event.get("type", ""),
            "object": f"{event['involvedObject'].get('kind', '')} {event['involvedObject'].get('name', '')}",
            "reason": event.get("reason", ""),
            "times": str(event.get("count") or event.get("series", {}).get("count") or 1),
            "message": " ".join(event.get("message", "").split()),
        }
        for event in sorted(found.events, key=time_of_event)
    ]


def _describe_pod(pod: Manifest) -> dict[str, str]:
    status, labels = pod.get("status", {}), pod["metadata"].get("labels") or {}
    containers = status.get("containerStatuses", [])
    ready = sum(bool(container.get("ready")) for container in containers)
    return {
        "pod": pod["metadata"]["name"],
        "part": labels.get("ray.io/node-type") or labels.get(PART_LABEL, ""),
        "phase": status.get("phase", ""),
        "ready": f"{ready}/{len(pod.get('spec', {}).get('containers', containers))}",
        "restarts": str(sum(container.get("restartCount", 0) for container in containers)),
        "node": pod.get("spec", {}).get("nodeName", ""),
    }
