"""Kueue's part on the server of kube_server: what its scheduler does with jobs of one ClusterQueue, by its rules.

Jobs are admitted by priority, then by age, each with all of its pods or not at all; one of higher priority evicts those of
lower priority (`withinClusterQueue: LowerPriority`). Every object is checked by Kueue's own schemas (v0.19.2), and the
reasons are those of its source. Its controller itself does not run here.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from k8s_schema import schema_faults
from kube_server import KubeServer
from kubernetes.utils.quantity import parse_quantity

from cluster.jobs.kuberay.kustomize import containers

GROUP = "/apis/kueue.x-k8s.io/v1beta2"
JOBS = "/apis/ray.io/v1/namespaces/fsl-dist/rayjobs/"
Manifest = dict[str, Any]


class Kueue:
    """Admits the jobs on `server` whose queue belongs to the ClusterQueue among `objects`."""

    def __init__(self, server: KubeServer, objects: list[Manifest]) -> None:
        assert [fault for one in objects for fault in schema_faults(one)] == []
        self._server, self._ticks = server, 0
        server.put("/apis/kueue.x-k8s.io", {"preferredVersion": {"groupVersion": "kueue.x-k8s.io/v1beta2"}})
        by_kind = {
            kind: [one for one in objects if one["kind"] == kind] for kind in {o["kind"] for o in objects}
        }
        (queue,) = by_kind["ClusterQueue"]
        (flavor,) = queue["spec"]["resourceGroups"][0]["flavors"]
        self._flavor = flavor["name"]
        self._quota = {one["name"]: parse_quantity(one["nominalQuota"]) for one in flavor["resources"]}
        self._values = {one["metadata"]["name"]: one["value"] for one in by_kind["WorkloadPriorityClass"]}
        self._queues = {one["metadata"]["name"] for one in by_kind["LocalQueue"]}
        for one in by_kind["LocalQueue"]:
            server.put(f"{GROUP}/namespaces/fsl-dist/localqueues/{one['metadata']['name']}", one)

    def schedule(self) -> None:
        """Decide about every job that has not ended, and write its Workload and `spec.suspend`."""
        left = dict(self._quota)
        for job in sorted(
            self._waiting(), key=lambda one: (-self._priority(one), one["metadata"]["creationTimestamp"])
        ):
            needed = needs(job)
            lacking = {name: amount - left[name] for name, amount in needed.items() if amount > left[name]}
            was_running = not job["spec"].get("suspend", True)
            if not lacking:
                left = {name: amount - needed.get(name, 0) for name, amount in left.items()}
                self._write(
                    job,
                    [("QuotaReserved", "True", "QuotaReserved", ""), ("Admitted", "True", "Admitted", "")],
                )
                self._set_suspended(job, False)
                continue
            more = "; ".join(
                f"insufficient unused quota for {name} in flavor {self._flavor}, {amount.normalize():f} more needed"
                for name, amount in lacking.items()
            )
            said = f"couldn't assign flavors to pod set workers: {more}"
            conditions = [("QuotaReserved", "False", "WaitingForQuota", said)]
            if was_running:
                reason = "Preempted to accommodate a workload due to prioritization in the ClusterQueue"
                conditions += [("Evicted", "True", "Preempted", reason)]
            self._write(job, conditions)
            self._set_suspended(job, True)

    def _waiting(self) -> list[Manifest]:
        found = [one for path, one in list(self._server.objects.items()) if path.startswith(JOBS)]
        return [
            one
            for one in found
            if one["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") in self._queues
            and one.get("status", {}).get("jobDeploymentStatus") != "Complete"
        ]

    def _priority(self, job: Manifest) -> int:
        name = job["metadata"]["labels"].get("kueue.x-k8s.io/priority-class")
        return self._values[name] if name else 0

    def _set_suspended(self, job: Manifest, is_suspended: bool) -> None:
        name = job["metadata"]["name"]
        status = {"jobDeploymentStatus": "Suspended"}
        if not is_suspended:
            status = {
                "jobDeploymentStatus": "Running",
                "jobStatus": "RUNNING",
                "startTime": "2026-11-21T22:00:00Z",
            }
        self._server.put(
            JOBS + name, {**job, "spec": {**job["spec"], "suspend": is_suspended}, "status": status}
        )

    def _write(self, job: Manifest, conditions: list[tuple[str, str, str, str]]) -> None:
        metadata = job["metadata"]
        self._ticks += len(conditions)
        now = datetime.now(UTC) + timedelta(seconds=self._ticks)
        stamps = [now + timedelta(seconds=number) for number in range(len(conditions))]
        workload = {
            "apiVersion": "kueue.x-k8s.io/v1beta2",
            "kind": "Workload",
            "metadata": {
                "name": f"rayjob-{metadata['name']}",
                "namespace": "fsl-dist",
                "ownerReferences": [
                    {
                        "apiVersion": "ray.io/v1",
                        "kind": "RayJob",
                        "name": metadata["name"],
                        "uid": metadata["uid"],
                    }
                ],
            },
            "spec": {
                "queueName": metadata["labels"]["kueue.x-k8s.io/queue-name"],
                "priority": self._priority(job),
                "podSets": pod_sets(job),
            },
            "status": {
                "conditions": [
                    {
                        "type": kind,
                        "status": status,
                        "reason": reason,
                        "message": message,
                        "lastTransitionTime": stamp.strftime("%Y-%m-%dT%H:%M:%SZ"),
                    }
                    for (kind, status, reason, message), stamp in zip(conditions, stamps, strict=True)
                ]
            },
        }
        assert schema_faults(workload) == []
        self._server.put(f"{GROUP}/namespaces/fsl-dist/workloads/rayjob-{metadata['name']}", workload)


def pod_sets(job: Manifest) -> list[Manifest]:
    """The pods that Kueue counts of a RayJob: its head, its worker groups, and its submitter."""
    cluster = job["spec"]["rayClusterSpec"]
    found = [("head", 1, cluster["headGroupSpec"]["template"])]
    found += [
        (group["groupName"], group["replicas"], group["template"]) for group in cluster["workerGroupSpecs"]
    ]
    found.append(("submitter", 1, job["spec"]["submitterPodTemplate"]))
    return [{"name": name, "count": count, "template": template} for name, count, template in found]


def needs(job: Manifest) -> dict[str, Any]:
    """What all pods of a job request together, by resource."""
    total: dict[str, Any] = {}
    for one in pod_sets(job):
        for container in containers(one["template"]):
            for name, amount in container["resources"]["requests"].items():
                total[name] = total.get(name, 0) + one["count"] * parse_quantity(amount)
    return total
