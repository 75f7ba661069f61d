"""Reads the status of a job from its RayJob."""

import re
import shlex

from cluster.jobs.deadlines import read_moment, show_moment
from cluster.jobs.job import JobState, JobStatus
from cluster.jobs.kuberay.kustomize import Manifest

STOPPED = "fsl-dist/stopped"
"""annotation of a job that was stopped on request"""
DEADLINE = "fsl-dist/deadline"
"""annotation with the deadline of a job, over all its tries"""


def read_status(ray_job: Manifest, now_s: float | None = None) -> JobStatus:
    """The status of a RayJob; now_s: seconds since 1970 by the server's clock, compared with the deadline."""
    status, spec, metadata = ray_job.get("status") or {}, ray_job["spec"], ray_job["metadata"]
    annotations = metadata.get("annotations") or {}
    deployment, job = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    state: JobState = "pending"
    if deployment in ("Complete", "Failed", "ValidationFailed"):
        state = "succeeded" if deployment == "Complete" and job == "SUCCEEDED" else "failed"
    elif deployment == "Running" and job == "RUNNING":
        state = "running"
    if job == "STOPPED" or (state != "succeeded" and STOPPED in annotations):
        state = "stopped"
    said = _one_line(f"{status.get('reason', '')} {status.get('message', '')}")
    if deployment == "Retrying" and not said:
        said = "restarts on a new cluster"
    elif state == "pending" and (failed := status.get("failed")):
        said = said or f"try {failed + 1} of {spec.get('backoffLimit', 0) + 1}"
    deadline = annotations.get(DEADLINE, "")
    deadline_s = read_moment(deadline) if deadline else None
    is_late = (
        now_s is not None
        and deadline_s is not None
        and now_s > deadline_s
        and state in ("pending", "running")
    )
    command = spec["entrypoint"].replace("$$", "$").partition(" -- ")[2]
    code = re.search(r"exit code (\d+)", said) if state == "failed" else None
    return JobStatus(
        name=metadata["name"],
        state=state,
        command=shlex.join(["fsl-dist", *shlex.split(command)]),
        started=show_utc(status.get("startTime", "")),
        ended=show_utc(status.get("endTime", "")),
        message="" if state in ("succeeded", "stopped") else said,
        deadline="" if deadline_s is None else show_moment(deadline_s),
        is_late=is_late,
        exit_code=int(code[1]) if code else (0 if state == "succeeded" else None),
    )


def show_utc(stamp: str | None) -> str:
    """`2026-11-21T22:00:00Z` as date and time."""
    return re.sub(r"[TZ]", " ", re.sub(r"\.\d+", "", stamp or "")).strip()


def _one_line(text: str) -> str:
    return " ".join(text.split())
