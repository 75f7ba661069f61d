"""One line of progress, rewritten on a terminal or in a notebook; nothing elsewhere."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[str], None]
"""shows a line; an empty one wipes it"""


def _is_notebook() -> bool:
    return type(sys.stderr).__module__.startswith("ipykernel.")


def line_printer() -> Progress | None:
    """Shows a text in place of the one before; an empty text wipes the line. None where no line can be rewritten."""
    if sys.stderr.isatty():
        start, width = "\r\x1b[2K", 0
    elif _is_notebook():
        start, width = "\r", 110
    else:
        return None

    def show(text: str) -> None:
        sys.stderr.write(f"{start}{text:<{width}}")
        sys.stderr.flush()

    return show


def counter() -> Callable[[str, int, int], None] | None:
    """Shows (stage, done, total), at most ten times a second, one line for each stage; None as for `line_printer`."""
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
