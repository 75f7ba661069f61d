"""Following a job on any target: why it waits, its log, and how it ends."""

import logging
import time
from collections.abc import Callable, Iterator

from cluster.jobs.job import JobPlace, JobStatus, WaitedError

log = logging.getLogger(__name__)

_FIRST_POLL_S, _POLL_S = 0.5, 5.0


class CauseLog:
    """Reports why a job waits: once, and again when the reason changes."""

    def __init__(self) -> None:
        self._last = ""

    def tell(self, status: JobStatus) -> None:
        """Report the status of a job that has not ended, unless it is the one reported last."""
        if status.is_over:
            return
        said = status.message if status.message or status.state != "pending" else "no reason is known"
        if said and said != self._last:
            log.info("%s %s: %s", status.name, "waits" if status.state == "pending" else status.state, said)
        self._last = said


def wait_for_start(
    place: JobPlace,
    name: str,
    *,
    wait_s: float | None = None,
    poll_s: float = _POLL_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> JobStatus:
    """Wait until a job runs or has ended; report why it waits whenever the reason changes.

    Args:
        place: where the job is.
        name: its name.
        wait_s: seconds after which the wait ends; None: no limit.
        poll_s: seconds between two requests while a job waits; the first ones are more frequent.
        sleep: waits for seconds; tests pass their own.
        clock: monotonic seconds; tests pass their own.

    Raises:
        WaitedError: the job still waits after `wait_s`; the message has the reason. The job stays.
    """
    until = None if wait_s is None else clock() + wait_s
    causes, pause_s = CauseLog(), min(_FIRST_POLL_S, poll_s)
    while (status := place.status(name)).state == "pending":
        causes.tell(status)
        if status.is_late:
            place.stop(name)  # nothing on the cluster ends a job that waits in a queue
            return place.status(name)
        if until is not None and clock() >= until:
            raise WaitedError(
                f"{name} still waits after {wait_s:g} s: {status.message or 'no reason is known'}"
            )
        sleep(pause_s if until is None else max(0.0, min(pause_s, until - clock())))
        pause_s = min(2 * pause_s, poll_s)
    return status


def follow(place: JobPlace, name: str, *, wait_s: float | None = None) -> Iterator[str]:
    """A job's log, from before it runs to its end, in pieces. Raises WaitedError after `wait_s` seconds of waiting."""
    wait_for_start(place, name, wait_s=wait_s)
    yield from place.logs(name, follow=True)
