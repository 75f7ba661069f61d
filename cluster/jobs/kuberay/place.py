"""Jobs on Kubernetes: a RayJob of KubeRay for each, with its config and its network policies beside it."""

import re
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from cluster.jobs.job import Job, JobState, JobStatus, read_error, read_result
from cluster.jobs.kuberay.api import KubeApi, KubeError
from cluster.jobs.kuberay.checks import check_cluster
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.rendering import JOB_LABEL, PART_LABEL, KubeOptions, render
from index.base.errors import RequestError

_STOPPED = "fsl-dist/stopped"
"""annotation of a job that was stopped rather than failed"""
_LAST_LINES = 200
"""of a log, among which the result or the error is"""


class KubeRayPlace:
    """The namespace of `options` in the cluster of the current kubeconfig context."""

    def __init__(self, options: KubeOptions, *, poll_s: float = 2.0) -> None:
        self.options = options
        self._api = KubeApi()
        self._poll_s = poll_s
        self._never_begun: set[str] = set()

    def submit(self, job: Job) -> None:
        """Create the job's objects, once the cluster is known to take them; all of them, or none."""
        objects = render(job, self.options)
        check_cluster(self._api, job, self.options)
        ray_job = next(one for one in objects if one["kind"] == "RayJob")
        # Network policies first: no pod of the job is open for a moment.
        others = [one for one in objects if one is not ray_job]
        for one in [*others, ray_job]:
            self._create(one, is_trial=True)
        made: list[str] = []
        try:
            for one in others:
                self._create(one)
                made.append(self._path_of(one))
            owner = self._create(ray_job)["metadata"]
            made.append(self._path_of(ray_job))
            # What is beside the job goes when it goes.
            reference = {
                "apiVersion": "ray.io/v1",
                "kind": "RayJob",
                "name": job.name,
                "uid": owner["uid"],
                "controller": False,
                "blockOwnerDeletion": False,
            }
            for path in made[:-1]:
                self._api.change(path, {"metadata": {"ownerReferences": [reference]}})
        except BaseException:
            for path in made:
                self._delete(path)
            raise

    def status(self, name: str) -> JobStatus:
        """How a job stands; while it waits, what for; its result, or its error, from the end of its log."""
        if name in self._never_begun:
            return JobStatus(name=name, state="stopped", message="it had not begun, and is deleted")
        found = self._find(name)
        status = _read_status(found)
        if status.state == "pending" and not status.message:
            status = replace(status, message=self._why_it_waits(name))
        if status.state in ("succeeded", "failed"):
            tail = "".join(
                self._pod_log(pod, tailLines=str(_LAST_LINES)) for pod in self._submitters(name)[:1]
            )
            if status.state == "succeeded":
                return replace(status, result=read_result(tail))
            status = replace(status, message=read_error(tail) or status.message)
        return status

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The log of the newest try; with follow, those of all that come, until the job ends."""
        self._find(name)
        if not follow:
            for pod in self._submitters(name)[:1]:
                yield self._pod_log(pod)
            return
        told: dict[str, int] = {}  # characters of each pod's log
        while True:
            ended = self.is_over(name)
            for pod in reversed(self._submitters(name)):
                pod_name, phase = pod["metadata"]["name"], pod["status"].get("phase")
                if phase in ("Running", "Succeeded", "Failed"):
                    yield from self._follow(pod_name, told, wait=not ended and phase == "Running")
            if ended:
                return
            time.sleep(self._poll_s)

    def is_over(self, name: str) -> bool:
        """Whether a job has ended, one way or the other; one that is gone has."""
        found = self._api.find(self._jobs_path(name))
        return found is None or _read_status(found).is_over

    def stop(self, name: str) -> None:
        """End a job and let its pods go. One that has not begun is deleted; else its record and its log stay."""
        found = self._find(name)
        if _read_status(found).is_over:
            return
        if not found.get("status", {}).get("startTime"):
            self._delete(self._jobs_path(name))
            self._never_begun.add(name)
            return
        # KubeRay ends what is past its deadline for good, whatever retries are left. spec.suspend is Kueue's.
        ended = {"activeDeadlineSeconds": 1, "backoffLimit": 0, "ttlSecondsAfterFinished": 1}
        self._api.change(
            self._jobs_path(name), {"metadata": {"annotations": {_STOPPED: "true"}}, "spec": ended}
        )

    def list(self) -> list[JobStatus]:
        """The namespace's jobs, the newest first, without their results."""
        found = self._api.get(self._jobs_path(), labelSelector=JOB_LABEL)["items"]
        found.sort(key=lambda one: one["metadata"].get("creationTimestamp", ""), reverse=True)
        return [_read_status(one) for one in found]

    def _find(self, name: str) -> Manifest:
        found = self._api.find(self._jobs_path(name))
        if found is None:
            raise RequestError(
                f"there is no job {name} in namespace {self.options.namespace} (fsl-dist job list --to kuberay)"
            )
        return found

    def _jobs_path(self, name: str = "") -> str:
        return f"/apis/ray.io/v1/namespaces/{self.options.namespace}/rayjobs" + (f"/{name}" if name else "")

    def _path_of(self, one: Manifest, *, is_listed: bool = False) -> str:
        room = f"/api/{one['apiVersion']}" if "/" not in one["apiVersion"] else f"/apis/{one['apiVersion']}"
        plural = {"NetworkPolicy": "networkpolicies"}.get(one["kind"], f"{one['kind'].lower()}s")
        path = f"{room}/namespaces/{self.options.namespace}/{plural}"
        return path if is_listed else f"{path}/{one['metadata']['name']}"

    def _create(self, one: Manifest, *, is_trial: bool = False) -> Manifest:
        try:
            return self._api.create(self._path_of(one, is_listed=True), one, is_trial=is_trial)
        except KubeError as error:
            if error.status != 409:
                raise
            raise RequestError(
                f"{one['kind']} {one['metadata']['name']} exists in namespace {self.options.namespace} (another --name)"
            ) from None

    def _delete(self, path: str) -> None:
        try:
            self._api.delete(path)
        except KubeError as error:
            if error.status != 404:
                raise

    def _submitters(self, name: str) -> Sequence[Manifest]:
        """The pods whose log is the job's, one a try, the newest first."""
        pods = self._pods(f"{JOB_LABEL}={name},{PART_LABEL}=submitter")
        return sorted(pods, key=lambda pod: pod["metadata"].get("creationTimestamp", ""), reverse=True)

    def _pods(self, selector: str) -> Sequence[Manifest]:
        path = f"/api/v1/namespaces/{self.options.namespace}/pods"
        return self._api.get(path, labelSelector=selector)["items"]

    def _pod_log(self, pod: Manifest, **query: str) -> str:
        try:
            return "".join(self._api.stream(self._log_path(pod["metadata"]["name"]), **query))
        except KubeError:  # gone, or not yet started
            return ""

    def _log_path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self.options.namespace}/pods/{pod}/log"

    def _follow(self, pod: str, told: dict[str, int], *, wait: bool) -> Iterator[str]:
        """What a pod's log has beyond what was told; a connection that broke starts from the log's beginning."""
        seen = 0
        try:
            for piece in self._api.stream(self._log_path(pod), follow="true" if wait else "false"):
                new = piece[max(0, told.get(pod, 0) - seen) :]
                seen += len(piece)
                if new:
                    told[pod] = seen
                    yield new
        except KubeError:  # a retry takes the pod away
            return

    def _why_it_waits(self, name: str) -> str:
        """What Kubernetes says of the first pod that cannot start."""
        for pod in self._pods(f"{JOB_LABEL}={name}"):
            status = pod.get("status", {})
            for condition in status.get("conditions", []):
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return _one_line(f"pod {pod['metadata']['name']}: {condition.get('message', '')}")
            for container in status.get("containerStatuses", []):
                waiting = container.get("state", {}).get("waiting", {})
                if waiting.get("reason", "") not in ("", "ContainerCreating", "PodInitializing"):
                    said = f"{waiting['reason']} {waiting.get('message', '')}"
                    return _one_line(f"pod {pod['metadata']['name']}: {said}")
        return ""


