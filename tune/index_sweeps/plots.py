"""The plot of an index sweep: recall of each build over its speed."""

from collections.abc import Mapping, Sequence
from typing import Any

from tune.index_sweeps.trial import SearchCell
from tune.records import Trial
from tune.space import show_point
from tune.sweeps.plots import new_figure, save_figure

_SHOWN = 8
"""number of builds with a colour and a name; the others are grey"""
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31")


def fastest_cells(cells: Sequence[SearchCell]) -> list[SearchCell]:
    """The cells that no other exceeds in both recall and speed; the fastest first."""
    kept: list[SearchCell] = []
    for cell in sorted(cells, key=lambda cell: (cell.ms, -cell.recall)):
        if not kept or cell.recall > kept[-1].recall:
            kept.append(cell)
    return kept


def plot_recall(
    ranked: Sequence[Trial], cells: Mapping[int, Sequence[SearchCell]], recall: float, k: int
) -> bytes:
    """Recall over queries per second, a line per build through its best cells in both; the best builds are coloured."""
    from matplotlib import pyplot

    figure, axes = new_figure(pyplot, 1, 1, width=8.0, height=4.6)
    axis: Any = axes.flat[0]
    for place, trial in reversed(list(enumerate(ranked))):
        line = fastest_cells(cells[trial.number])
        is_named = place < _SHOWN
        axis.plot(
            [1e3 / cell.ms for cell in line],
            [cell.recall for cell in line],
            color=_COLOURS[place] if is_named else "#bbbbbb",
            linewidth=1.6 if is_named else 0.8,
            marker=".",
            zorder=3 if is_named else 1,
            label=f"{trial.number:04d} {show_point(trial.point)}" if is_named else None,
        )
    axis.axhline(recall, color="#999999", linewidth=1, linestyle="--", zorder=0)
    axis.set_xscale("log")
    axis.set_xlabel("queries per second")
    axis.set_ylabel(f"recall@{k}")
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], fontsize=7, loc="lower left")
    return save_figure(pyplot, figure)
