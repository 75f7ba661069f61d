"""The deadline of a job: one moment for all its tries, stored with the job and checked by each reader."""

import time
from datetime import UTC, datetime

from index.base.errors import FslDistError, RequestError

GRACE_S = 30.0
"""seconds between SIGTERM and SIGKILL, in which a command writes a checkpoint"""

LATENESS_S = 120
"""seconds after a deadline for the command to write a checkpoint and end, before the operator kills it"""


class DeadlineError(FslDistError):
    """The time of a job is over; a retry cannot help."""


def check_deadline(deadline_s: float | None, now_s: float) -> None:
    """Refuse to start after the deadline. Raises DeadlineError."""
    if deadline_s is not None and now_s >= deadline_s:
        raise DeadlineError(
            f"the job's deadline, {show_moment(deadline_s)} UTC, passed before it started (submit it with a later deadline)"
        )


def write_moment(seconds: float) -> str:
    """Seconds since 1970 in the format of Kubernetes: 2026-11-21T22:00:00Z."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_moment(text: str) -> float:
    """A date and time in ISO 8601, with its zone, as seconds since 1970. Raises RequestError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise RequestError(f"{text!r} must be a date and time with its zone, such as 2026-11-21T22:00:00Z")
    return moment.timestamp()


def show_moment(seconds: float) -> str:
    """Seconds since 1970 as date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def first_deadlines(deadline_s: int, retries: int, start_s: int) -> tuple[int, int]:
    """The two deadlines of each try that KubeRay gets, for `deadline_s` seconds over all tries.

    KubeRay's clock restarts at each try.

    Args:
        deadline_s: seconds over all tries.
        retries: tries after the first.
        start_s: the most seconds that one try may wait for its pods.

    Returns:
        Seconds for one try (activeDeadlineSeconds), and for one try's wait for pods (preRunningDeadlineSeconds): tries
        that never start use at most the deadline together.
    """
    return deadline_s + LATENESS_S, max(1, min(start_s, deadline_s // (retries + 1)))
