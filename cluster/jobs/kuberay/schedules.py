"""The runs of a schedule (RayCronJob): those that ran, were missed, or overlapped the next."""

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
"""seconds after which a run that does not exist counts as missed"""


def describe_runs(schedule: Manifest, ray_jobs: Sequence[Manifest], now_s: float) -> list[JobStatus]:
    """The runs of a schedule, the newest first, with those that are missing.

    Args:
        schedule: a RayCronJob.
        ray_jobs: its RayJobs, in any order.
        now_s: seconds since 1970 by the server's clock.

    Returns:
        Statuses; `message` reports a missed run, and one that started before the previous one ended.
    """
    ordered = sorted(ray_jobs, key=_moment_of)
    found = []
    for number, one in enumerate(ordered):
        status = read_status(one, now_s)
        before = ordered[number - 1] if number else None
        if before is not None and _overlaps(before, one):
            said = f"started before {before['metadata']['name']} ended"
            status = replace(status, message="; ".join(filter(None, (status.message, said))))
        found.append((_moment_of(one), status))
    found += _missed_runs(schedule, {round(moment / 60) for moment, _ in found}, now_s)
    return [status for _, status in sorted(found, key=lambda pair: pair[0], reverse=True)]


def _missed_runs(schedule: Manifest, there: set[int], now_s: float) -> list[tuple[float, JobStatus]]:
    """The moments without a run since the oldest run that is kept."""
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
                message="missed: no run was started at this time (check that the operator was running)",
            ),
        )
        for moment in missed
    ]


def _moment_of(ray_job: Manifest) -> float:
    """When a run was due, in seconds since 1970: the annotation of KubeRay, else the minute in its name."""
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
