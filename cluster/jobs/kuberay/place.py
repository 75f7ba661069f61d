"""Jobs on Kubernetes: a RayJob of KubeRay for each, with its config and its network policies."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cluster.jobs.deadlines import read_moment
from cluster.jobs.following import CauseLog
from cluster.jobs.job import Job, JobState, JobStatus, read_error, read_final, read_result
from cluster.jobs.kuberay.api import API_TIMEOUT_S, KubeApi, KubeError
from cluster.jobs.kuberay.checks import check_cluster, find_operator
from cluster.jobs.kuberay.describing import describe_events, describe_job
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.objects import SCHEDULE_LABEL, read_objects, read_pods
from cluster.jobs.kuberay.pod_logs import PodLog, TryLog
from cluster.jobs.kuberay.rendering import JOB_LABEL, KubeOptions, render, set_deadline
from cluster.jobs.kuberay.schedules import describe_runs
from cluster.jobs.kuberay.states import STOPPED, read_status
from cluster.jobs.kuberay.waiting import JobObjects, find_cause, is_in_queue
from index.base.errors import FslDistError, RequestError
from index.base.files import new_token

log = logging.getLogger(__name__)

_SUBMISSION = "fsl-dist/submission"
"""annotation with a new value for each submission, by which a submitter recognizes its own objects"""
_LAST_LINES = 200
"""of a log: they include the result or the error"""


class KubeRayPlace:
    """The namespace of `options` in the cluster of the current kubeconfig context.

    Args:
        options: the namespace and the resources of jobs.
        poll_s: seconds between two requests while a job is followed.
        timeout_s: seconds for which a request is repeated while the API server is unreachable.
    """

    def __init__(
        self, options: KubeOptions, *, poll_s: float = 2.0, timeout_s: float = API_TIMEOUT_S
    ) -> None:
        self.options = options
        self._api = KubeApi(timeout_s=timeout_s)
        self._poll_s = poll_s
        self._gone: dict[str, JobStatus] = {}  # jobs that were deleted since

    def submit(self, job: Job) -> None:
        """Create the job's objects after checking that the cluster accepts them: all of them, or none."""
        check_cluster(self._api, job, self.options)
        objects = render(
            job, replace(self.options, operator_namespace=find_operator(self._api, self.options))
        )
        mark = new_token()
        for one in objects:
            one["metadata"].setdefault("annotations", {})[_SUBMISSION] = mark
        ray_job = next(one for one in objects if one["kind"] == "RayJob")
        # Network policies first, so that no pod of the job is ever reachable without them.
        others = [one for one in objects if one is not ray_job]
        for one in [*others, ray_job]:
            self._create(one, is_trial=True)
        made: list[str] = []
        try:
            for one in others:
                created = self._create(one)["metadata"].get("creationTimestamp")
                made.append(self._path_of(one))
            # By the server's clock: the local one may be wrong.
            now_s = read_moment(created) if created else time.time()
            set_deadline(ray_job, now_s + self.options.deadline)
            owner = self._create(ray_job)["metadata"]
            made.append(self._path_of(ray_job))
            # The other objects are deleted with the job.
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
                try:
                    self._delete(path)
                except FslDistError as error:
                    log.warning("%s is left on the cluster: %s (delete it with kubectl)", path, error)
            raise

    def status(self, name: str) -> JobStatus:
        """The status of a job: why it waits, or its result or error from the end of its log."""
        if name in self._gone:
            return self._gone[name]
        ray_job = self._find(name)
        status = self._status_of(ray_job)
        if not status.is_over:
            cause = find_cause(self.objects(ray_job))
            if cause is None or (status.message and not cause.where):
                return status
            return replace(status, message=": ".join(filter(None, (status.message, str(cause)))))
        return _with_log(status, self._tail_of(ray_job), was_asked=STOPPED in _annotations(ray_job))

    def logs(self, name: str, *, follow: bool) -> Iterator[str]:
        """The log of the newest try; with follow, also those of later tries, until the job ends or is deleted."""
        ray_job = self._find(name)
        if not follow:
            for pod in self._submitters(ray_job)[:1]:
                yield self._pod_log(pod)
            return
        causes = CauseLog()
        tries, pods, read = dict[str, TryLog](), dict[str, PodLog](), set[str]()
        while True:
            status = self._status_of(ray_job)
            found_pods = self._submitters(ray_job)
            for pod in reversed(found_pods):
                pod_name, phase = pod["metadata"]["name"], pod.get("status", {}).get("phase")
                if phase not in ("Running", "Succeeded", "Failed") or pod_name in read:
                    continue
                if pod_name not in pods:
                    reader = tries.setdefault(_owner_of(pod), TryLog()).reader()
                    pods[pod_name] = PodLog(self._api, self._log_path(pod_name), reader)
                is_live = phase == "Running" and not status.is_over
                yield from pods[pod_name].read(follow=is_live)
                # Lines written while the connection was broken are read before the log counts as complete.
                while not is_live and not pods[pod_name].is_complete:
                    time.sleep(self._poll_s)
                    yield from pods[pod_name].read(follow=False)
                if not is_live:
                    read.add(pod_name)
            there = {pod["metadata"]["name"] for pod in found_pods}
            for pod_name in [one for one in pods if one not in there and one not in read]:
                read.add(pod_name)
                if not pods[pod_name].is_complete:
                    log.warning("pod %s is gone; the last lines of its log may be missing above", pod_name)
            if status.is_over:
                return
            if status.is_late and status.state == "pending":
                self.stop(name)
                return
            if status.state == "pending":
                causes.tell(self.status(name))
            time.sleep(self._poll_s)
            found = self._api.find(self._jobs_path(name))
            if found is None or found["metadata"].get("uid") != ray_job["metadata"].get("uid"):
                message = f"it was deleted while it was followed; its last state was {status.state}"
                self._gone[name] = replace(status, state="stopped", message=message)
                return
            ray_job = found

    def tail(self, name: str) -> str:
        """The last 200 lines of the newest try."""
        return self._tail_of(self._find(name))

    def stop(self, name: str) -> None:
        """End a job and its pods. A job that has not started, or waits in a queue, is deleted; else its log is kept."""
        found = self._find(name)
        status = self._status_of(found)
        if status.is_over:
            return
        if is_in_queue(found) or not found.get("status", {}).get("startTime"):
            # A request to stop would wait in the queue with the job, and act only after its admission.
            self._delete(self._jobs_path(name))
            said = "it waited in its queue" if is_in_queue(found) else "it had not started"
            if status.is_late:
                said = f"its deadline passed while {said}"
            state: JobState = "failed" if status.is_late else "stopped"
            self._gone[name] = replace(
                status, state=state, is_late=False, message=f"{said}; the job was deleted"
            )
            return
        # KubeRay never retries a job that is past its deadline. spec.suspend belongs to Kueue.
        ended = {"activeDeadlineSeconds": 1, "backoffLimit": 0, "ttlSecondsAfterFinished": 1}
        self._api.change(
            self._jobs_path(name), {"metadata": {"annotations": {STOPPED: "true"}}, "spec": ended}
        )

    def list(self) -> list[JobStatus]:
        """The namespace's jobs, the newest first, without their results."""
        return [self._status_of(one) for one in self._newest_first({"labelSelector": JOB_LABEL})]

    def list_runs(self, schedule: str) -> Sequence[JobStatus]:
        """The runs of a RayCronJob, the newest first, with missed ones. Raises RequestError for an unknown name."""
        path = f"/apis/ray.io/v1/namespaces/{self.options.namespace}/raycronjobs/{schedule}"
        found = self._api.find(path)
        if found is None:
            raise RequestError(
                f"there is no schedule {schedule} in namespace {self.options.namespace} (kubectl -n {self.options.namespace} get "
                "raycronjobs)"
            )
        runs = self._newest_first({"labelSelector": f"{SCHEDULE_LABEL}={schedule}"})
        return describe_runs(found, runs, self._api.now_s())

    def clean(self, older_s: float) -> Sequence[str]:
        """Delete the records of jobs that ended over `older_s` seconds ago, not their output; returns the names."""
        removed = []
        for one in self._newest_first({}):
            metadata, ended = one["metadata"], (one.get("status") or {}).get("endTime")
            is_own = {JOB_LABEL, SCHEDULE_LABEL} & set(metadata.get("labels") or {})
            if not is_own or not ended or not self._status_of(one).is_over:
                continue
            if read_moment(ended) < self._api.now_s() - older_s:
                self._delete(self._jobs_path(metadata["name"]))
                removed.append(metadata["name"])
        return removed

    def events(self, name: str) -> Sequence[dict[str, str]]:
        """The Kubernetes events of a job and its objects, the oldest first."""
        return describe_events(self.objects(self._find(name), all_events=True))

    def describe(self, name: str) -> dict[str, Any]:
        """A job's state, its objects and their states, and its last events, as texts."""
        ray_job = self._find(name)
        return describe_job(self.status(name), self.objects(ray_job, all_events=True))

    def objects(self, ray_job: Manifest, *, all_events: bool = False) -> JobObjects:
        """A job's objects, from which the reason for a wait is read."""
        return read_objects(self._api, self.options.namespace, ray_job, all_events=all_events)

    def _status_of(self, ray_job: Manifest) -> JobStatus:
        return read_status(ray_job, self._api.now_s())

    def _newest_first(self, query: dict[str, str]) -> Sequence[Manifest]:
        found = self._api.get(self._jobs_path(), **query)["items"]
        return sorted(found, key=lambda one: one["metadata"].get("creationTimestamp", ""), reverse=True)

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
        group = f"/api/{one['apiVersion']}" if "/" not in one["apiVersion"] else f"/apis/{one['apiVersion']}"
        plural = {"NetworkPolicy": "networkpolicies"}.get(one["kind"], f"{one['kind'].lower()}s")
        path = f"{group}/namespaces/{self.options.namespace}/{plural}"
        return path if is_listed else f"{path}/{one['metadata']['name']}"

    def _create(self, one: Manifest, *, is_trial: bool = False) -> Manifest:
        try:
            return self._api.create(self._path_of(one, is_listed=True), one, is_trial=is_trial)
        except KubeError as error:
            if error.status != 409:
                raise
            found = self._api.look(self._path_of(one)) or {"metadata": {}}
            if _annotations(found).get(_SUBMISSION) == _annotations(one)[_SUBMISSION]:
                return found  # created by an earlier try of this request, whose answer was lost
            raise RequestError(
                f"{one['kind']} {one['metadata']['name']} exists in namespace {self.options.namespace} (choose another --name)"
            ) from None

    def _delete(self, path: str) -> None:
        try:
            self._api.delete(path)
        except KubeError as error:
            if error.status != 404:
                raise

    def _submitters(self, ray_job: Manifest) -> Sequence[Manifest]:
        """The pods whose log is the job's, one per try, the newest first."""
        return read_pods(self._api, self.options.namespace, ray_job, "submitter")

    def _tail_of(self, ray_job: Manifest) -> str:
        return "".join(
            self._pod_log(pod, tailLines=str(_LAST_LINES)) for pod in self._submitters(ray_job)[:1]
        )

    def _pod_log(self, pod: Manifest, **query: str) -> str:
        try:
            return "".join(self._api.stream(self._log_path(pod["metadata"]["name"]), **query))
        except KubeError:  # gone, or not yet started
            return ""

    def _log_path(self, pod: str) -> str:
        return f"/api/v1/namespaces/{self.options.namespace}/pods/{pod}/log"


def _with_log(status: JobStatus, tail: str, *, was_asked: bool) -> JobStatus:
    """The status of a job that has ended, completed from the end of its log."""
    result = read_result(tail)
    if status.state == "succeeded":
        return replace(status, result=result)
    if status.state == "failed" and result is not None and not status.message.startswith("AppFailed"):
        # KubeRay could not reach the job's dashboard, but the command succeeded.
        message = f"KubeRay reports a failure ({status.message}), but the log has the result"
        return replace(status, state="succeeded", exit_code=0, result=result, message=message)
    code = read_final(tail)
    if status.state == "stopped" and not was_asked and code is not None:
        return replace(status, state="failed", exit_code=code, message=read_error(tail))
    if status.state == "failed":
        return replace(status, message=read_error(tail) or status.message)
    return status


def _annotations(one: Manifest) -> dict[str, str]:
    return one["metadata"].get("annotations") or {}


def _owner_of(pod: Manifest) -> str:
    """What distinguishes the tries of a job: the uid of the Kubernetes Job that made the pod."""
    owners = pod["metadata"].get("ownerReferences") or [{"uid": pod["metadata"]["name"]}]
    return str(owners[0]["uid"])
