"""Reads the objects of a job: its cluster, its pods, its Workload in a queue, and their events."""

from collections.abc import Iterator, Sequence

from cluster.jobs.kuberay.api import KubeApi
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.rendering import JOB_LABEL, PART_LABEL
from cluster.jobs.kuberay.waiting import JobObjects, is_in_queue

SCHEDULE_LABEL = "ray.io/cronjob-name"
"""label of KubeRay on each RayJob of a RayCronJob: the name of the RayCronJob"""

_MOST_PODS = 5
"""pods of a job whose events are read; pods that wait for the same reason have the same events"""


def read_objects(api: KubeApi, namespace: str, ray_job: Manifest, *, all_events: bool = False) -> JobObjects:
    """The objects of a job, without those that may not be read.

    Args:
        api: the API server.
        namespace: the job's.
        ray_job: the job.
        all_events: whether to read the events of running pods, too.
    """
    name = ray_job["metadata"]["name"]
    cluster_name = (ray_job.get("status") or {}).get("rayClusterName", "")
    pods = read_pods(api, namespace, ray_job)
    about = [name, *([cluster_name] if cluster_name else [])]
    silent = [pod for pod in pods if all_events or pod.get("status", {}).get("phase") != "Running"]
    about += [pod["metadata"]["name"] for pod in silent[:_MOST_PODS]]
    clusters = f"/apis/ray.io/v1/namespaces/{namespace}/rayclusters"
    workloads = list(_read_workloads(api, namespace, ray_job)) if is_in_queue(ray_job) else []
    about += [one["metadata"]["name"] for one in workloads]
    return JobObjects(
        ray_job=ray_job,
        cluster=api.look(f"{clusters}/{cluster_name}") if cluster_name else None,
        pods=pods,
        events=[event for one in about for event in _read_events(api, namespace, one)],
        workloads=workloads,
    )


def read_pods(api: KubeApi, namespace: str, ray_job: Manifest, part: str = "") -> Sequence[Manifest]:
    """The pods of a job, the newest first; part: only `ray`, or only `submitter`, whose log is the job's."""
    metadata, status = ray_job["metadata"], ray_job.get("status") or {}
    labels = ray_job["spec"].get("submitterPodTemplate", {}).get("metadata", {}).get("labels", {})
    selector = f"{JOB_LABEL}={labels.get(JOB_LABEL, metadata['name'])}"
    if part:
        selector += f",{PART_LABEL}={part}"
    pods = api.get(f"/api/v1/namespaces/{namespace}/pods", labelSelector=selector)["items"]
    if SCHEDULE_LABEL in (metadata.get("labels") or {}):
        # All runs of a schedule share the label: a pod belongs to the run that owns its cluster or its submitter.
        own = {metadata["name"], status.get("rayClusterName", "")} - {""}
        pods = [pod for pod in pods if own & _owners(pod)]
    return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), reverse=True)


def _owners(pod: Manifest) -> set[str]:
    metadata = pod["metadata"]
    names = {owner["name"] for owner in metadata.get("ownerReferences", [])}
    return names | {(metadata.get("labels") or {}).get("ray.io/cluster", "")}


def _read_events(api: KubeApi, namespace: str, name: str) -> list[Manifest]:
    path = f"/api/v1/namespaces/{namespace}/events"
    found = api.look(path, fieldSelector=f"involvedObject.name={name}")
    return found["items"] if found else []


def _read_workloads(api: KubeApi, namespace: str, ray_job: Manifest) -> Iterator[Manifest]:
    """The Workloads of Kueue that a job owns."""
    kueue = api.look("/apis/kueue.x-k8s.io")
    if kueue is None:
        return
    version = kueue["preferredVersion"]["groupVersion"]
    found = api.look(f"/apis/{version}/namespaces/{namespace}/workloads")
    for one in found["items"] if found else []:
        owners = one["metadata"].get("ownerReferences", [])
        if ray_job["metadata"].get("uid") in [owner.get("uid") for owner in owners]:
            yield one
