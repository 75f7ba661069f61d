"""Keeping freed memory in the process: time saved and memory used, by the same work in two processes."""

import statistics
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from benchmarks.suite.interleave import interleave, status_mb
from benchmarks.suite.processes import hear, spawned
from benchmarks.suite.report import Table
from benchmarks.suite.train_setup import BenchData, make_trainer
from benchmarks.suite.train_steps import Found
from cluster.planning.machine_rates import load_steps
from index.runtime import flushing_denormals

_WAIT_S = 300.0
# A tunable at its default: glibc is as it always is, and keep_freed_memory leaves it so.
_LEFT_ALONE = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"}
# What is done, network of the benchmark, settings over it, and how often a turn takes a step; 0: it embeds 256 images.
CASES = (
    ("step of Conv4, 150 images of 28 px", "conv4", (), 4),
    ("step of ResNet18, 50 images of 224 px", "resnet18 at 224 px", ("episode.n_way=5", "episode.k_shot=5"), 1),
    ("256 images of 224 px embedded by MobileNetV2", "resnet18 at 224 px",
     ("backbone.name=mobilenet_v2", "evaluation.batch_size=64"), 0),
)  # fmt: skip
KEPT, GIVEN = "kept", "given back"


def measure_kept_memory(data: BenchData, *, folder: Path, rounds: int) -> Found:
    """Work with freed memory kept or returned, each in its own process: milliseconds and peak memory."""
    rows: list[tuple[str | float, ...]] = []
    for number, case in enumerate(CASES):
        with (
            spawned(_serve, data, number, folder / f"kept-{number}") as keeping,
            spawned(_serve, data, number, folder / f"given-{number}", environment=_LEFT_ALONE) as giving,
        ):
            measured = interleave(
                {KEPT: partial(_ask, keeping, "turn"), GIVEN: partial(_ask, giving, "turn")},
                unit="turn",
                rounds=rounds,
            )
            memory = [_ask(end, "memory") for end in (keeping, giving)]
        times = [measured.median_ms(KEPT), measured.median_ms(GIVEN)]
        ratio = statistics.median(measured.ratios(KEPT, GIVEN))
        rows.append((case[0], *(float(f"{ms:.3g}") for ms in times), round(ratio, 2), *map(round, memory)))
    columns = ("", "kept, ms", "released, ms", "ratio", "peak MB, kept", "peak MB, released")
    return Found(
        [Table("Freed memory kept for the next batch, or released as glibc does", columns, tuple(rows))]
    )


def _ask(end: Connection, what: str) -> float:
    end.send(what)
    answer = hear(end, _WAIT_S)
    assert isinstance(answer, float)
    return answer


@flushing_denormals(torch.set_flush_denormal)
def _serve(data: BenchData, case: int, run: Path, end: Connection) -> None:
    """Take a turn or tell the peak memory, as the other end asks, until it closes."""
    _, network, settings, steps = CASES[case]
    trainer = make_trainer(data.config(network, "pcn", run, settings))
    planned, (images,) = load_steps(trainer, 0, 1)[0][0]
    ids = trainer.splits.train.ids[:256]
    while True:
        try:
            asked = end.recv()
        except EOFError:
            return
        if asked == "memory":
            end.send(status_mb("self", "VmHWM"))
            continue
        for _ in range(steps):
            trainer.take_step(planned, iter([images]))
        if not steps:
            trainer.embedder.embed(ids)
        end.send(float(steps or 1))
