"""Progress for people: one line that is rewritten on a terminal or in a notebook, a line now and then in a log."""

import math
import shutil
import sys
import time
from collections.abc import Callable

Progress = Callable[[str], None]
"""shows a line; an empty one ends it"""

LOG_EVERY_S = 60.0
"""seconds between two lines of a log, at least"""


def _is_notebook() -> bool:
    return type(sys.stderr).__module__.startswith("ipykernel.")


def line_printer() -> Progress | None:
    """Return a function that rewrites a line on the terminal; an empty text clears it.
    None if no line can be rewritten."""
    if sys.stderr.isatty():
        start, width = "\r\x1b[2K", 0
    elif _is_notebook():
        start, width = "\r", 140
    else:
        return None

    def show(text: str) -> None:
        # What wraps is not wiped. A terminal without a size has 80 columns.
        shown = text if width or text.endswith("\n") else text[: shutil.get_terminal_size().columns - 1]
        sys.stderr.write(f"{start}{shown:<{width}}")
        sys.stderr.flush()

    return show


def log_printer(clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return a function that writes lines to stderr for a log file:
    the first, then at most one per minute, and the last one.

    An empty text ends the log. clock: returns seconds.
    """
    last_s, waiting = -math.inf, ""

    def write(text: str) -> None:
        nonlocal last_s, waiting
        last_s, waiting = clock(), ""
        print(text, file=sys.stderr, flush=True)

    def show(text: str) -> None:
        nonlocal last_s, waiting
        if text and clock() - last_s < LOG_EVERY_S:
            waiting = text
        elif text or waiting:
            write(text or waiting)
        if not text:
            last_s = -math.inf

    return show


def progress_printer() -> Progress:
    """Return a function that shows progress: a rewritten line if possible, otherwise lines for a log."""
    return line_printer() or log_printer()


def counter() -> Callable[[str, int, int], None] | None:
    """Return a function that shows (stage, done, total), at most ten times per second, one line per stage;
    None as in `line_printer`."""
    line = line_printer()
    if line is None:
        return None
    shown_s = 0.0

    def show(stage: str, done: int, total: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if done == total or now_s - shown_s >= 0.1:
            shown_s = now_s
            line(f"{stage} {done}/{total}" + ("\n" if done == total else ""))

    return show
