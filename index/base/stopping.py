"""Ctrl-C and SIGTERM: either a request to stop, which is answered at the next safe point, or an immediate exception.

A command that has nothing to finish ends at once: `raising_on_sigterm` turns SIGTERM into an exception, as Python does
with Ctrl-C, so that every `finally` runs. Training and sweeps finish their step first: `answering_signals` records the
request, and the loop checks `StopRequest.is_set` between two steps.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_S = 0.5
"""A second Ctrl-C within this time is the same key press:
a process group and its leader may both forward it (seconds)."""
_LAST_S = 3.0
"""Time that a process has for cleaning up after an immediate stop (seconds)."""


class Stopped(KeyboardInterrupt):
    """Work that a signal ended; the text says what is kept and how to resume. Not caught by `except Exception`."""

    def __init__(self, text: str = "stopped", number: int = signal.SIGINT) -> None:
        super().__init__(text)
        self.number = number

    @property
    def exit_code(self) -> int:
        """The exit code of the process: 130 after Ctrl-C, 143 after SIGTERM."""
        return 128 + self.number


def number_of(error: KeyboardInterrupt) -> int:
    """The signal that caused `error`."""
    return error.number if isinstance(error, Stopped) else signal.SIGINT


class StopRequest:
    """Whether the work is to stop at its next safe point. Thread-safe."""

    def __init__(self) -> None:
        self.number: int = signal.SIGTERM
        """Number of the signal."""
        self._event = threading.Event()

    @property
    def is_set(self) -> bool:
        """Whether a stop was requested."""
        return self._event.is_set()

    def ask(self, number: int = signal.SIGTERM) -> None:
        """Request a stop."""
        self.number = number
        self._event.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for a request; return whether there was one."""
        return self._event.wait(timeout_s)


@contextlib.contextmanager
def answering_signals(
    grace_s: float, what: str, *, describe: Callable[[], str] = lambda: "stopped"
) -> Iterator[StopRequest]:
    """Treat Ctrl-C and SIGTERM as a request to stop while the block runs.

    If the block is still running `grace_s` seconds after the signal, or at a second Ctrl-C, `Stopped` is raised in
    it. A process that does not react to that either ends at once. SIGTERM may arrive twice, from a process group and
    from its leader. Only the main thread receives signals: in other threads nothing changes, and the owner of the
    request calls `ask`.

    Args:
        grace_s: seconds until the block is interrupted.
        what: what is finished first, for the log.
        describe: what is kept, for the message of a process that ends at once.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    main_thread = threading.main_thread().ident
    is_over = threading.Event()
    is_late = False
    asked_s = 0.0

    def answer(number: int, frame: FrameType | None) -> None:
        nonlocal asked_s
        if not request.is_set:
            asked_s = time.monotonic()
            request.ask(number)
            threading.Thread(target=watch, name="grace", daemon=True).start()
        elif is_late or (number == signal.SIGINT and time.monotonic() - asked_s > _AGAIN_S):
            raise Stopped(number=request.number)

    def watch() -> None:
        nonlocal is_late
        logger.info(
            "%s: stopping after %s, within %g s%s",
            signal.Signals(request.number).name,
            what,
            grace_s,
            " (Ctrl-C again stops at once)" if request.number == signal.SIGINT else "",
        )
        if is_over.wait(grace_s):
            return
        is_late = True
        assert main_thread is not None
        signal.pthread_kill(main_thread, request.number)
        if is_over.wait(_LAST_S):
            return
        # It hangs in a call that no exception ends, such as a collective operation.
        with contextlib.suppress(Exception):
            logger.warning("%s", describe())
            sys.stderr.flush()
        os._exit(128 + request.number)

    before = {number: signal.signal(number, answer) for number in _SIGNALS}
    try:
        yield request
    finally:
        is_over.set()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Raise `Stopped` in the main thread at SIGTERM while the block runs,
    as Python raises KeyboardInterrupt at Ctrl-C."""

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(
            number, signal.SIG_IGN
        )  # the second one, of a process group, must not break the cleaning up
        raise Stopped(number=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


@contextlib.contextmanager
def keeping_handlers() -> Iterator[None]:
    """Restore the handlers of Ctrl-C and SIGTERM after a block in which a library installs its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)