def _read_status(ray_job: Manifest) -> JobStatus:
    """A RayJob as a job's status."""
    status, spec, metadata = ray_job.get("status", {}), ray_job["spec"], ray_job["metadata"]
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    state: JobState = "pending"
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        state = "succeeded" if deployment == "Complete" and job == "SUCCEEDED" else "failed"
    elif deployment == "Running" and job == "RUNNING":
        state = "running"
    if job == "STOPPED" or (state != "succeeded" and _STOPPED in metadata.get("annotations", {})):
        state = "stopped"
    said = _one_line(f"{status.get('reason', '')} {status.get('message', '')}")
    if deployment in ("Suspended", "Retrying") and not said:
        said = {"Suspended": "waits in its queue", "Retrying": "starts again on a new cluster"}[deployment]
    command = spec["entrypoint"].replace("$$", "$").partition(" -- ")[2]
    code = re.search(r"exit code (\d+)", said) if state == "failed" else None
    return JobStatus(
        name=metadata["name"],
        state=state,
        command=shlex.join(["fsl-dist", *shlex.split(command)]),
        started=_utc(status.get("startTime", "")),
        ended=_utc(status.get("endTime", "")),
        message="" if state in ("succeeded", "stopped") else said,
        exit_code=int(code[1]) if code else (0 if state == "succeeded" else None),
    )


def _utc(stamp: str) -> str:
    """`2026-11-21T22:00:00Z` as date and time."""
    return re.sub(r"[TZ]", " ", stamp).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
