"""Wait for a Ray cluster that has less than a command needs: after a restart its nodes come back one by one."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from fsl_dist.errors import CapacityError, FslDistError, RequestError
from index.base.stopping import Stopped, StopRequest

log = logging.getLogger(__name__)

_Fitting = TypeVar("_Fitting")

TIMEOUT_VARIABLE = "FSL_DIST_CAPACITY_TIMEOUT_S"
"""environment variable with the seconds for which a command waits for the capacity that it needs; unset: 0"""
_SAY_EVERY_S = 30.0
_LOOK_EVERY_S = 1.0


def capacity_timeout_s(default: float = 0.0) -> float:
    """The seconds of `TIMEOUT_VARIABLE`. Raises RequestError if they are not a number of at least 0."""
    text = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(text) if text else default
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise RequestError(f"{TIMEOUT_VARIABLE}={text} must be a number of seconds, at least 0")
    return seconds


def wait_for_capacity(
    check: Callable[[], _Fitting],
    *,
    timeout_s: float | None = None,
    stop: StopRequest | None = None,
    otherwise: Callable[[], _Fitting] | None = None,
) -> _Fitting:
    """Return the result of `check`, which is repeated while it raises CapacityError.

    What is waited for is logged at once and every 30 s.

    Args:
        check: raises CapacityError while the cluster is too small.
        timeout_s: seconds to wait; None: those of `capacity_timeout_s`.
        stop: ends the wait.
        otherwise: tried once when the time is over; raises CapacityError if it does not help.

    Raises:
        CapacityError: the cluster is too small, and there was no time to wait.
        FslDistError: the cluster is still too small after the wait.
        Stopped: `stop` was requested.
    """
    limit_s = capacity_timeout_s() if timeout_s is None else timeout_s
    started, said_at = time.monotonic(), float("-inf")
    while True:
        try:
            found = check()
        except CapacityError as error:
            now = time.monotonic()
            if now - started >= limit_s:
                if otherwise is not None:
                    with suppress(CapacityError):
                        return otherwise()
                if limit_s == 0:
                    raise
                raise FslDistError(f"{error}; waited {now - started:.0f} s for it") from None
            if now - said_at >= _SAY_EVERY_S:
                log.warning("waiting up to %.0f s for the cluster: %s", started + limit_s - now, error)
                said_at = now
        else:
            if said_at > started - 1:
                log.warning("the cluster has it after %.0f s", time.monotonic() - started)
            return found
        if stop is None:
            time.sleep(min(_LOOK_EVERY_S, limit_s))
        elif stop.wait(min(_LOOK_EVERY_S, limit_s)):
            raise Stopped(number=stop.number)
