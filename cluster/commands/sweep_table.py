"""A sweep's live table on a terminal; elsewhere each trial's end is printed as a line."""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tune.space import show_value

if TYPE_CHECKING:
    from rich.table import Table

    from tune.sweeps.progress import Line, Standing


@contextlib.contextmanager
def live_table() -> "Iterator[Callable[[Standing], None]]":
    """A live table of a sweep's progress while the block runs; log lines are printed above it."""
    if not sys.stderr.isatty():
        yield lambda standing: None
        return
    from rich.console import Console
    from rich.live import Live

    handlers = [
        handler
        for handler in logging.getLogger().handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr
    ]
    console = Console(stderr=True)
    with Live(console=console, transient=True, auto_refresh=False) as live:
        for handler in handlers:
            handler.setStream(sys.stderr)  # Live's own, which prints above the table
        try:
            yield lambda standing: live.update(draw_table(standing), refresh=True)
        finally:
            for handler in handlers:
                handler.setStream(console.file)


def draw_table(standing: "Standing") -> "Table":
    """The trials under way, and the best of those that ended."""
    from rich.table import Table

    ended = ", ".join(f"{number} {state}" for state, number in standing.counts.items())
    minutes, seconds = divmod(int(standing.wall_s), 60)
    table = Table(
        title=f"{standing.num_done} of {standing.num_wanted} trials, {minutes}:{seconds:02d}{f' ({ended})' if ended else ''}",
        title_justify="left",
    )
    table.add_column("trial")
    table.add_column("")
    table.add_column("epochs", justify="right")
    table.add_column(standing.metric, justify="right")
    table.add_column("s", justify="right")
    table.add_column("point", no_wrap=True)
    for line in standing.running:
        table.add_row(*_cells(line))
    table.add_section()
    for number, line in enumerate(standing.best):
        table.add_row(*_cells(line), style="bold" if number == 0 else None)
    return table


def _cells(line: "Line") -> list[str]:
    point = " ".join(
        f"{key.rpartition('.')[2]}={show_value(value)}" for key, value in line.trial.point.items()
    )
    return [
        f"{line.trial.number:04d}",
        line.state,
        str(line.epochs or ""),
        "" if line.value is None else f"{line.value:.4f}",
        f"{line.seconds:.0f}",
        point or "the base",
    ]
