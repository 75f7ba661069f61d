"""When a job ends at the latest: one moment for all its tries, kept with it and judged by whoever looks at it."""

import time
from datetime import UTC, datetime

from index.base.errors import FslDistError, RequestError

GRACE_S = 30.0
"""seconds that a command has after SIGTERM, for a checkpoint"""

LATENESS_S = 120
"""seconds after a deadline in which the command itself, which writes a checkpoint first, ends before the operator ends it"""


class DeadlineError(FslDistError):
    """The time that a job was given is over; no retry mends it."""


def check_deadline(deadline_s: float | None, now_s: float) -> None:
    """Refuse to begin after the deadline. Raises DeadlineError."""
    if deadline_s is not None and now_s >= deadline_s:
        raise DeadlineError(
            f"the job's deadline, {show_moment(deadline_s)} UTC, has passed before it began (submit it with a later deadline)"
        )


def write_moment(seconds: float) -> str:
    """Seconds since 1970 as Kubernetes writes a moment: 2026-11-21T22:00:00Z."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_moment(text: str) -> float:
    """A moment in ISO 8601, with its zone, as seconds since 1970. Raises RequestError."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = datetime.min
    if moment.tzinfo is None:
        raise RequestError(f"{text!r} must be a date and time with its zone, such as 2026-11-21T22:00:00Z")
    return moment.timestamp()


def show_moment(seconds: float) -> str:
    """Seconds since 1970 as people read a moment, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def first_deadlines(deadline_s: int, retries: int, start_s: int) -> tuple[int, int]:
    """What KubeRay is told, whose clock begins anew at each try, for `deadline_s` seconds over all tries.

    Args:
        deadline_s: seconds over all tries.
        retries: tries after the first.
        start_s: the most seconds that one try may wait for its pods.

    Returns:
        Seconds for one try (activeDeadlineSeconds), and for one try's wait for pods (preRunningDeadlineSeconds): all tries that
        never start together keep the deadline.
    """
    return deadline_s + LATENESS_S, max(1, min(start_s, deadline_s // (retries + 1)))
