"""The runs of a schedule (RayCronJob): what ran, what was missed, what ran into the next."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cluster.jobs.deadlines import read_moment
from cluster.jobs.job import JobStatus
from cluster.jobs.kuberay.cron import moments_between
from cluster.jobs.kuberay.kustomize import Manifest
from cluster.jobs.kuberay.states import read_status, show_utc

_MOMENT = "ray.io/cronjob-scheduled-timestamp"
_MOST_MISSED = 14
"""missed runs that are listed"""
_LATE_S = 120.0
"""seconds after its moment at which a run that is not there counts as missed"""


def describe_runs(schedule: Manifest, ray_jobs: Sequence[Manifest], now_s: float) -> list[JobStatus]:
    """The runs of a schedule, the newest first: those that there are, and those that should be there and are not.

    Args:
        schedule: a RayCronJob.
        ray_jobs: its RayJobs, in any order.
        now_s: the moment by the server's clock, seconds since 1970.

    Returns:
        Statuses; `message` says of a run that it was missed, or that it began before the one before it ended.
    """
    ordered = sorted(ray_jobs, key=_moment_of)
    found = []
    for number, one in enumerate(ordered):
        status = read_status(one, now_s)
        before = ordered[number - 1] if number else None
        if before is not None and _overlaps(before, one):
            said = f"began before {before['metadata']['name']} ended"
            status = replace(status, message="; ".join(filter(None, (status.message, said))))
        found.append((_moment_of(one), status))
    found += _missed_runs(schedule, {round(moment / 60) for moment, _ in found}, now_s)
    return [status for _, status in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _missed_runs(schedule: Manifest, there: set[int], now_s: float) -> list[tuple[float, JobStatus]]:
    """The moments since the oldest run that is kept at which nothing ran."""
    spec, name = schedule["spec"], schedule["metadata"]["name"]
    if spec.get("suspend"):
        return []
    oldest_s = min(there) * 60 if there else read_moment(schedule["metadata"]["creationTimestamp"])
    first = datetime.fromtimestamp(oldest_s, UTC)
    last = datetime.fromtimestamp(now_s, UTC) - timedelta(seconds=_LATE_S)
    moments = [
        moment.timestamp()
        for moment in moments_between(spec["schedule"], spec.get("timeZone", ""), first, last)
    ]
    missed = [moment for moment in moments if round(moment / 60) not in there][-_MOST_MISSED:]
    return [
        (
            moment,
            JobStatus(
                name=f"{name}-{round(moment / 60)}",
                state="stopped",
                started=show_utc(datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")),
                message="missed: nothing was started at this moment (was the operator away?)",
            ),
        )
        for moment in missed
    ]


def _moment_of(ray_job: Manifest) -> float:
    """When a run was due, in seconds since 1970: what KubeRay wrote down, else the minute in its name."""
    metadata = ray_job["metadata"]
    if stamp := (metadata.get("annotations") or {}).get(_MOMENT):
        return read_moment(stamp)
    minute = metadata["name"].rpartition("-")[2]
    return int(minute) * 60.0 if minute.isdigit() else read_moment(metadata["creationTimestamp"])


def _overlaps(before: Manifest, after: Manifest) -> bool:
    began = (after.get("status") or {}).get("startTime") or after["metadata"].get("creationTimestamp")
    status = before.get("status") or {}
    ended = status.get("endTime")
    if status.get("jobDeploymentStatus") in ("Complete", "Failed") and not ended:
        return False
    return bool(began) and (not ended or read_moment(began) < read_moment(ended))
