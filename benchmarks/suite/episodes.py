"""`python -m benchmarks.suite episodes`: episodes from shards, compared with loose files and one tar per class."""

import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.suite.interleave import interleave
from benchmarks.suite.peers_episodes import EPISODE, WAYS, WORKERS
from benchmarks.suite.report import BenchOptions, Report, Table, Target, timing_table
from benchmarks.suite.tiny_images import SIDE, TinyImages, write_class_tars, write_dataset, write_files

_FULL, _PEERS = TinyImages(1_000, 1_000), TinyImages(1_000, 100)
_SMOKE_FULL, _SMOKE_PEERS = TinyImages(50, 1_000), TinyImages(50, 100)
_STARTS = 3  # processes of their own, each way
_EPISODES, _SMOKE_EPISODES = 60, 6  # a round
_EPISODES_AFTER_START = 200  # enough for nearly all classes to be drawn once
_MAX_OPEN = 256  # files that the store of shards keeps open, and some that DALI opens
_OURS, _OURS_SMALL = "shards", "shards, as many as the peers"
_FILES, _TARS = "loose files", "one tar per class"


def measure(options: BenchOptions) -> Report:
    """Start, memory, open files and speed of each way."""
    full, small = (_SMOKE_FULL, _SMOKE_PEERS) if options.is_smoke else (_FULL, _PEERS)
    ways = {
        _OURS: ("shards", options.folder / "full", full),
        _OURS_SMALL: ("shards", options.folder / "small", small),
        _FILES: ("files", options.folder / "files", small),
        _TARS: ("class-tars", options.folder / "tars", small),
    }
    write_dataset(options.folder / "full", full)
    write_dataset(options.folder / "small", small)
    write_files(options.folder / "files", small)
    write_class_tars(options.folder / "tars", small)
    started = (
        (_OURS,) if options.is_smoke else tuple(ways)
    )  # an import takes longer than all else of a small run
    starts = _measure_starts({name: ways[name][:2] for name in started}, 1 if options.is_smoke else _STARTS)
    running = {name: WAYS[way](folder) for name, (way, folder, _) in ways.items()}
    episodes = _SMOKE_EPISODES if options.is_smoke else _EPISODES
    try:
        measured = interleave(
            {name: functools.partial(way.run, episodes) for name, way in running.items()},
            unit="image",
            rounds=options.rounds,
        )
    finally:
        for way in running.values():
            way.close()
    ours = starts[_OURS]
    rows = f"{full.num_images:,} rows"
    targets = [
        Target(f"seconds to the first batch, {rows}", ours["start_s"], at_most=2.0, is_guarded=False),
        Target(
            f"MB added by catalogue and loader, {rows}", ours["memory_mb"], at_most=200.0, is_guarded=False
        ),
        Target(
            f"open files, {full.num_classes:,} classes",
            ours["open_files"],
            at_most=_MAX_OPEN,
            is_guarded=False,
        ),
        *(
            Target(f"{clock} per image over {peer}", measured.ratios(_OURS_SMALL, peer, clock), at_most=1.0)
            for peer in (_FILES, _TARS)
            for clock in ("wall", "cpu")
        ),
    ]
    return Report(
        "episodes",
        f"Episodes of {EPISODE.n_way} classes with {EPISODE.k_shot} support and {EPISODE.n_query} query images per class. "
        f"Images are grey {SIDE}×{SIDE} PNGs (340 bytes): decoded, mirrored at random, normalised.",
        {
            "rows": full.num_images,
            "rows of the peers": small.num_images,
            "classes": full.num_classes,
            "threads or worker processes": WORKERS,
            "episodes per round": episodes,
            "rounds": options.rounds,
        },
        [
            _start_table({name: images for name, (_, _, images) in ways.items()}, starts),
            timing_table("Speed", measured, base=_FILES),
        ],
        targets,
        [
            "Each start is a separate process that has imported everything except DALI, which the decoder "
            "imports; time and memory of that import are included. Memory is the peak above that of the "
            "imported process, plus the private memory of worker processes. Open files are the maximum of one"
            f" process over {_EPISODES_AFTER_START} episodes.",
            "Loose files and one tar per class are measured on fewer images, to fit on the disk. A tar is "
            "read in its own order, and from the start again at its end; the others draw at random.",
        ],
        is_smoke=options.is_smoke,
    )


def _measure_starts(ways: Mapping[str, tuple[str, Path]], times: int) -> dict[str, dict[str, list[float]]]:
    """Figures of `measure_start` of each way, each in its own process; the processes take turns."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in ways}
    for _ in range(times):
        for name, (way, folder) in ways.items():
            command = [
                sys.executable,
                "-m",
                "benchmarks.suite.peers_episodes",
                way,
                str(folder),
                str(_EPISODES_AFTER_START),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            for figure, value in json.loads(done.stdout).items():
                found[name].setdefault(figure, []).append(value)
    return found


def _start_table(sizes: Mapping[str, TinyImages], starts: Mapping[str, Mapping[str, list[float]]]) -> Table:
    columns = ("", "images", "s to the first batch", "MB added", "open files")
    rows: list[tuple[str | float, ...]] = []
    for name, figures in starts.items():
        medians = (statistics.median(figures[key]) for key in ("start_s", "memory_mb", "open_files"))
        rows.append((name, float(sizes[name].num_images), *medians))
    return Table("Start, each in a separate process", columns, tuple(rows))
