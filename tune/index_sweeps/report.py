"""An index sweep's report: the cost of each build at the required recall, the effect of each knob,
and how to build the best."""

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from index.base.files import write_atomic
from index.config import IndexConfig
from tune.document import Block, Code, Heading, Picture, Table, Text, render_html, render_markdown
from tune.index_sweeps.config import SEARCH_PARAMETERS, IndexSweepConfig
from tune.index_sweeps.plots import plot_recall
from tune.index_sweeps.trial import LABELS_FILE, SearchCell, best_cell, read_cells, shape_of
from tune.plan import rank_trials
from tune.records import Session, SweepFolder, Trial
from tune.space import show_value
from tune.sweep_file import load_stored
from tune.sweeps.importance import knob_importance
from tune.sweeps.report import WrittenReport, knob_blocks

Cells = Mapping[int, Sequence[SearchCell]]


def write_index_report(folder: Path) -> WrittenReport:
    """Write report.md with pictures/, report.html, trials.csv and evaluation.csv into an index sweep's folder.

    A running sweep can be reported too. Raises ConfigError for a folder that is not a sweep.
    """
    config = load_stored(folder)
    assert isinstance(config, IndexSweepConfig)  # sweeps of runs have another report
    files = SweepFolder(folder)
    trials = files.trials()
    cells = {trial.number: read_cells(trial.folder) for trial in trials}
    ranked = rank_trials(trials, config.mode)
    importance = knob_importance(trials, config.space)
    blocks: list[Block] = [
        *_head(config, trials, files.sessions()),
        *_builds(config, trials, ranked, cells),
        *_picture(config, trials, ranked, cells),
        *knob_blocks(config, trials, importance, config.metric),
        *_time(trials, files.sessions()),
        *_left_out(trials),
    ]
    text = render_markdown(blocks, "pictures")
    written = {
        "report.md": text.encode(),
        "report.html": render_html(blocks, f"Sweep {folder.name}").encode(),
        "trials.csv": render_trials(config, trials, cells).encode(),
        "evaluation.csv": render_cells(config, trials, cells).encode(),
    }
    written |= {f"pictures/{block.name}.png": block.png for block in blocks if isinstance(block, Picture)}
    for name, data in written.items():
        write_atomic(folder / name, data)
    best = ranked[0] if ranked else None
    base = next((trial for trial in ranked if not trial.point), None)
    return WrittenReport(
        tuple(folder / name for name in written),
        config.metric,
        best.number if best else None,
        _value(best),
        _value(base),
        importance,
        text,
    )


def build_command(config: IndexSweepConfig, trial: Trial, cell: SearchCell) -> str:
    """The line that builds a trial's index again, to be searched with a cell's parameters from then on."""
    index = config.trial_config({**trial.point, **cell.parameters})
    said = [
        f"{f.name}={getattr(index, f.name)}"
        for f in fields(IndexConfig)
        if getattr(index, f.name) != f.default
    ]
    files = {
        "--vectors": config.index.vectors,
        "--labels": config.index.labels or str(Path(config.dir) / LABELS_FILE),
    }
    named = [part for option, path in files.items() for part in (option, path)]
    return shlex.join(["fsl-dist", "index", "build", *named, str(Path(config.dir) / "best"), *said])


def render_trials(config: IndexSweepConfig, trials: Sequence[Trial], cells: Cells) -> str:
    """CSV, a line a trial: its point, how it ended, and the search parameters that it is compared by."""
    head = ["trial", "state", "value", "build_s", "measure_s", *config.space, *SEARCH_PARAMETERS]
    lines: list[list[object]] = [[*head, "recall", "ms", "bytes", "error"]]
    for trial in trials:
        result, cell = trial.result, _cell_of(config, cells[trial.number])
        facts: list[object] = (
            [result.state, result.value, result.train_s, result.evaluate_s]
            if result
            else ["running", *[""] * 3]
        )
        point = [show_value(trial.point[key]) if key in trial.point else "" for key in config.space]
        measured: list[object] = [*[""] * len(SEARCH_PARAMETERS), "", "", ""]
        if cell is not None:
            measured = [*_parameters(cell), cell.recall, cell.ms, cell.bytes]
        lines.append([f"{trial.number:04d}", *facts, *point, *measured, result.error if result else ""])
    return _csv(lines)


def render_cells(config: IndexSweepConfig, trials: Sequence[Trial], cells: Cells) -> str:
    """CSV, a line a measurement: the trial's point, the search parameters, recall, milliseconds and bytes."""
    lines: list[list[object]] = [
        ["trial", *config.space, *SEARCH_PARAMETERS, "recall", "ms", "bytes", "counts"]
    ]
    for trial in trials:
        point = [show_value(trial.point[key]) if key in trial.point else "" for key in config.space]
        for cell in cells[trial.number]:
            counts = str(config.is_enough(cell.recall, cell.ms)).lower()
            lines.append(
                [f"{trial.number:04d}", *point, *_parameters(cell), cell.recall, cell.ms, cell.bytes, counts]
            )
    return _csv(lines)


def _head(config: IndexSweepConfig, trials: Sequence[Trial], sessions: Sequence[Session]) -> list[Block]:
    states = [trial.result.state if trial.result else "running" for trial in trials]
    words = {
        "finished": "measured",
        "failed": "failed",
        "pruned": "pruned",
        "running": "under way or cut off",
    }
    counts = ", ".join(f"{states.count(state)} {words[state]}" for state in words if state in states)
    num, dim = shape_of(config.index)
    budget = f" and takes at most {config.max_ms:g} ms" if config.max_ms else ""
    asked = f"{config.at_once} at a time" if config.at_once else "all together"
    threads = sorted({session.cores for session in sessions})
    told = " and ".join(f"{number:g}" for number in threads) or "no"
    warned = " Times of sessions with different threads do not compare." if len(threads) > 1 else ""
    return [
        Heading(f"Sweep {Path(config.dir).name}", 1),
        Text(
            f"Indexes of {num} vectors of {dim} numbers ({Path(config.index.vectors).name}), "
            f"metric={config.index.metric}, search={config.search_name}. Builds are compared by {config.metric} "
            f"(the {_better(config)} the better) at search parameters with which a search finds {config.recall:g} "
            f"of the {config.k} true neighbours or more{budget}. {min(config.sample, num)} of the vectors are "
            f"used as queries, {asked}, each excluded from its own answer, on {told} threads.{warned} "
            f"{counts or 'No trial yet'}."
        ),
    ]


def _builds(
    config: IndexSweepConfig, trials: Sequence[Trial], ranked: Sequence[Trial], cells: Cells
) -> list[Block]:
    missed = [trial for trial in trials if cells[trial.number] and trial not in ranked]
    used = [
        name
        for name in SEARCH_PARAMETERS
        if any(name in cell.parameters for found in cells.values() for cell in found)
    ]
    rows = [
        [
            "trial",
            *config.space,
            *used,
            f"recall@{config.k} %",
            "ms a query",
            "bytes per vector",
            "build s",
            "counts",
        ]
    ]
    for trial in [*ranked, *missed]:
        cell = _cell_of(config, cells[trial.number])
        if cell is None or trial.result is None:
            continue
        point = [show_value(trial.point[key]) if key in trial.point else "·" for key in config.space]
        rows.append(
            [
                f"{trial.number:04d}" if trial.point else f"{trial.number:04d}, the base",
                *point,
                *(str(cell.parameters.get(name, "")) for name in used),
                f"{100 * cell.recall:.2f}",
                f"{cell.ms:.4f}",
                f"{cell.bytes:.0f}",
                f"{trial.result.train_s:.1f}",
                "yes" if trial in ranked else "no",
            ]
        )
    if len(rows) == 1:
        return [Heading("Builds"), Text("No build has been measured yet.")]
    blocks: list[Block] = [
        Heading("Builds"),
        Text(
            "Each at the search parameters by which it is compared; if none are accepted, at those with the "
            "highest recall. A dot: the default of `index`. Bytes are what searches read: FAISS's index, and the "
            "vectors if all are compared, as for flat and every kind that would visit as many. Otherwise the "
            "vectors are on disk."
        ),
        Table(rows, marked=0 if ranked else -1),
    ]
    if ranked:
        best = _cell_of(config, cells[ranked[0].number])
        assert best is not None
        blocks.append(Code(build_command(config, ranked[0], best)))
    return blocks


def _picture(
    config: IndexSweepConfig, trials: Sequence[Trial], ranked: Sequence[Trial], cells: Cells
) -> list[Block]:
    shown = [*ranked, *(trial for trial in trials if trial not in ranked and cells[trial.number])]
    if not shown:
        return []
    return [
        Heading("Recall over queries per second"),
        Text(
            "A line per build, through its search parameters that no others exceed in both; evaluation.csv has "
            "all. Dashed: the required recall."
        ),
        Picture(
            "recall",
            plot_recall(shown, cells, config.recall, config.k),
            f"recall@{config.k} of each build over queries per second",
        ),
    ]


def _time(trials: Sequence[Trial], sessions: Sequence[Session]) -> list[Block]:
    if not sessions:
        return []
    results = [trial.result for trial in trials if trial.result]
    wall_s = sum(session.wall_s for session in sessions)
    starts = "one start" if len(sessions) == 1 else f"{len(sessions)} starts"
    return [
        Heading("Time"),
        Table(
            [
                ["what", "seconds"],
                [f"wall time, from the command's start ({starts})", f"{wall_s:.0f}"],
                ["building, all trials", f"{sum(result.train_s for result in results):.0f}"],
                ["measuring, all trials", f"{sum(result.evaluate_s for result in results):.0f}"],
            ]
        ),
    ]


def _left_out(trials: Sequence[Trial]) -> list[Block]:
    """Failed trials one by one, pruned points by their reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for trial in trials:
        if trial.result and trial.result.state in ("failed", "pruned"):
            reasons.setdefault((trial.result.state, trial.result.error), []).append(f"{trial.number:04d}")
    if not reasons:
        return []
    rows = [
        [f"{numbers[0]} and {len(numbers) - 1} more" if len(numbers) > 1 else numbers[0], state, why]
        for (state, why), numbers in reasons.items()
    ]
    return [Heading("Failed and pruned"), Table([["trial", "state", "why"], *rows])]


def _cell_of(config: IndexSweepConfig, cells: Sequence[SearchCell]) -> SearchCell | None:
    """The cell by which a build is compared; if none is accepted, the one with the highest recall,
    the fastest of those."""
    best = best_cell(config, cells)
    return best or min(cells, key=lambda cell: (-cell.recall, cell.ms), default=None)


def _parameters(cell: SearchCell) -> list[object]:
    return [cell.parameters.get(name, "") for name in SEARCH_PARAMETERS]


def _better(config: IndexSweepConfig) -> str:
    return "larger" if config.mode == "max" else "smaller"


def _value(trial: Trial | None) -> float | None:
    return trial.result.value if trial and trial.result else None


def _csv(lines: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
